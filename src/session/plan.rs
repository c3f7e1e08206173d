//! [`Plan`]: the rules and the purpose that a session begins with, and [`Origin`]: what it belongs to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32},
    },
    time::{Duration, Instant},
};

use http::response;
use sea_orm::{Statement, TransactionOptions};

use super::replication::Replication;
use crate::{
    connection::{Begin, BeginSetUp, Demand},
    pool::{Holder, Label, PoolMode, time_until},
};

/// Decides whether a response's head (or, at the end of a held body, the head
/// with the trailers) commits.
pub(crate) type CommitWhen = Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>;

/// The rules and the purpose that a session begins with.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) rules: Rules,
    pub(crate) opened_for: OpenedFor,
}

/// The purpose of a session.
#[derive(Clone)]
pub(crate) enum OpenedFor {
    /// A request, which the log calls so.
    Request(Label),
    /// Work in a transaction outside any request, for which all holds that is
    /// said of a request.
    Job,
    /// User code, which owns the guard and may move it to another task.
    User,
    /// A plain handle: there is no guard, and only the handles end it.
    Plain,
}

/// The rules of a session's transactions, from its layers.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    pub(crate) mode: Mode,
    /// `None`: the default rule.
    pub(crate) commit_when: Option<CommitWhen>,
    /// What each BEGIN of the session's own transaction brings along; the
    /// session is transactional for good.
    pub(crate) on_begin: Option<Arc<BeginSetUp>>,
    /// Run on each connection before its first statement.
    pub(crate) on_acquire: Option<Arc<[Statement]>>,
    /// `None`: the pool's.
    pub(crate) pool_mode: Option<PoolMode>,
    /// When the client stops waiting.
    pub(crate) deadline: Option<Instant>,
    /// `None`: its database has no replicas.
    pub(crate) replication: Option<Arc<Replication>>,
    /// A response to this request never has a body.
    pub(crate) is_head: bool,
    /// Trailers reach the client: over HTTP/1.1, a server leaves them out.
    pub(crate) has_trailers: bool,
}

/// The changes to these rules that a layer inside the session's own asks for.
#[derive(Clone, Default)]
pub(crate) struct Order {
    /// `None`: as it is, or a transaction where `on_begin` needs one.
    pub(crate) mode: Option<Mode>,
    /// `None`: as it is.
    pub(crate) commit_when: Option<CommitWhen>,
    /// `None`: as it is.
    pub(crate) pool_mode: Option<PoolMode>,
    /// They come after those that the session knows.
    pub(crate) on_begin: Option<BeginSetUp>,
    /// They come after those that the session knows.
    pub(crate) on_acquire: Option<Vec<Statement>>,
}

/// The surroundings of the session's own statements.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Each commits by itself.
    #[default]
    Autocommit,
    /// The session's own transaction, which begins with the first one.
    Transaction(TransactionOptions),
}

impl Rules {
    /// Returns for how long the request may wait for a connection, if any
    /// request may for the time `all`.
    pub(super) fn patience(&self, all: Duration) -> Duration {
        let replication = self.replication.as_ref();
        // On a replica a part of it: the primary, which is asked if the replica
        // has none, has all of the time again.
        let all = replication.map_or(all, |replication| replication.patience(all));
        time_until(self.deadline, all)
    }

    /// Returns the options of the transaction that the first statement begins,
    /// with nothing else before it.
    pub(super) fn begins(&self) -> Option<TransactionOptions> {
        let set_up = self.on_begin.as_ref();
        // Settings travel in BEGIN's own text, which the COMMIT before does not
        // carry.
        let is_bare = set_up.is_none_or(|set_up| set_up.settings.is_empty());
        match self.mode {
            // Its BEGIN has to check a position, or its COMMIT to ask for one:
            // neither has a place in another session's COMMIT.
            _ if self.replication.is_some() => None,
            Mode::Transaction(options) if is_bare && self.on_acquire.is_none() => Some(options),
            _ => None,
        }
    }

    /// Returns the beginning of the session's own transaction, and what it
    /// brings along.
    pub(super) fn begin(&self, options: TransactionOptions) -> Begin {
        let set_up = self.on_begin.clone();
        let replication = self.replication.as_ref();
        let demand = replication.map(|replication| replication.demand(options));
        let set_up = match demand {
            None | Some(Demand::None) => set_up,
            // A copy, since the rules are the same for each transaction, and
            // what a transaction demands depends on its options.
            Some(demand) => {
                let mut set_up = set_up.map(Arc::unwrap_or_clone).unwrap_or_default();
                set_up.demand = demand;
                Some(Arc::new(set_up))
            }
        };
        Begin { options, set_up }
    }

    /// Puts a session that is in no transaction into one.
    pub(super) fn need_transaction(&mut self) {
        // A transaction with options that a layer has set keeps them.
        if self.mode == Mode::Autocommit {
            self.mode = Mode::Transaction(TransactionOptions::default());
        }
    }
}

impl Plan {
    /// Returns a plan with the default rules.
    pub(crate) fn new(opened_for: OpenedFor) -> Self {
        let rules = Rules::default();
        Self { rules, opened_for }
    }

    /// Returns the plan of a job, which is a transaction.
    pub(crate) fn transaction(options: TransactionOptions) -> Self {
        let mut plan = Self::new(OpenedFor::Job);
        plan.rules.mode = Mode::Transaction(options);
        plan
    }
}

/// The request or job that a session belongs to.
pub(super) struct Origin {
    opened_for: OpenedFor,
    /// The outermost session of the request in which it was opened.
    // By this a second session is known to be the same request's, which then
    // waits for itself (H11).
    pub(super) outer: Option<Arc<dyn Holder>>,
    /// Another session of the same request has committed something.
    // Atomic, these three, because the request's other sessions set them, which
    // must not lock this one.
    pub(super) has_committed_beside: AtomicBool,
    /// The number of the request's other sessions that have not ended.
    pub(super) open_beside: AtomicU32,
    /// The number of waits for a connection in its own request.
    pub(super) own_waits: AtomicU32,
    /// The number of connections that its own request holds.
    pub(super) own_holds: AtomicU32,
}

impl Origin {
    pub(super) fn new(opened_for: OpenedFor, outer: Option<Arc<dyn Holder>>) -> Self {
        Self {
            opened_for,
            outer,
            has_committed_beside: AtomicBool::new(false),
            open_beside: AtomicU32::new(0),
            own_waits: AtomicU32::new(0),
            own_holds: AtomicU32::new(0),
        }
    }

    /// Returns whether what is opened while its future is polled belongs to it.
    pub(super) fn is_outermost(&self) -> bool {
        // A user's session may be polled in any task: what that task opens is
        // not the session's.
        matches!(self.opened_for, OpenedFor::Request(_) | OpenedFor::Job)
    }

    /// Returns whether the session cannot outlive the future that it was opened
    /// for.
    pub(super) fn is_bound(&self) -> bool {
        !matches!(self.opened_for, OpenedFor::User)
    }

    /// Returns whether nothing but the session's handles ends it.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.opened_for, OpenedFor::Plain)
    }

    /// Returns whether a layer has opened it for a request.
    pub(super) fn is_request(&self) -> bool {
        matches!(self.opened_for, OpenedFor::Request(_))
    }

    pub(super) fn is_job(&self) -> bool {
        matches!(self.opened_for, OpenedFor::Job)
    }

    /// Returns whether it is a request's, or of one.
    pub(super) fn is_of_request(&self) -> bool {
        self.is_request() || self.label().is_some()
    }

    /// Returns what its request is called.
    pub(super) fn label(&self) -> Option<Label> {
        match &self.opened_for {
            OpenedFor::Request(label) => Some(label.clone()),
            _ => self.outer.as_ref()?.label(),
        }
    }

    /// Returns how many waits for a connection its request has.
    pub(super) fn waits(&self) -> &AtomicU32 {
        match &self.outer {
            // One count for the request, whichever of its sessions waits.
            Some(outer) => outer.waits(),
            None => &self.own_waits,
        }
    }
}
