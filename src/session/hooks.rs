//! [`Hooks`]: what a session was asked to do after its transaction.

use std::future::Future;

use futures_util::future::{BoxFuture, FutureExt};
use tokio::runtime::Handle;

use crate::SessionPool;

/// Work for after the transaction.
pub(crate) type Hook = BoxFuture<'static, ()>;

/// Hooks in the order in which they were registered.
#[derive(Default)]
pub(super) struct Hooks {
    waiting: Vec<Waiting>,
    /// Their time has come; the connection is not back yet.
    due: Vec<Hook>,
}

struct Waiting {
    /// How many transactions were open around the registration, its own included.
    depth: usize,
    after: After,
    hook: Hook,
}

/// What a hook waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Commit,
    Rollback,
}

impl Hooks {
    pub(super) fn register(&mut self, depth: usize, after: After, hook: impl Future<Output = ()> + Send + 'static) {
        let hook = hook.boxed();
        match (depth, after) {
            (0, After::Commit) => self.due.push(hook),
            // What commits by itself is never rolled back.
            (0, After::Rollback) => {}
            _ => self.waiting.push(Waiting { depth, after, hook }),
        }
    }

    /// The innermost transaction, of `depth`, was committed; a savepoint's hooks go to what is around.
    pub(super) fn committed(&mut self, depth: usize) {
        match depth {
            0 => {}
            1 => self.fire(After::Commit),
            _ => {
                for waiting in &mut self.waiting {
                    waiting.depth = waiting.depth.min(depth - 1);
                }
            }
        }
    }

    /// What was open beyond `depth` was rolled back.
    pub(super) fn rolled_back_to(&mut self, depth: usize) {
        if depth == 0 {
            self.fire(After::Rollback);
        } else {
            self.waiting.retain(|waiting| waiting.depth <= depth);
        }
    }

    /// Nobody knows whether the transaction was committed.
    pub(super) fn forget(&mut self) {
        self.waiting.clear();
    }

    fn fire(&mut self, event: After) {
        let fired = std::mem::take(&mut self.waiting).into_iter().filter(|waiting| waiting.after == event);
        self.due.extend(fired.map(|waiting| waiting.hook));
    }

    pub(super) fn take_due(&mut self) -> Due {
        Due(std::mem::take(&mut self.due))
    }
}

/// Hooks to be run, once the connection is back.
#[must_use]
pub(super) struct Due(Vec<Hook>);

impl Due {
    /// Runs them one after the other in a task; the pool of a test keeps them instead.
    pub(super) fn run(self, runtime: Option<&Handle>, pool: &SessionPool) {
        if self.0.is_empty() {
            return;
        }
        let Some(hooks) = pool.keep_hooks(self.0) else { return };
        let Some(runtime) = runtime.cloned().or_else(|| Handle::try_current().ok()) else {
            tracing::error!(target: "tower_sea_orm::session", "hooks are lost: there is no tokio runtime here");
            return;
        };
        runtime.spawn(async move {
            for hook in hooks {
                // In a task of its own, so that its panic is its own.
                if tokio::spawn(hook).await.is_err_and(|error| error.is_panic()) {
                    tracing::error!(target: "tower_sea_orm::session", "a hook panicked; those after it run nevertheless");
                }
            }
        });
    }
}
