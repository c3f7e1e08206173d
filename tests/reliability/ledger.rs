//! [`Ledger`]: what clients were told, and whether the database agrees.
//!
//! Each request has a number. A request that writes inserts the rows `(number, 1)` and `(number, 2)`, both or
//! none; `(number, 3)` belongs to a savepoint that is always rolled back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

/// What a client knows about its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// No answer yet, or never: all or nothing is there.
    Unanswered,
    /// A success: everything is there.
    Acknowledged,
    /// Nothing is there.
    RolledBack,
    /// An error that leaves it open: all or nothing is there.
    Unknown,
    /// It wrote nothing to begin with.
    Read,
}

#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Vec<Entry>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    note: Note,
    /// It ends in a rollback: nothing is there, whatever its client heard.
    doomed: bool,
}

/// How often the database and the clients disagree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Acknowledged, and not there.
    pub lost: u64,
    /// Answered as rolled back, or only a read, or bound to be rolled back, and there.
    pub undead: u64,
    /// One row without the other, or a row of a savepoint that was rolled back.
    pub halves: u64,
    /// Transactions on the server with rows of more than one request.
    pub mixed: u64,
}

/// How many requests are compared at a time.
const PAGE: usize = 50_000;

impl Ledger {
    /// A ledger that does not grow until so many requests were made.
    pub fn with_capacity(requests: usize) -> Self {
        Self {
            entries: Mutex::new(Vec::with_capacity(requests)),
        }
    }

    /// The number of a new request, and whether its handler means all of it to be rolled back.
    pub fn open(&self, doomed: bool) -> i64 {
        let mut entries = self.lock();
        entries.push(Entry {
            note: Note::Unanswered,
            doomed,
        });
        entries.len() as i64
    }

    /// Notes what became of a request. An acknowledgement stands, whatever comes after it.
    pub fn note(&self, number: i64, note: Note) {
        let mut entries = self.lock();
        let Some(known) = entries.get_mut(number as usize - 1) else {
            return;
        };
        if known.note != Note::Acknowledged {
            known.note = note;
        }
    }

    /// How many requests have this note.
    pub fn count(&self, note: Note) -> u64 {
        self.lock()
            .iter()
            .filter(|known| known.note == note)
            .count() as u64
    }

    pub fn requests(&self) -> u64 {
        self.lock().len() as u64
    }

    /// Compares the ledger with what `view`, somebody else's connection, sees. Nothing may be running.
    pub async fn audit(&self, view: &DatabaseConnection) -> Audit {
        let mut audit = Audit {
            mixed: mixed(view).await,
            ..Audit::default()
        };
        let entries = self.lock().clone();
        for (page, entries) in entries.chunks(PAGE).enumerate() {
            let first = page * PAGE + 1;
            let mut masks = vec![0_u8; entries.len()];
            for (number, half) in rows(view, first, first + entries.len()).await {
                masks[number as usize - first] |= 1 << (half - 1);
            }
            for (entry, mask) in entries.iter().zip(masks) {
                audit.compare(*entry, mask);
            }
        }
        audit
    }

    /// Which of a request's rows somebody else sees, and whether that is what the client was told.
    pub async fn agrees(&self, view: &DatabaseConnection, number: i64) -> bool {
        let entry = self.lock()[number as usize - 1];
        let mut audit = Audit::default();
        let rows = rows(view, number as usize, number as usize + 1).await;
        audit.compare(
            entry,
            rows.iter()
                .fold(0, |mask, (_, half)| mask | 1 << (half - 1)),
        );
        audit == Audit::default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Audit {
    fn compare(&mut self, Entry { note, doomed }: Entry, mask: u8) {
        let none_expected = doomed || matches!(note, Note::RolledBack | Note::Read);
        self.lost += u64::from(note == Note::Acknowledged && mask & 0b011 != 0b011);
        self.undead += u64::from(none_expected && mask != 0);
        self.halves += u64::from(!matches!(mask, 0 | 0b011));
    }

    pub fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.undead += other.undead;
        self.halves += other.halves;
        self.mixed += other.mixed;
    }
}

/// The statements that make the tables.
pub fn schema(backend: DbBackend) -> [&'static str; 2] {
    match backend {
        DbBackend::MySql => [
            "CREATE TABLE ledger (number bigint NOT NULL, half integer NOT NULL, PRIMARY KEY (number, half)) ENGINE=InnoDB",
            "CREATE TABLE clash (number bigint PRIMARY KEY) ENGINE=InnoDB",
        ],
        _ => [
            "CREATE TABLE ledger (number bigint NOT NULL, half integer NOT NULL, PRIMARY KEY (number, half))",
            "CREATE TABLE clash (number bigint PRIMARY KEY)",
        ],
    }
}

/// The rows of the requests from `first` on, before `end`.
async fn rows(view: &DatabaseConnection, first: usize, end: usize) -> Vec<(i64, i32)> {
    let sql = format!("SELECT number, half FROM ledger WHERE number >= {first} AND number < {end}");
    let statement = Statement::from_string(view.get_database_backend(), sql);
    let rows = view
        .query_all_raw(statement)
        .await
        .expect("the ledger can be read");
    let row = |row: &sea_orm::QueryResult| {
        Some((row.try_get_by_index(0).ok()?, row.try_get_by_index(1).ok()?))
    };
    rows.iter()
        .map(|found| row(found).expect("two numbers"))
        .collect()
}

/// How many of the server's transactions have rows of more than one request; only PostgreSQL tells.
async fn mixed(view: &DatabaseConnection) -> u64 {
    let backend = view.get_database_backend();
    if backend != DbBackend::Postgres {
        return 0;
    }
    let sql = "SELECT count(*) FROM (SELECT 1 FROM ledger GROUP BY xmin::text HAVING count(DISTINCT number) > 1) AS mixed";
    let row = view
        .query_one_raw(Statement::from_string(backend, sql))
        .await
        .expect("the ledger can be read");
    let count: i64 = row.expect("a count").try_get_by_index(0).expect("a count");
    count as u64
}
