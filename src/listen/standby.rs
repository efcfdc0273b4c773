//! Tasks that stand by: whoever has something to do that may have to wait gives it to one, and it is there for the next once that
//! is done. Nothing is made for it, and nothing that was begun has to be begun again for the task's own waker.

use std::cell::{OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use crate::scope::{Held, Scope};

/// Most that stand by: what clients ask for at once on a busy thread. A few hundred bytes each.
const MOST: usize = 256;

/// A thread's tasks that stand by. Clones are handles to the same.
pub struct Standby<W>(Rc<Tasks<W>>);

struct Tasks<W> {
    free: RefCell<Vec<Rc<Post<W>>>>,
    /// Nobody waits for them: those with work are held by its owner.
    scope: Scope,
}

/// What one task does.
struct Post<W> {
    work: RefCell<Option<(W, Held)>>,
    /// Its task's, from when it first stands by.
    waker: OnceCell<Waker>,
}

impl<W> Clone for Standby<W> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<W> Default for Standby<W> {
    fn default() -> Self {
        Self(Rc::new(Tasks { free: RefCell::default(), scope: Scope::new() }))
    }
}

impl<W: Future<Output = ()> + Unpin + 'static> Standby<W> {
    /// Begins `work` here and now. What is left of it is done by a task, for which `owner` waits as for one of its own. A panic
    /// ends that work alone.
    pub fn begin(&self, mut work: W, owner: &Scope) {
        let post = self.0.free.borrow_mut().pop();
        let waker = post.as_ref().and_then(|post| post.waker.get()).unwrap_or(Waker::noop());
        let begun =
            catch_unwind(AssertUnwindSafe(|| Pin::new(&mut work).poll(&mut Context::from_waker(waker))));
        match (begun, post) {
            (Ok(Poll::Pending), Some(post)) => *post.work.borrow_mut() = Some((work, owner.hold())),
            (Ok(Poll::Pending), None) => self.0.spawn((work, owner.hold())),
            (Ok(Poll::Ready(())) | Err(_), Some(post)) => self.0.free.borrow_mut().push(post),
            (Ok(Poll::Ready(())) | Err(_), None) => {}
        }
    }
}

impl<W: Future<Output = ()> + Unpin + 'static> Tasks<W> {
    fn spawn(self: &Rc<Self>, work: (W, Held)) {
        let post = Rc::new(Post { work: RefCell::new(Some(work)), waker: OnceCell::new() });
        let tasks = Rc::downgrade(self);
        drop(self.scope.spawn(poll_fn(move |cx| post.poll(cx, &tasks))));
    }
}

impl<W: Future<Output = ()> + Unpin> Post<W> {
    /// Ready where nobody needs the task any more.
    fn poll(self: &Rc<Self>, cx: &mut Context<'_>, tasks: &Weak<Tasks<W>>) -> Poll<()> {
        let mut room = self.work.borrow_mut();
        // What it had last may wake it.
        let Some((work, _)) = &mut *room else { return Poll::Pending };
        ready!(Pin::new(work).poll(cx));
        *room = None;
        let Some(tasks) = tasks.upgrade() else { return Poll::Ready(()) };
        let mut free = tasks.free.borrow_mut();
        if free.len() == MOST {
            return Poll::Ready(());
        }
        self.waker.get_or_init(|| cx.waker().clone());
        free.push(Rc::clone(self));
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::sync::Notify;
    use tokio::task::LocalSet;

    use super::*;

    type Work = Pin<Box<dyn Future<Output = ()>>>;

    #[tokio::test]
    async fn a_task_does_one_thing_after_the_other_and_its_owner_waits_for_each() {
        let test = async {
            let (standby, owner) = (Standby::<Work>::default(), Scope::new());
            let (go, done) = (Rc::new(Notify::new()), Rc::new(Cell::new(0)));
            let work = |times: usize| -> Work {
                let (go, done) = (Rc::clone(&go), Rc::clone(&done));
                Box::pin(async move {
                    for _ in 0..times {
                        go.notified().await;
                    }
                    done.set(done.get() + 1);
                })
            };
            standby.begin(work(0), &owner);
            assert_eq!((done.get(), owner.len(), standby.0.scope.len()), (1, 0, 0), "it never had to wait");
            for round in 2..5 {
                standby.begin(work(2), &owner);
                assert_eq!(owner.len(), 1);
                go.notify_one();
                tokio::task::yield_now().await;
                go.notify_one();
                while done.get() < round {
                    tokio::task::yield_now().await;
                }
                assert_eq!((owner.len(), standby.0.scope.len()), (0, 1), "one task stands by");
            }
            standby.begin(Box::pin(async { panic!("at once") }), &owner);
            assert_eq!(standby.0.free.borrow().len(), 1);
            standby.begin(
                Box::pin(async {
                    tokio::task::yield_now().await;
                    panic!("later")
                }),
                &owner,
            );
            assert!(owner.close(Duration::from_secs(10)).await);
            assert_eq!(standby.0.free.borrow().len(), 0, "its task is gone with it");
            standby.begin(work(1), &Scope::new());
            drop(standby);
            go.notify_one();
            while done.get() < 5 {
                tokio::task::yield_now().await;
            }
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn as_many_stand_by_as_are_of_use() {
        let test = async {
            let (standby, owner) = (Standby::<Work>::default(), Scope::new());
            for _ in 0..2 * MOST {
                standby.begin(Box::pin(tokio::task::yield_now()), &owner);
            }
            assert_eq!(owner.len(), 2 * MOST);
            assert!(owner.close(Duration::from_secs(10)).await);
            assert_eq!((standby.0.free.borrow().len(), standby.0.scope.len()), (MOST, MOST));
        };
        LocalSet::new().run_until(test).await;
    }
}
