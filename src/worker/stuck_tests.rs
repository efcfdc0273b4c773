//! With files that do not answer, as those of a file server that is gone: whoever asks for them is stuck in the kernel, and not
//! even SIGKILL ends him.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

/// Mounts a file system that takes every question and answers none.
const DEAD: &str = r#"
import ctypes, os, struct, sys
fd = os.open('/dev/fuse', os.O_RDWR)
options = b'fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other' % fd
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, 9)
if libc.mount(b'dead', sys.argv[1].encode(), b'fuse', 0, options):
    sys.exit('cannot mount: ' + os.strerror(ctypes.get_errno()))
hello = os.read(fd, 1 << 20)
answer = struct.pack('<IIIIHHIIHHI7I', 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0, *[0] * 7)
os.write(fd, struct.pack('<Ii', 16 + len(answer), 0) + hello[8:16] + answer)
print('mounted', flush=True)
while True:
    os.read(fd, 1 << 20)
"#;

struct DeadFiles {
    path: PathBuf,
    server: std::process::Child,
}

impl DeadFiles {
    /// At `dead` below `root`. `None` where this process may not mount.
    fn below(root: &Path) -> Option<Self> {
        let path = root.join("dead");
        std::fs::create_dir(&path).expect("writable");
        let mut command = Command::new("python3");
        command.arg("-c").arg(DEAD).arg(&path).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = command.spawn().expect("python3 is there");
        let mut line = String::new();
        let said = BufReader::new(server.stdout.take().expect("piped")).read_line(&mut line);
        said.expect("it says something or ends");
        if line.is_empty() {
            server.wait().expect("it has ended");
            return None;
        }
        Some(Self { path, server })
    }
}

impl Drop for DeadFiles {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[tokio::test]
async fn a_worker_that_the_kernel_does_not_let_go_is_given_up_and_told_and_replaced() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let root = stage.root.path();
            let Some(dead) = DeadFiles::below(root) else { return };
            let app = stage.start(stage.server(&["stuck"]));
            let first = stage.ready(0).await;
            assert_eq!(noted(root, "caught"), Some(first.pid));
            let mut remarks = app.remarks();
            let restart = app.restart();
            let told = async {
                loop {
                    let remark = remarks.recv().await.expect("the crew lives");
                    if remark.contains("is stuck in the kernel") {
                        return remark;
                    }
                }
            };
            tokio::pin!(restart);
            let told = tokio::select! {
                told = tokio::time::timeout(PATIENCE, told) => told.expect("it is told"),
                _ = &mut restart => panic!("the old process is there still"),
            };
            assert!(told.contains(&format!("(process {})", first.pid)), "{told}");
            assert!(family::process(first.pid).is_some(), "it was not stuck");
            let status = app.status();
            assert_eq!(status.worker_exits, [("stuck".to_owned(), 1)].into());
            let how = status.workers[0].past.last_exit.clone();
            let expected = "stuck in the kernel (SIGKILL does not end it) after it was asked to stop";
            assert_eq!(how.as_deref(), Some(expected));
            assert_eq!(status.workers.len(), 1);
            drop(dead);
            restart.await.expect("the new one serves");
            eventually("it is reaped", || family::process(first.pid).is_none()).await;
            app.stop().await;
            stage.leaves_nothing();
        })
        .await;
}

#[tokio::test]
async fn a_worker_whose_files_do_not_answer_holds_up_nobody_else_and_is_told() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let root = stage.root.path();
            let Some(dead) = DeadFiles::below(root) else { return };
            let limit = Duration::from_secs(1);
            let there = WorkerSpec { working_dir: dead.path.clone(), ..stage.server(&[]) };
            let one = stage.start(WorkerSpec { start_timeout: limit, ..there });
            let another = Arc::new(App { name: "other".parse().expect("valid"), ..(*app()).clone() });
            let roster = Roster::new();
            let tools = Tools {
                launcher: stage.launcher.clone(),
                rng: fastrand::Rng::with_seed(7),
                journal: Rc::default(),
                available: usage::available,
            };
            let other =
                supervise(another.clone(), &stage.server(&[]), Arc::clone(&roster), tools, &stage.scope);
            let serves = roster.wait_for_change(|slots| slots.first().cloned());
            tokio::time::timeout(PATIENCE, serves).await.expect("the other app starts");

            let what = format!("the working directory {}", dead.path.display());
            let worker = || one.status().workers.first().cloned();
            let waits = format!("not started yet: {what} does not answer");
            let is_told = || worker().is_some_and(|worker| worker.trouble.as_ref() == Some(&waits));
            eventually("it is told", is_told).await;
            let failed = || worker().and_then(|worker| worker.past.last_exit).unwrap_or_default();
            eventually("it is given up", || !failed().is_empty()).await;
            assert!(failed().starts_with(&format!("{what} has not answered for 1 s: ")), "{}", failed());
            eventually("it is tried again", is_told).await;
            one.stop().await;

            let program = dead.path.join("server").display().to_string();
            let moved = WorkerSpec { start_timeout: limit, ..spec(root, vec![program.clone()]) };
            let error = other.roll(another, moved).await.expect_err("nothing answers");
            assert!(
                error.reason.starts_with(&format!("the program `{program}` has not answered")),
                "{error:?}"
            );
            assert!(other.serves());
            other.stop().await;
            drop(dead);
            stage.leaves_nothing();
        })
        .await;
}
