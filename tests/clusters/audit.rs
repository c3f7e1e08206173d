//! [`Audit`]: whether the database agrees with what the clients were told.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};

use super::{clients::Answer, site::Maker};

/// The answers to the clients of one service, against the rows that there are.
pub struct Audit {
    pub maker: Maker,
    answers: Vec<Answer>,
    rows: HashSet<i64>,
}

impl Audit {
    /// `view` is somebody else's connection; nothing may be writing.
    pub async fn new(maker: Maker, answers: Vec<Answer>, view: &DatabaseConnection) -> Self {
        let sql = format!("SELECT number FROM ledger WHERE maker = {}", maker.mark());
        let statement = Statement::from_string(view.get_database_backend(), sql);
        let rows = view.query_all_raw(statement).await;
        let rows = rows.expect("the rows can be read");
        let rows = rows
            .iter()
            .map(|row| row.try_get_by_index(0).expect("a number"))
            .collect();
        Self {
            maker,
            answers,
            rows,
        }
    }

    pub fn requests(&self) -> usize {
        self.answers.len()
    }

    pub fn acknowledged(&self) -> usize {
        self.count(Answer::is_acknowledged)
    }

    /// Server errors, of requests that were sent since then.
    pub fn failed_since(&self, since: Option<Instant>) -> usize {
        self.count(|answer| {
            since.is_none_or(|since| answer.sent >= since)
                && answer.status.is_some_and(|status| status >= 500)
        })
    }

    /// How many have this status, and `Retry-After` where it is a 503.
    pub fn status(&self, status: u16) -> usize {
        self.count(|answer| answer.status == Some(status))
    }

    /// Not answered at all, within a time that only a hang comes to.
    pub fn unanswered(&self) -> usize {
        self.count(|answer| answer.status.is_none())
    }

    pub fn longest(&self) -> Duration {
        let longest = self.answers.iter().map(Answer::took).max();
        longest.unwrap_or_default()
    }

    /// Between a success and the next one.
    pub fn longest_gap(&self) -> Duration {
        let successes = self.answers.iter().filter(|one| one.is_acknowledged());
        let mut came: Vec<Instant> = successes.map(|answer| answer.came).collect();
        came.sort_unstable();
        let gaps = came.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }

    /// The answers that came within this time from there on: 200 / 503 / other.
    pub fn during(&self, from: Instant, time: Duration) -> String {
        let (mut good, mut refused, mut other) = (0, 0, 0);
        for answer in &self.answers {
            if answer.came >= from && answer.came < from + time {
                match answer.status {
                    Some(200) => good += 1,
                    Some(503) => refused += 1,
                    _ => other += 1,
                }
            }
        }
        format!("{good} / {refused} / {other}")
    }

    /// How long after that the first success of a request came that was sent after it.
    pub fn first_success_after(&self, since: Instant) -> Option<Duration> {
        let successes = self
            .answers
            .iter()
            .filter(|answer| answer.sent >= since && answer.is_acknowledged());
        successes.map(|answer| answer.came - since).min()
    }

    /// Acknowledged, and not there.
    pub fn lost(&self) -> Vec<&Answer> {
        self.answers
            .iter()
            .filter(|answer| answer.is_acknowledged() && !self.rows.contains(&answer.number))
            .collect()
    }

    /// Answered with an invitation to try again, and there.
    pub fn undead(&self) -> usize {
        self.count(|answer| {
            answer.status == Some(503) && answer.retry_after && self.rows.contains(&answer.number)
        })
    }

    /// The acknowledged ones among these transactions.
    pub fn of_transactions(&self, transactions: &HashSet<String>) -> HashSet<i64> {
        self.answers
            .iter()
            .filter(|answer| answer.is_acknowledged() && transactions.contains(&answer.body))
            .map(|answer| answer.number)
            .collect()
    }

    /// The different bodies of server errors, for whoever reads a failure.
    pub fn errors(&self) -> HashSet<(u16, &str)> {
        self.answers
            .iter()
            .filter_map(|answer| Some((answer.status?, answer.body.as_str())))
            .filter(|(status, _)| *status >= 500)
            .collect()
    }

    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    fn count(&self, is: impl Fn(&Answer) -> bool) -> usize {
        self.answers.iter().filter(|answer| is(answer)).count()
    }
}
