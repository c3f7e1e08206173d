//! [`Promotion`]: how a former MariaDB primary that still takes writes is told from the server that was promoted.
//!
//! MariaDB has no timeline. What it has is a list of the last transaction that
//! each server has written, in the binary log of every server that keeps what
//! it replicates (<https://mariadb.com/kb/en/gtid/#gtid_binlog_state>). A
//! server was left behind if another one has its last reign's transactions and
//! wrote its own ones behind them, while it has replicated nothing since.

use std::cmp::Reverse;

use crate::position::{Gtid, gtids};

/// What a server has of each server's transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "replicas"), allow(dead_code))]
pub(crate) struct History {
    pub(crate) server: u32,
    /// It takes writes and replicates nothing, as a primary does.
    pub(crate) is_primary: bool,
    /// The last one of each domain and server; some are there twice.
    has: Vec<Gtid>,
}

/// The server that was promoted last, and what it had of the others when it
/// began to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Promotion {
    pub(crate) server: u32,
    before: Vec<Gtid>,
}

impl History {
    /// Reads it, as an expression. It needs no privilege. A replica whose
    /// threads are stopped does not count as replicating.
    pub(crate) const READ: &str = "CAST(CONCAT_WS(';', @@global.server_id, \
         COALESCE(CAST(@@global.read_only AS CHAR) IN ('0', 'OFF') AND (SELECT variable_value \
         FROM information_schema.global_status WHERE variable_name = 'SLAVES_RUNNING') = 0, 0), \
         @@global.gtid_binlog_state, @@global.gtid_slave_pos) AS CHAR)";

    /// Reads the answer to [`READ`](Self::READ); `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let server = parts.next()?.parse().ok()?;
        let is_primary = parts.next()? == "1";
        let mut has = gtids(parts.next()?).ok()?;
        has.extend(gtids(parts.next()?).ok()?);
        Some(Self {
            server,
            is_primary,
            has,
        })
    }

    /// Returns the last transaction of a domain that the server has written
    /// itself, or others have.
    fn last(&self, domain: u32, is_own: bool) -> Option<Gtid> {
        let of_domain = self.has.iter().filter(|gtid| gtid.domain == domain);
        let wanted = of_domain.filter(|gtid| (gtid.server == self.server) == is_own);
        wanted.max_by_key(|gtid| gtid.sequence).copied()
    }

    /// Returns what others wrote last in a domain, if the server has written
    /// behind that.
    fn continued(&self, domain: u32) -> Option<Gtid> {
        let (own, last) = (self.last(domain, true)?, self.last(domain, false)?);
        (last.sequence < own.sequence).then_some(last)
    }
}

#[cfg_attr(not(feature = "replicas"), allow(dead_code))]
impl Promotion {
    /// Returns what a primary's history shows of its promotion, if its own
    /// transactions are the last ones of a domain, behind others', and a
    /// replica has replicated them: `replayed` is the last one of each domain
    /// of one.
    pub(crate) fn of(history: &History, replayed: &[Gtid]) -> Option<Self> {
        if !history.is_primary {
            return None;
        }
        let followed = replayed.iter().filter(|gtid| gtid.server == history.server);
        let behind = |gtid: &Gtid| {
            let last = history.continued(gtid.domain);
            last.is_some_and(|last| last.sequence < gtid.sequence)
        };
        let domains = followed.filter(|gtid| behind(gtid)).map(|gtid| gtid.domain);
        let domains: Vec<u32> = domains.collect();
        let others = history
            .has
            .iter()
            .filter(|gtid| gtid.server != history.server && domains.contains(&gtid.domain));
        let mut before: Vec<Gtid> = others.copied().collect();
        // The later one of those that are there twice comes first.
        before.sort_unstable_by_key(|gtid| (gtid.domain, gtid.server, Reverse(gtid.sequence)));
        before.dedup_by_key(|gtid| (gtid.domain, gtid.server));
        (!before.is_empty()).then_some(Self {
            server: history.server,
            before,
        })
    }

    /// Returns whether a replica follows the promoted server: in one of its
    /// domains, what it has `replayed` last is that server's.
    pub(crate) fn is_followed_by(&self, replayed: &[Gtid]) -> bool {
        self.is_last(self.server, replayed)
    }

    /// Returns whether a replica follows the primary of this history instead.
    pub(crate) fn was_left_for(&self, primary: &History, replayed: &[Gtid]) -> bool {
        self.is_last(primary.server, replayed)
    }

    fn is_last(&self, server: u32, replayed: &[Gtid]) -> bool {
        let is_its = |gtid: &Gtid| gtid.server == server && self.has_domain(gtid.domain);
        replayed.iter().any(is_its)
    }

    fn has_domain(&self, domain: u32) -> bool {
        self.before.iter().any(|gtid| gtid.domain == domain)
    }

    /// Returns whether the history is that of the promoted server, which is no
    /// primary any more, or was set up anew.
    pub(crate) fn is_denied_by(&self, history: &History) -> bool {
        let mut domains = self.before.iter().map(|gtid| gtid.domain);
        let mut continues = || domains.any(|domain| history.continued(domain).is_some());
        history.server == self.server && !(history.is_primary && continues())
    }

    /// Returns whether a primary was left behind by the promotion: it wrote
    /// something that the promoted server has, and has replicated nothing
    /// since.
    pub(crate) fn supersedes(&self, history: &History) -> bool {
        let is_left = |had: &Gtid| {
            let own = history.last(had.domain, true);
            let others = history.last(had.domain, false);
            had.server == history.server
                && own.is_some_and(|own| own.sequence >= had.sequence)
                && others.is_none_or(|last| last.sequence < had.sequence)
        };
        history.is_primary && history.server != self.server && self.before.iter().any(is_left)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// Of a primary whose binary log has these, and which has replicated those.
    fn primary(server: u32, state: &str, replicated: &str) -> History {
        History::parse(&format!("{server};1;{state};{replicated}")).unwrap()
    }

    fn promotion(server: u32, state: &str, replicated: &str) -> Option<Promotion> {
        let history = primary(server, state, replicated);
        let last = history.last(0, true).map(|gtid| vec![gtid]);
        Promotion::of(&history, &last.unwrap_or_default())
    }

    #[test]
    fn a_primary_that_another_one_has_continued_is_superseded() {
        let new = promotion(2, "0-1-5,0-2-6", "0-1-5").unwrap();
        for state in ["0-1-5", "0-1-6", "0-1-900"] {
            assert!(new.supersedes(&primary(1, state, "")), "{state}");
        }
        // Without a binary log of what it had replicated.
        let new = promotion(2, "0-2-6", "0-1-5").unwrap();
        assert!(new.supersedes(&primary(1, "0-1-7", "")));
    }

    #[test]
    fn a_primary_that_was_promoted_itself_is_superseded_by_the_next_one_only() {
        let (first, second) = (primary(1, "0-1-9", ""), primary(2, "0-1-5,0-2-20", "0-1-5"));
        let third = primary(3, "0-1-5,0-2-8,0-3-9", "0-2-8");
        let [second_promotion, third_promotion] = [
            promotion(2, "0-1-5,0-2-20", "0-1-5").unwrap(),
            promotion(3, "0-1-5,0-2-8,0-3-9", "0-2-8").unwrap(),
        ];
        assert!(second_promotion.supersedes(&first));
        assert!(!second_promotion.supersedes(&second));
        assert!(!second_promotion.supersedes(&third));
        assert!(third_promotion.supersedes(&first));
        assert!(third_promotion.supersedes(&second));
        assert!(!third_promotion.supersedes(&third));
    }

    /// Each of these is the primary of today, and what is compared with it is a
    /// server of yesterday's.
    #[test]
    fn a_primary_of_today_is_not_superseded() {
        let second = promotion(2, "0-1-5,0-2-8", "0-1-5").unwrap();
        // It has followed the second one, and was promoted again; with its own
        // binary log, and with none of what it replicated.
        assert!(!second.supersedes(&primary(1, "0-1-9,0-2-8", "0-2-8")));
        assert!(!second.supersedes(&primary(1, "0-1-9", "0-2-8")));
        // It has followed a third one that nobody has seen.
        assert!(!second.supersedes(&primary(1, "0-1-20,0-3-19", "0-3-19")));
        // It was promoted without the second one's last transactions, which
        // goes on.
        let first = promotion(1, "0-1-9,0-2-8", "0-2-8").unwrap();
        assert!(first.supersedes(&primary(2, "0-1-5,0-2-90", "0-1-5")));
        assert!(
            !promotion(2, "0-1-5,0-2-90", "0-1-5")
                .unwrap()
                .supersedes(&primary(1, "0-1-9,0-2-8", "0-2-8"))
        );
        // It is new, under a number of before.
        assert!(!second.supersedes(&primary(1, "0-1-3", "")));
        assert!(!second.supersedes(&primary(1, "", "")));
        // It writes in another domain.
        assert!(!second.supersedes(&primary(1, "1-1-900", "")));
        assert!(!second.supersedes(&primary(7, "0-7-900", "")));
    }

    #[test]
    fn a_promotion_is_denied_by_its_own_server_alone() {
        let second = promotion(2, "0-1-5,0-2-8", "0-1-5").unwrap();
        assert!(!second.is_denied_by(&primary(2, "0-1-5,0-2-9", "0-1-5")));
        assert!(!second.is_denied_by(&primary(3, "0-1-5", "0-1-5")));
        // It replicates again, or begins again from another one's data.
        let replica = History::parse("2;0;0-1-5,0-2-8;0-1-9").unwrap();
        assert!(second.is_denied_by(&replica));
        assert!(second.is_denied_by(&primary(2, "", "0-1-900")));
        assert!(second.is_denied_by(&primary(2, "", "")));
        for (replayed, is_followed) in [("0-2-8", true), ("0-1-9", false), ("1-2-8", false)] {
            assert_eq!(
                second.is_followed_by(&gtids(replayed).unwrap()),
                is_followed
            );
        }
        let first = primary(1, "0-1-9", "");
        for (replayed, is_left) in [("0-1-9", true), ("0-2-8", false), ("0-3-9", false)] {
            assert_eq!(
                second.was_left_for(&first, &gtids(replayed).unwrap()),
                is_left
            );
        }
    }

    #[test]
    fn what_is_no_primary_has_superseded_nothing() {
        let of = |text: &str, replayed: &str| {
            Promotion::of(&History::parse(text).unwrap(), &gtids(replayed).unwrap())
        };
        assert!(of("2;1;0-1-5,0-2-6;0-1-5", "0-2-6").is_some());
        // Read-only, or replicating: a replica was written to.
        assert_eq!(of("2;0;0-1-5,0-2-6;0-1-5", "0-2-6"), None);
        // No replica follows it.
        assert_eq!(of("2;1;0-1-5,0-2-6;0-1-5", "0-1-6"), None);
        assert_eq!(of("2;1;0-1-5,0-2-6;0-1-5", ""), None);
        // It has written nothing since it replicates, or has never replicated
        // anything.
        assert_eq!(of("2;1;0-1-9,0-2-6;0-1-9", "0-2-6"), None);
        assert_eq!(of("2;1;0-1-5;0-1-5", "0-1-5"), None);
        assert_eq!(of("2;1;0-2-6;", "0-2-6"), None);
        // In another domain than that in which it is followed.
        assert_eq!(of("2;1;0-1-5,1-2-6;0-1-5", "1-2-6"), None);
        // A replica of the others is no replica of it.
        let superseded = History::parse("1;0;0-1-9;").unwrap();
        assert!(
            !of("2;1;0-1-5,0-2-6;0-1-5", "0-2-6")
                .unwrap()
                .supersedes(&superseded)
        );
    }
}
