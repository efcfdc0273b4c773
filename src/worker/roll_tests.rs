use super::*;

/// Everybody who serves, by slot.
fn serving(stage: &Stage) -> Vec<u32> {
    stage.roster.load().iter().map(|slot| slot.pid).collect()
}

#[tokio::test]
async fn a_roll_replaces_everybody_and_returns_when_the_old_ones_are_gone() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let spec = WorkerSpec { workers: WorkerCount::fixed(2), ..stage.server(&[]) };
            let app = stage.start(spec.clone());
            eventually("both serve", || serving(&stage).len() == 2).await;
            let before = serving(&stage);
            let fewest = std::cell::Cell::new(2);
            let rolled = std::cell::Cell::new(false);
            let watch = async {
                while !rolled.get() {
                    fewest.set(fewest.get().min(serving(&stage).len()));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let roll = async {
                let new = Arc::new(App { max_body: 2, ..App::clone(&super::app()) });
                let asked = app.roll(new, WorkerSpec { workers: WorkerCount::fixed(3), ..spec });
                tokio::time::timeout(PATIENCE, asked).await.expect("in time").expect("rolled");
                rolled.set(true);
            };
            tokio::join!(watch, roll);
            assert_eq!(fewest.get(), 2, "never fewer than before");
            assert_eq!(serving(&stage).len(), 3);
            assert!(before.iter().all(|pid| !alive(*pid)));
            assert_eq!((app.status().generation, app.status().state), (2, AppState::Up));
            app.restart().await.expect("restarted");
            assert_eq!((app.status().generation, serving(&stage).len()), (3, 3));
            app.scale(Some(1)).await.expect("scaled");
            assert_eq!((app.status().workers.len(), serving(&stage).len()), (1, 1));
            app.stop().await;
            stage.leaves_nothing();
        })
        .await;
}

#[tokio::test]
async fn another_number_waits_for_the_generation_that_takes_over() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let app = stage.start(stage.server(&[]));
            stage.ready(0).await;
            let (restarted, scaled) = tokio::join!(app.restart(), app.scale(Some(2)));
            restarted.expect("restarted");
            scaled.expect("scaled");
            let status = app.status();
            let before: Vec<u64> = status.workers.iter().map(|worker| worker.past.after_first).collect();
            assert_eq!((status.generation, before), (2, vec![1, 0]), "the new place had one worker");
            app.stop().await;
            stage.leaves_nothing();
        })
        .await;
}

#[tokio::test]
async fn a_roll_that_fails_says_why_and_leaves_the_old_ones_alone() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let app = stage.start(stage.server(&[]));
            let old = stage.ready(0).await.pid;
            let root = stage.root.path();
            let late =
                WorkerSpec { start_timeout: Duration::from_millis(300), ..shell(root, "echo hm; sleep 100") };
            let unprepared = WorkerSpec {
                before_start: vec![words("sh -c 'echo locked >&2; exit 4'")],
                ..stage.server(&[])
            };
            for (spec, reason, line) in [
                (
                    shell(root, "echo no module; exit 3"),
                    "the new worker ended: exit status 3 before",
                    Some("no module"),
                ),
                (late, "not ready in 0.3 s: nothing listens", Some("hm")),
                (super::spec(root, words("no-such-program")), "cannot run `no-such-program`", None),
                (unprepared, "`sh …` of `before_start` failed: exit status 4", Some("locked")),
            ] {
                let error = app.roll(super::app(), spec).await.expect_err("it cannot start");
                assert!(error.reason.starts_with(reason), "{error}");
                assert_eq!(error.last_lines.last().map(String::as_str), line, "{error}");
                assert_eq!(serving(&stage), [old]);
                assert_eq!((app.status().generation, app.status().state), (1, AppState::Up));
            }
            app.restart().await.expect("the old spec still works");
            app.stop().await;
            stage.leaves_nothing();
        })
        .await;
}

#[tokio::test]
async fn what_comes_before_the_first_worker_runs_once_for_each_generation() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let count = || std::fs::read_to_string(stage.root.path().join("runs")).unwrap_or_default().len();
            let before_start =
                vec![words("sh -c 'sleep 0.1; printf x >> runs'"), words("sh -c 'printf x >> runs'")];
            let app =
                stage.start(WorkerSpec { workers: WorkerCount::fixed(2), before_start, ..stage.server(&[]) });
            let first = stage.ready(0).await;
            assert_eq!(count(), 2);
            kill(first.pid);
            stage.ready(first.pid).await;
            assert_eq!(count(), 2);
            app.restart().await.expect("restarted");
            assert_eq!(count(), 4);
            let (again, stop) = tokio::join!(app.restart(), app.stop());
            assert!(again.is_err());
            let () = stop;
            stage.leaves_nothing();
        })
        .await;
}

#[tokio::test]
async fn a_cold_start_waits_for_what_comes_before_it_however_often_it_fails() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let before_start = vec![words("sh -c 'printf x >> tries; test $(wc -c < tries) -gt 6'")];
            let app = stage.start(WorkerSpec { before_start, ..stage.server(&[]) });
            eventually("it is said", || {
                app.status().workers.first().is_some_and(|worker| worker.past.last_exit.is_some())
            })
            .await;
            assert!(matches!(app.status().state, AppState::Starting | AppState::Failed));
            stage.ready(0).await;
            app.restart().await.expect("restarted");
            let past = app.status().workers.remove(0).past;
            assert_eq!((past.restarts, past.replacements), (0, 1), "nobody had failed who was there");
            app.stop().await;
            stage.leaves_nothing();
        })
        .await;
}

fn words(text: &str) -> Vec<String> {
    shlex::split(text).expect("splits")
}
