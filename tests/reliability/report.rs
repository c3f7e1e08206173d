//! [`Row`]: what one scenario came to, as lines of the report's tables.

use std::{
    env, fs,
    io::Write,
    path::PathBuf,
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    ledger::{Audit, Ledger, Note},
    service::ON_PURPOSE,
    witness::Witness,
};

/// What kind of scenario it is: each has a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Network,
    Server,
    Storm,
    Soak,
    /// Other crates, on the same faults.
    #[allow(dead_code, reason = "for `tests/peers`")]
    Peers,
}

#[derive(Debug)]
pub struct Row {
    group: Group,
    scenario: String,
    pub faults: u64,
    requests: u64,
    acknowledged: u64,
    rolled_back: u64,
    unknown: u64,
    unanswered: u64,
    /// Opened by the driver in all.
    pub connections: u64,
    /// Did not answer within a bound that nothing should reach.
    pub hung: u64,
    pub leaked: u64,
    pub open_transactions: u64,
    pub audit: Audit,
    strangers: u64,
    foreign: u64,
    cancelled: u64,
    /// Of this process, before the scenario.
    panics: u64,
    /// MiB that the process grew by while it should not.
    pub grown: u64,
    recovery: Duration,
    pub notes: Vec<String>,
    /// What was wrong, in words.
    words: Vec<String>,
}

impl Row {
    pub fn new(group: Group, scenario: impl Into<String>) -> Self {
        count_panics();
        Self {
            group,
            scenario: scenario.into(),
            faults: 0,
            requests: 0,
            acknowledged: 0,
            rolled_back: 0,
            unknown: 0,
            unanswered: 0,
            connections: 0,
            hung: 0,
            leaked: 0,
            open_transactions: 0,
            audit: Audit::default(),
            strangers: 0,
            foreign: 0,
            cancelled: 0,
            panics: PANICS.load(Ordering::Relaxed),
            grown: 0,
            recovery: Duration::ZERO,
            notes: Vec::new(),
            words: Vec::new(),
        }
    }

    pub fn witnessed(&mut self, witness: &Witness) {
        self.strangers += witness.strangers.load(Ordering::Relaxed);
        self.foreign += witness.foreign.load(Ordering::Relaxed);
        self.cancelled += witness.cancelled.load(Ordering::Relaxed);
        self.words.extend(witness.words());
    }

    pub fn counted(&mut self, ledger: &Ledger) {
        self.requests += ledger.requests();
        self.acknowledged += ledger.count(Note::Acknowledged) + ledger.count(Note::Read);
        self.rolled_back += ledger.count(Note::RolledBack);
        self.unknown += ledger.count(Note::Unknown);
        self.unanswered += ledger.count(Note::Unanswered);
    }

    /// From the end of a fault until the pool was at its full size; the longest is kept.
    pub fn recovered(&mut self, after: Duration) {
        self.recovery = self.recovery.max(after);
    }

    pub fn say(&mut self, words: impl Into<String>) {
        self.words.push(words.into());
    }

    /// How many invariants hold, of how many.
    #[allow(dead_code, reason = "for `tests/peers`")]
    pub fn kept(&self) -> (usize, usize) {
        let invariants = self.invariants();
        (
            invariants.iter().filter(|(_, count)| *count == 0).count(),
            invariants.len(),
        )
    }

    /// Prints the line and keeps it for the report; returns the invariants that do not hold.
    #[must_use]
    pub fn finish(self) -> Vec<String> {
        let invariants = self.invariants();
        let names: Vec<&str> = invariants.iter().map(|(name, _)| *name).collect();
        let counts: Vec<String> = invariants
            .iter()
            .map(|(_, count)| count.to_string())
            .collect();
        let wrong = invariants.iter().filter(|(_, count)| *count > 0);
        let wrong: Vec<String> = wrong
            .map(|(name, count)| format!("{}: {count} {name}", self.scenario))
            .collect();
        let verdict = if wrong.is_empty() {
            "all invariants hold".to_owned()
        } else {
            wrong.join(", ")
        };
        eprintln!(
            "{}{}{verdict}\n  {}",
            SENT,
            self.sent(),
            self.words.join("\n  ")
        );
        keep(
            &format!("{:?}", self.group).to_lowercase(),
            SENT,
            &self.sent(),
        );
        let head = format!(
            "| scenario | {} |\n|---{}|\n",
            names.join(" | "),
            "|--:".repeat(names.len())
        );
        let found = if self.group == Group::Peers {
            "peers-found"
        } else {
            "found"
        };
        keep(
            found,
            &head,
            &format!("| {} | {} |\n", self.scenario, counts.join(" | ")),
        );
        wrong
    }

    fn invariants(&self) -> [(&'static str, u64); 11] {
        [
            ("hung", self.hung),
            ("leaked", self.leaked),
            ("left open", self.open_transactions),
            ("lost", self.audit.lost),
            ("undead", self.audit.undead),
            ("half", self.audit.halves),
            ("strangers", self.strangers + self.audit.mixed),
            ("foreign errors", self.foreign),
            ("cancelled", self.cancelled),
            ("panics", PANICS.load(Ordering::Relaxed) - self.panics),
            ("grown", self.grown),
        ]
    }

    fn sent(&self) -> String {
        let counts = [
            self.faults,
            self.requests,
            self.acknowledged,
            self.rolled_back,
            self.unknown,
            self.unanswered,
            self.connections,
        ];
        let counts: Vec<String> = counts.into_iter().map(|count| count.to_string()).collect();
        let recovery = self.recovery.as_millis();
        format!(
            "| {} | {} | {recovery} ms | {} |\n",
            self.scenario,
            counts.join(" | "),
            self.notes.join("; ")
        )
    }
}

/// Ends a test by what does not hold.
///
/// # Panics
///
/// If that is anything.
pub fn conclude(broken: &[String]) {
    assert!(broken.is_empty(), "{BROKEN}: {broken:?}");
}

/// How the panics of [`conclude`] begin. Other tests run meanwhile, and must not count them.
const BROKEN: &str = "invariants do not hold";

/// The columns of what was done.
const SENT: &str = "| scenario | faults | requests | acknowledged | rolled back | unknown | unanswered | \
                    connections | longest recovery | notes |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|---|\n";

/// Appends a line to one of the report's tables, if a report is asked for.
pub fn keep(table: &str, head: &str, line: &str) {
    let Some(dir) = env::var_os("RELIABILITY_OUT").map(PathBuf::from) else {
        return;
    };
    let file = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join(table));
    let mut file = file.expect("a file for the table");
    if file.metadata().is_ok_and(|file| file.len() == 0) {
        file.write_all(head.as_bytes())
            .expect("the table's head is kept");
    }
    file.write_all(line.as_bytes()).expect("the line is kept");
}

/// Panics of this process that nobody made on purpose.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let text = info.payload().downcast_ref::<String>().map(String::as_str);
            let text = text
                .or(info.payload().downcast_ref().copied())
                .unwrap_or_default();
            if text.starts_with(BROKEN) {
                // Without a backtrace: its symbols would count as growth.
                eprintln!("{text}");
            } else if text != ON_PURPOSE {
                PANICS.fetch_add(1, Ordering::Relaxed);
                before(info);
            }
        }));
    });
}
