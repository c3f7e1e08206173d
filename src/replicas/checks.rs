//! The checks of all servers, which requests begin and none waits for.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use futures_util::future::{join, join_all};
use tokio::runtime::Handle;

use super::{Replicas, check::Answer, former::Former, node::Node};
use crate::position::Reached;

/// The checks of all servers.
#[derive(Default)]
pub(super) struct Checks {
    /// When the last ones began.
    began: Option<Instant>,
    is_running: bool,
    /// The log has told of a primary from before a fail-over.
    is_former_told: bool,
    /// The replicas that have followed the last promotion on MariaDB, by the
    /// numbers of their servers; none if the servers have told of no promotion,
    /// or of the contrary since.
    pub(super) followers: BTreeSet<u32>,
    /// The number of the server that the primary's name has led to last, on
    /// MariaDB.
    primary_server: Option<u32>,
    /// What the primary had, then and before.
    primary: [Option<(Instant, Reached)>; 2],
}

impl Replicas {
    /// Asks all servers, unless that was done lately.
    pub(super) fn check_if_due(&self) {
        // Without a runtime there is no session either (`Kind::NoRuntime`).
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        {
            let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
            let is_fresh = checks
                .began
                .is_some_and(|began| began.elapsed() < self.check_every);
            // Not a second one beside a check that takes long: it would only
            // add to the load of a server that is slow.
            if is_fresh || checks.is_running {
                return;
            }
            checks.began = Some(Instant::now());
            checks.is_running = true;
        }
        let this = self.clone();
        // In a task: no request waits for it (G17), and one that is dropped
        // does not take it along.
        runtime.spawn(async move { this.check().await });
    }

    async fn check(self) {
        // However it ends: a panic is not to be the last check.
        let _ended = Ended(self.checks.clone());
        // From before the questions: while an answer comes, it gets older.
        let began = Instant::now();
        let ask = async |node: &Arc<Node>| node.note(began, node.ask(self.acquire_timeout).await);
        // All at once, so that a server that does not answer keeps nothing from
        // the others' answers.
        let replicas = join_all(self.nodes.iter().map(ask));
        let (primary, _) = join(self.ask_primary(), replicas).await;
        self.primary.note(began, primary);
        // Before the replicas are judged: a primary from before a fail-over
        // must serve nothing more from here on.
        let former = self.former();
        self.tell_of(former);
        let is_galera = |answer: Answer| matches!(answer.reached, Reached::Galera(_));
        if let Some(is_galera) = self.primary.answer().map(is_galera) {
            // For COMMIT, which is alone in its text on such a node (H36).
            self.primary().inner().cluster.note_galera(is_galera);
        }
        // A server from before a fail-over does not know what a replica misses.
        let primary = self.primary.answer().filter(|_| former.is_none());
        let primary = self.note_primary(began, primary);
        for node in &self.nodes {
            if let Some(at) = node
                .answer()
                .and_then(|answer| current(&answer, &primary, began))
            {
                node.note_current(at);
            }
            node.tell(self.max_lag, self.max_age());
        }
    }

    /// Asks the server that the primary's name leads to now, and has the pool's
    /// connections follow.
    async fn ask_primary(&self) -> Result<Answer, String> {
        let mut answer = self.primary.ask(self.acquire_timeout).await;
        if answer.as_ref().is_ok_and(|answer| !answer.takes_writes) {
            // MariaDB is demoted by a setting, which leaves this connection
            // open as well.
            self.primary.monitor.reconnect().await;
            answer = self.primary.ask(self.acquire_timeout).await;
        }
        if let Ok(answer) = &answer
            && let Some(history) = &answer.history
        {
            let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
            let before = checks.primary_server.replace(history.server);
            drop(checks);
            // By the server and not by its role: the connection that has seen
            // the old one may have been lost. Without a write, nothing else
            // would show a service that it reads on what is a replica now
            // (G19).
            if before.is_some_and(|before| before != history.server) {
                self.primary().inner().evict();
            }
        }
        answer
    }

    /// Tells of a primary that is one from before a fail-over.
    fn tell_of(&self, former: Option<Former>) {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        // Once for each time, or there would be a line each second until it is
        // mended.
        let is_news = former.is_some() && !checks.is_former_told;
        checks.is_former_told = former.is_some();
        drop(checks);
        if let Some(former) = former.filter(|_| is_news) {
            former.tell();
        }
    }

    /// Returns what the primary had at its last checks, the newest first;
    /// `None` if it does not say.
    fn note_primary(
        &self,
        began: Instant,
        answer: Option<Answer>,
    ) -> Option<[(Instant, Reached); 2]> {
        // A server in recovery, or without a quorum, does not have what another
        // primary goes on to commit.
        let answer = answer.filter(|answer| answer.takes_writes)?;
        let now = (began, answer.reached);
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let last = checks.primary[0].replace(now.clone());
        // The one before as well: under steady writes a replica never has the
        // newest position when it is asked, and would seem to fall behind for
        // ever.
        checks.primary[1] = last.clone();
        Some([now.clone(), last.unwrap_or(now)])
    }
}

/// Returns the last time of which it is known that a server has what the
/// primary had then.
fn current(
    node: &Answer,
    primary: &Option<[(Instant, Reached); 2]>,
    began: Instant,
) -> Option<Instant> {
    let Some(primary) = primary else {
        // Without the primary nothing is written, and nobody knows what is
        // missing.
        return Some(began);
    };
    primary
        .iter()
        .find(|(_, had)| node.reached.covers(had))
        .map(|(at, _)| *at)
}

/// Lets the next checks begin.
struct Ended(Arc<Mutex<Checks>>);

impl Drop for Ended {
    fn drop(&mut self) {
        let mut checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        checks.is_running = false;
    }
}
