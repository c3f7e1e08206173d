//! Answers that were lost: the network has dropped a connection while a statement ran on it, and nothing on this side
//! tells that from a slow statement. The server, asked beside the pool, can.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use super::{Holder, SessionPool};
use crate::connection::Identity;

/// How often the server has to say that it does nothing, because it may have ended in this moment; and how long the
/// answer has to arrive in between.
const TIMES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// How long the server may take to say it: long enough to find that the connection it is asked by is lost as well.
const BOUND: Duration = Duration::from_secs(15);

impl SessionPool {
    /// Ends the statement that runs for `holder` where the server is not at it any more.
    pub(super) async fn look_for_loss(self, holder: Arc<dyn Holder>) {
        let Some(doubt) = holder.doubtful() else { return };
        for round in 1..=TIMES {
            let Some(identity) = doubt.victim.identity(self.route()) else { return };
            if self.serves(identity).await != Some(false) {
                return;
            }
            if round < TIMES {
                // What has arrived is read, even if the statement's own future is not polled.
                holder.clone().look_at_call();
                sleep(PAUSE).await;
            }
            if holder.doubtful().is_none_or(|now| now.turn != doubt.turn) {
                return;
            }
        }
        let label = holder.label();
        tracing::warn!(
            target: "tower_sea_orm::pool",
            method = label.as_ref().map(|label| label.method.as_str()),
            path = label.as_ref().map(|label| label.uri.path()),
            statement = holder.last_statement(),
            "the server has ended a statement whose answer has not arrived: its connection is lost and closed",
        );
        doubt.victim.lose(doubt.turn);
        holder.look_at_call();
    }

    /// Whether the server is at work for this connection; `None` if that cannot be told.
    async fn serves(&self, identity: Identity) -> Option<bool> {
        let runtime = Handle::try_current().ok()?;
        timeout(BOUND, self.ask(identity, &runtime)).await.ok()?.ok()?
    }
}
