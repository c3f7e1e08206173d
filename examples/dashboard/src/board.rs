//! [`Board`]: an observer that keeps what the page shows.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tower_sea_orm::{
    Observer, SessionPool,
    observer::{Acquired, Executed, Released, SessionEnded},
};

/// How many statements are told apart. Their texts have no values, but a service may put new texts together all the time.
const STATEMENTS: usize = 256;

/// How many of them the page shows.
const SHOWN: usize = 8;

/// Counts by route, outcome and statement. Each event adds to a small map under a lock that is held for no longer.
#[derive(Default)]
pub(crate) struct Board(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    holders: BTreeMap<String, i64>,
    outcomes: BTreeMap<(String, &'static str), u64>,
    statements: BTreeMap<String, Times>,
    refused: u64,
}

#[derive(Default, Clone, Copy)]
struct Times {
    count: u32,
    total: Duration,
    longest: Duration,
}

/// The answer that the page gets each second.
#[derive(Serialize)]
pub(crate) struct Snapshot {
    max: u32,
    used: u32,
    idle: usize,
    pending: usize,
    refused: u64,
    holders: Vec<Holder>,
    outcomes: Vec<Ended>,
    statements: Vec<Statement>,
}

#[derive(Serialize)]
struct Holder {
    route: String,
    connections: i64,
}

#[derive(Serialize)]
struct Ended {
    route: String,
    outcome: &'static str,
    sessions: u64,
}

#[derive(Serialize)]
struct Statement {
    text: String,
    count: u32,
    mean_ms: f64,
    longest_ms: f64,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn snapshot(&self, pool: &SessionPool) -> Snapshot {
        let status = pool.status();
        // After a while without use, connections are given back to the driver's pool, where they are still open.
        let of_driver = pool.database().get_postgres_connection_pool().num_idle();
        let counts = self.lock();
        let mut slowest: Vec<_> = counts.statements.iter().collect();
        slowest.sort_by_key(|(_, times)| std::cmp::Reverse(times.total / times.count));
        let held = counts.holders.iter().filter(|(_, count)| **count > 0);
        Snapshot {
            max: status.max,
            used: status.used,
            idle: status.idle + of_driver,
            pending: status.pending,
            refused: counts.refused,
            holders: held.map(holder).collect(),
            outcomes: counts.outcomes.iter().map(ended).collect(),
            statements: slowest.into_iter().take(SHOWN).map(statement).collect(),
        }
    }
}

impl Observer for Board {
    fn acquired(&self, acquired: &Acquired<'_>) {
        let mut counts = self.lock();
        match acquired.error() {
            None => *counts.holders.entry(place(acquired.route())).or_default() += 1,
            Some(_) => counts.refused += 1,
        }
    }

    fn executed(&self, executed: &Executed<'_>) {
        let text = executed.statement();
        let mut counts = self.lock();
        if counts.statements.len() >= STATEMENTS && !counts.statements.contains_key(&text) {
            return;
        }
        let times = counts.statements.entry(text).or_default();
        times.count += 1;
        times.total += executed.elapsed();
        times.longest = times.longest.max(executed.elapsed());
    }

    fn released(&self, released: &Released<'_>) {
        let mut counts = self.lock();
        *counts.holders.entry(place(released.route())).or_default() -= 1;
    }

    fn ended(&self, ended: &SessionEnded<'_>) {
        let key = (place(ended.route()), ended.outcome());
        *self.lock().outcomes.entry(key).or_default() += 1;
    }
}

fn place(route: Option<&str>) -> String {
    route.unwrap_or("(job)").to_owned()
}

fn holder((route, connections): (&String, &i64)) -> Holder {
    Holder {
        route: route.clone(),
        connections: *connections,
    }
}

fn ended(((route, outcome), sessions): (&(String, &'static str), &u64)) -> Ended {
    Ended {
        route: route.clone(),
        outcome,
        sessions: *sessions,
    }
}

fn statement((text, times): (&String, &Times)) -> Statement {
    let milliseconds = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
    Statement {
        text: text.clone(),
        count: times.count,
        mean_ms: milliseconds(times.total / times.count),
        longest_ms: milliseconds(times.longest),
    }
}
