//! [`Former`]: a primary from before a fail-over, which still takes writes.

use std::sync::{Arc, PoisonError};

use super::{Replicas, check::Answer, node::Node};
use crate::{
    connection::{History, Promotion},
    position::Reached,
};

/// By what a primary is known to be one from before a fail-over.
#[derive(Clone, Copy)]
pub(super) enum Former {
    /// PostgreSQL: another server shows a later timeline.
    Timeline { timeline: u32, latest: u32 },
    /// MariaDB: another server was promoted.
    Server { server: u32, promoted: u32 },
}

impl Former {
    pub(super) fn tell(self) {
        let (timeline, latest, server, promoted) = match self {
            Self::Timeline { timeline, latest } => (Some(timeline), Some(latest), None, None),
            Self::Server { server, promoted } => (None, None, Some(server), Some(promoted)),
        };
        tracing::error!(
            target: "tower_sea_orm::replicas", timeline, latest, server, promoted,
            "the primary's address leads to a server from before a fail-over: requests are refused there",
        );
    }
}

impl Replicas {
    /// Notes the cluster's last promotion. Returns by what it is known that the primary is one from before.
    pub(super) fn former(&self) -> Option<Former> {
        self.by_timeline().or_else(|| self.by_history())
    }

    fn by_timeline(&self) -> Option<Former> {
        let timeline_of = |node: &Arc<Node>| node.answer()?.reached.position()?.timeline();
        let seen = self.servers().filter_map(timeline_of).max().unwrap_or(0);
        if seen == 0 {
            return None;
        }
        let latest = self.primary().inner().note_latest_timeline(seen);
        // One in recovery refuses writes by itself.
        let writes = self
            .primary
            .answer()
            .is_some_and(|answer| answer.takes_writes);
        let former = timeline_of(&self.primary).filter(|timeline| writes && *timeline < latest);
        former.map(|timeline| Former::Timeline { timeline, latest })
    }

    fn by_history(&self) -> Option<Former> {
        let answers: Vec<_> = self.servers().map(|node| node.answer()).collect();
        let pool = self.primary().inner();
        let last = last_promotion(&answers);
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        // A server that does not answer takes nothing back. Nor do servers that have told of no promotion:
        // another `Replicas` over this pool may have noted one.
        let takes_back = checks.has_told && answers.iter().all(Option::is_some);
        if last.is_some() || takes_back {
            checks.has_told = last.is_some();
            pool.note_promotion(last);
        }
        drop(checks);
        let promotion = pool.promotion()?;
        let own = self.primary.answer()?.history?;
        promotion.supersedes(&own).then_some(Former::Server {
            server: own.server,
            promoted: promotion.server,
        })
    }

    fn servers(&self) -> impl Iterator<Item = &Arc<Node>> {
        std::iter::once(&self.primary).chain(&self.nodes)
    }
}

/// Returns the promotion that no other one has superseded, of those that a replica has followed.
fn last_promotion(answers: &[Option<Answer>]) -> Option<Promotion> {
    let answers = answers.iter().flatten();
    let replicas = answers.clone().filter(|answer| answer.is_replica);
    let replayed = replicas.filter_map(|replica| match &replica.reached {
        Reached::Gtids(gtids) => Some(gtids),
        _ => None,
    });
    let histories = answers.filter_map(|answer| answer.history.as_ref());
    let promotions: Vec<(&History, Promotion)> = histories
        .filter_map(|history| {
            let promotion = |gtids: &Vec<_>| Promotion::of(history, gtids);
            Some((history, replayed.clone().find_map(promotion)?))
        })
        .collect();
    let is_superseded = |history| {
        let mut all = promotions.iter();
        all.any(|(_, other)| other.supersedes(history))
    };
    let mut last = promotions.iter();
    let last = last.find(|(history, _)| !is_superseded(history))?;
    Some(last.1.clone())
}
