//! Statements whose answers were lost: the network has dropped a connection
//! while a statement ran on it, and nothing on this side tells that from a slow
//! statement. The server, asked beside the pool, can.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use super::{
    cancel::{Activity, CancelQueue, Subject},
    holder::{Doubt, Holder},
    inner::PoolInner,
    log::log_session,
};
use crate::connection::CancelHandle;

/// The server has to say this often that it does nothing, because it may have
/// ended in this moment; the answer has this long to begin to arrive in
/// between.
const TIMES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// The server may take this long to say it: long enough to find that the
/// connection it is asked by is lost as well.
const BOUND: Duration = Duration::from_secs(15);

/// A first statement of a connection that has rested is asked about this soon:
/// a second late, because MySQL counts the time of statements in seconds. If
/// the server cannot say so often in a row, the connection is taken for lost.
const FORGOTTEN: Duration = Duration::from_millis(1200);
const UNKNOWN: u32 = 3;

/// How long a connection may have been without use before its session took it.
const AWAY: Duration = Duration::from_secs(60);

/// A session, and what runs for it.
pub(super) struct Suspect {
    holder: Arc<dyn Holder>,
    doubt: Doubt,
    /// The number of times it had been woken when it was suspected. A slow
    /// network that is still bringing the answer wakes it with each part.
    wakes: u64,
}

impl Suspect {
    pub(super) fn of(holder: Arc<dyn Holder>) -> Option<Self> {
        let doubt = holder
            .doubtful()
            // While the server still receives a large statement, it says that
            // it is idle, and would be believed
            // (`a_statement_that_is_still_being_sent_is_not_taken_for_lost`).
            .filter(|doubt| !doubt.handle.may_be_sending())?;
        // The number as it is now: whatever arrives from here on changes it.
        let wakes = doubt.handle.wakes();
        Some(Self {
            holder,
            doubt,
            wakes,
        })
    }

    /// Returns whether the same call was running the last time this was asked.
    pub(super) fn ran_before(&self) -> bool {
        self.doubt.handle.was_at(self.doubt.turn)
    }

    /// Returns whether it still runs, and nothing has arrived for it since it
    /// was suspected.
    fn is_silent(&self) -> bool {
        let is_same = self
            .holder
            .doubtful()
            .is_some_and(|now| now.turn == self.doubt.turn);
        is_same && self.wakes == self.doubt.handle.wakes()
    }

    /// Ends the statement with an error, and closes its connection.
    fn lose(self) {
        // Before it ends, which takes its text along.
        let statement = self.holder.last_statement();
        // Not twice: a statement may be asked about for more than one reason at
        // a time.
        if self.doubt.handle.lose(self.doubt.turn) {
            log_session!(
                warn,
                self.holder.label(),
                statement,
                "the server is no longer running this statement but its result never arrived: connection lost, closed",
            );
        }
        self.holder.look_at_call();
    }
}

/// Has the server asked about the `suspects`, whose connections have been in
/// use since `oldest`.
///
/// About each by itself where its process is known. Counting all would take a
/// statement for lost that runs on another server than the one that the name
/// leads to by now, if another process of the service has connections there.
pub(super) fn look_for(cancels: &Arc<CancelQueue>, suspects: Vec<Suspect>, oldest: Duration) {
    let route = cancels.route();
    let is_known = |suspect: &Suspect| suspect.doubt.handle.backend_id(route).is_some();
    let (known, unknown): (Vec<_>, Vec<_>) = suspects.into_iter().partition(is_known);
    for suspect in known {
        tokio::spawn(look_for_one(cancels.clone(), suspect));
    }
    if !unknown.is_empty() {
        tokio::spawn(look_for_all(cancels.clone(), unknown, oldest));
    }
}

/// Ends what runs for `suspect` where the server is not at it any more.
pub(super) async fn look_for_one(cancels: Arc<CancelQueue>, suspect: Suspect) {
    let handle = suspect.doubt.handle.clone();
    let subject = || handle.backend_id(cancels.route()).map(Subject::One);
    examine(&cancels, vec![suspect], subject).await;
}

/// Ends what runs for the `suspects` if the server does nothing at all for this
/// client. This needs no knowledge of the server processes behind their
/// connections.
///
/// The connections have been in use since `oldest`.
async fn look_for_all(cancels: Arc<CancelQueue>, suspects: Vec<Suspect>, oldest: Duration) {
    let active_within = oldest.saturating_add(AWAY);
    examine(&cancels, suspects, || {
        Some(cancels.all_connections(active_within))
    })
    .await;
}

/// Waits until it turns out that the network has forgotten a connection, and
/// tells the call that runs on it: that only reads and may be run again, so
/// that the server need not be as certain as elsewhere.
pub(super) async fn lose_if_forgotten(pool: &PoolInner, handle: &CancelHandle) {
    let cancels = &pool.cancels;
    let (mut unknown, mut pause) = (0, PAUSE);
    // Most reads are over by now: the timer is all that this has cost them.
    sleep(FORGOTTEN).await;
    loop {
        let (turn, wakes) = (handle.turn(), handle.wakes());
        let all = || cancels.all_connections(pool.registry.oldest().saturating_add(AWAY));
        let known = handle.backend_id(cancels.route()).map(Subject::One);
        let answer = ask(cancels, known.unwrap_or_else(all)).await;
        unknown = if answer.is_none() { unknown + 1 } else { 0 };
        // A server that cannot say, as behind a proxy, would leave the read
        // waiting for TCP to give up, which takes a quarter of an hour; run
        // again, the read does no harm.
        let is_idle = answer.is_some_and(|answer| !answer.is_busy) || unknown == UNKNOWN;
        if is_idle && wakes == handle.wakes() && !handle.may_be_sending() {
            tracing::info!(target: "tower_sea_orm::pool", "closed an idle connection that did not answer");
            // The call that was seen idle and no later one: it may have ended
            // since.
            handle.lose(turn);
            return;
        }
        // Longer each time: it is at work, and each question may take a log-in.
        sleep(pause).await;
        pause = pause.saturating_mul(2);
    }
}

async fn examine(
    cancels: &Arc<CancelQueue>,
    mut suspects: Vec<Suspect>,
    subject: impl Fn() -> Option<Subject>,
) {
    let mut asked = None;
    for round in 1..=TIMES {
        // Anew each time: the pool may have another number of connections by
        // now.
        let Some(subject) = subject() else { return };
        let Some(answer) = ask(cancels, subject).await.filter(|answer| !answer.is_busy) else {
            return;
        };
        // Behind a name that leads to several servers, another one knows
        // nothing of these statements. Shown by
        // `statements_on_another_server_of_the_name_are_left_alone`.
        if *asked.get_or_insert_with(|| answer.server.clone()) != answer.server {
            return;
        }
        if round < TIMES {
            // An answer that has arrived is read, even if the statement's own
            // future is not polled.
            suspects
                .iter()
                .for_each(|suspect| suspect.holder.clone().look_at_call());
            sleep(PAUSE).await;
        }
        // After the pause, and after the last answer: an answer to one of them
        // may be what the server has ended with.
        suspects.retain(Suspect::is_silent);
        if suspects.is_empty() {
            return;
        }
    }
    suspects.into_iter().for_each(Suspect::lose);
}

/// Asks the server whether it is at work for `subject`; `None` if that cannot
/// be told.
async fn ask(cancels: &Arc<CancelQueue>, subject: Subject) -> Option<Activity> {
    let runtime = Handle::try_current().ok()?;
    let answer = cancels.ask(subject, &runtime);
    timeout(BOUND, answer).await.ok()?.ok()?
}
