//! [`Hooks`]: the futures that a session runs after its transaction.

use std::{collections::VecDeque, future::Future, mem};

use futures_util::future::FutureExt;

use crate::pool::Hook;

/// Hooks in the order in which they were registered; nearly no session has
/// some.
#[derive(Default)]
// Boxed, so that a session without hooks carries one pointer.
pub(super) struct Hooks(Option<Box<Lists>>);

#[derive(Default)]
struct Lists {
    waiting: Vec<Waiting>,
    /// They belong to a COMMIT that is under way. A hook that is registered
    /// meanwhile belongs to the next transaction.
    // A list of their own: while COMMIT is on its way, other statements of the
    // request may register more.
    sealed: Vec<Waiting>,
    /// Their time has come; the connection may not be back yet.
    due: Vec<Hook>,
    /// They will not run. What they have captured must not be dropped under the
    /// session's lock.
    discarded: Vec<Hook>,
    /// Run one after the other by a task.
    // Not spawned one by one: hooks run in the order of their registration,
    // also those of two transactions.
    queue: VecDeque<Hook>,
    has_task: bool,
}

struct Waiting {
    /// The number of transactions that were open at the registration, the
    /// hook's own included.
    depth: usize,
    after: After,
    hook: Hook,
}

/// The event that a hook waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Commit,
    Rollback,
}

impl Hooks {
    pub(super) fn register(
        &mut self,
        depth: usize,
        after: After,
        hook: impl Future<Output = ()> + Send + 'static,
    ) {
        let lists = self.0.get_or_insert_default();
        let hook = hook.boxed();
        match (depth, after) {
            // Autocommit: the statements before it are stored already.
            (0, After::Commit) => lists.due.push(hook),
            // Autocommit: there is nothing that could be rolled back.
            (0, After::Rollback) => lists.discarded.push(hook),
            _ => lists.waiting.push(Waiting { depth, after, hook }),
        }
    }

    /// Returns whether there are some whose transaction has not ended.
    pub(super) fn is_any_waiting(&self) -> bool {
        self.is_any(|lists| !lists.waiting.is_empty())
    }

    /// Returns whether there are some to be run.
    pub(super) fn is_any_due(&self) -> bool {
        self.is_any(|lists| !lists.due.is_empty())
    }

    /// The COMMIT of the outermost transaction is about to be sent.
    pub(super) fn seal(&mut self) {
        if let Some(lists) = &mut self.0 {
            lists.seal();
        }
    }

    /// The innermost of `depth` transactions was committed. The hooks of a
    /// savepoint now wait for the transaction around it.
    pub(super) fn committed(&mut self, depth: usize) {
        let Some(lists) = &mut self.0 else { return };
        match depth {
            0 => {}
            // Sealed when COMMIT was sent: what was registered since waits for
            // the next one.
            1 => lists.fire(After::Commit),
            _ => {
                // Its work belongs to the transaction around it from here on,
                // and so do its hooks.
                for waiting in &mut lists.waiting {
                    waiting.depth = waiting.depth.min(depth - 1);
                }
            }
        }
    }

    /// A sealed COMMIT has failed.
    pub(super) fn not_committed(&mut self) {
        if let Some(lists) = &mut self.0 {
            lists.fire(After::Rollback);
        }
    }

    /// The transactions beyond `depth` were rolled back.
    pub(super) fn rolled_back_to(&mut self, depth: usize) {
        let Some(lists) = &mut self.0 else { return };
        if depth == 0 {
            // Those that are not sealed yet end as well, and only sealed ones
            // fire.
            lists.seal();
            lists.fire(After::Rollback);
        } else {
            // A savepoint's `after_rollback` hooks do not run either: it is the
            // session's whole transaction that they wait for. Shown by
            // `the_hooks_of_a_nested_transaction_are_dropped_with_it`.
            let gone = lists
                .waiting
                .extract_if(.., |waiting| waiting.depth > depth);
            lists.discarded.extend(gone.map(|waiting| waiting.hook));
        }
    }

    /// Returns whether there are some that will not run.
    pub(super) fn is_any_discarded(&self) -> bool {
        self.is_any(|lists| !lists.discarded.is_empty())
    }

    /// Takes those that will not run, to be dropped where nothing is locked.
    pub(super) fn take_discarded(&mut self) -> Vec<Hook> {
        self.take(|lists| &mut lists.discarded)
    }

    /// Takes those whose time has come.
    pub(super) fn take_due(&mut self) -> Vec<Hook> {
        self.take(|lists| &mut lists.due)
    }

    /// Queues hooks to be run; returns whether a task has to be started for
    /// them.
    pub(super) fn enqueue(&mut self, due: Vec<Hook>) -> bool {
        let lists = self.0.get_or_insert_default();
        lists.queue.extend(due);
        // Said under the session's lock, as in `next`: two tasks would run
        // hooks side by side, in any order.
        !mem::replace(&mut lists.has_task, true)
    }

    /// Returns the next hook to be run; the task ends if there is none.
    pub(super) fn next(&mut self) -> Option<Hook> {
        let lists = self.0.as_mut()?;
        // Said under the same lock: hooks that come later find no task, and
        // start another one.
        let next = lists.queue.pop_front();
        lists.has_task = next.is_some();
        next
    }

    /// It stays unknown whether the sealed COMMIT took effect.
    pub(super) fn forget(&mut self) {
        if let Some(lists) = &mut self.0 {
            // Neither kind may run: each would act on an end that is not known.
            lists
                .discarded
                .extend(lists.sealed.drain(..).map(|waiting| waiting.hook));
        }
    }

    fn is_any(&self, has_some: impl FnOnce(&Lists) -> bool) -> bool {
        self.0.as_deref().is_some_and(has_some)
    }

    fn take(&mut self, list: impl FnOnce(&mut Lists) -> &mut Vec<Hook>) -> Vec<Hook> {
        let lists = self.0.as_deref_mut();
        lists.map(list).map(mem::take).unwrap_or_default()
    }
}

impl Lists {
    fn seal(&mut self) {
        self.sealed.append(&mut self.waiting);
    }

    fn fire(&mut self, event: After) {
        for Waiting { after, hook, .. } in self.sealed.drain(..) {
            let into = if after == event {
                &mut self.due
            } else {
                &mut self.discarded
            };
            into.push(hook);
        }
    }
}
