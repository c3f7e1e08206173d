//! [`Former`]: a primary from before a fail-over, which still takes writes.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use super::{Replicas, check::Answer, node::Node};
use crate::{
    connection::{History, Promotion},
    position::{Gtid, Reached},
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
    /// Notes the cluster's last promotion. Returns by what it is known that the
    /// primary is one from before.
    pub(super) fn former(&self) -> Option<Former> {
        self.by_timeline().or_else(|| self.by_history())
    }

    fn by_timeline(&self) -> Option<Former> {
        let timeline_of = |node: &Arc<Node>| node.answer()?.reached.position()?.timeline();
        let seen = self.servers().filter_map(timeline_of).max().unwrap_or(0);
        if seen == 0 {
            return None;
        }
        let latest = self.primary().inner().cluster.note_latest_timeline(seen);
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
        let cluster = &self.primary().inner().cluster;
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        match (last_promotion(&answers), cluster.promotion()) {
            (Some((last, followers)), before) => {
                if before.is_none_or(|before| before.server != last.server) {
                    checks.followers.clear();
                }
                checks.followers.extend(followers);
                cluster.note_promotion(Some(last));
            }
            // Not by servers that have told of no promotion: another `Replicas`
            // over this pool may have noted one.
            (None, Some(promotion)) if !checks.followers.is_empty() => {
                if is_taken_back(&promotion, &checks.followers, &answers) {
                    checks.followers.clear();
                    cluster.note_promotion(None);
                }
            }
            (None, _) => {}
        }
        drop(checks);
        let promotion = cluster.promotion()?;
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

/// Returns the promotion that no other one has superseded, of those that a
/// replica has followed, and its followers.
fn last_promotion(answers: &[Option<Answer>]) -> Option<(Promotion, Vec<u32>)> {
    let histories = || {
        answers
            .iter()
            .flatten()
            .filter_map(|it| it.history.as_ref())
    };
    let promotion = |history| {
        let promotion = |(_, gtids): (u32, &[Gtid])| Promotion::of(history, gtids);
        Some((history, replicas(answers).find_map(promotion)?))
    };
    let promotions: Vec<(&History, Promotion)> = histories().filter_map(promotion).collect();
    let is_superseded = |history| {
        let mut all = promotions.iter();
        all.any(|(_, other)| other.supersedes(history))
    };
    let mut last = promotions.iter();
    let (_, last) = last.find(|(history, _)| !is_superseded(history))?;
    let followers = replicas(answers).filter(|(_, gtids)| last.is_followed_by(gtids));
    Some((last.clone(), followers.map(|(server, _)| server).collect()))
}

/// Returns whether a promotion that none of the servers tells of any more has
/// been taken back, as by an operator who leaves the former primary in its
/// place. That its server or a follower does not answer says nothing: the
/// network may have taken both from here.
fn is_taken_back(
    promotion: &Promotion,
    followers: &BTreeSet<u32>,
    answers: &[Option<Answer>],
) -> bool {
    let mut histories = answers
        .iter()
        .flatten()
        .filter_map(|it| it.history.as_ref());
    let is_denied = histories.any(|history| promotion.is_denied_by(history));
    let is_followed = replicas(answers).any(|(_, gtids)| promotion.is_followed_by(gtids));
    // Not by any other one: it may follow a server that was promoted after that
    // one, and is not in the set.
    let primary = answers
        .first()
        .and_then(|primary| primary.as_ref()?.history.as_ref());
    let is_back = |(server, gtids): (u32, &[Gtid])| {
        followers.contains(&server) && primary.is_some_and(|it| promotion.was_left_for(it, gtids))
    };
    is_denied
        || answers.iter().all(Option::is_some)
        || !is_followed && replicas(answers).any(is_back)
}

/// The replicas that answer: the number of each one's server, and the last
/// transaction of each domain that it has replicated.
fn replicas(answers: &[Option<Answer>]) -> impl Iterator<Item = (u32, &[Gtid])> {
    let answers = answers.iter().flatten().filter(|answer| answer.is_replica);
    answers.filter_map(|answer| match &answer.reached {
        Reached::Gtids(gtids) => Some((answer.history.as_ref()?.server, &gtids[..])),
        _ => None,
    })
}
