//! [`Witness`]: what handlers see that they must never see.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use sea_orm::{DbErr, RuntimeErr, SqlxMySqlError, SqlxPostgresError};

#[derive(Debug, Default)]
pub struct Witness {
    /// A statement found itself in another request's transaction, or in none.
    pub strangers: AtomicU64,
    /// An error that another request provoked.
    pub foreign: AtomicU64,
    /// A statement was cancelled that nobody meant.
    pub cancelled: AtomicU64,
    /// The first of each, in words.
    words: Mutex<Vec<String>>,
}

/// What a handler provokes, and so may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provokes {
    Nothing,
    /// A unique violation with its own number.
    Clash,
    /// A time-out of its own statement.
    Timeout,
    /// An error that comes after the row it wants.
    Late,
}

impl Witness {
    /// Looks at an error that request `number` got.
    pub fn see(&self, number: i64, provokes: Provokes, error: &DbErr) {
        let Some((code, text)) = told(error) else {
            return;
        };
        match code.as_str() {
            "23505" | "1062" => {
                let own =
                    text.contains(&format!("({number})")) || text.contains(&format!("'{number}'"));
                if provokes != Provokes::Clash || !own {
                    self.count(&self.foreign, format!("request {number}: {text}"));
                }
            }
            "22012" | "1690" if provokes != Provokes::Late => {
                self.count(&self.foreign, format!("request {number}: {text}"));
            }
            "57014" | "1317" | "1969" if provokes != Provokes::Timeout => {
                self.count(&self.cancelled, format!("request {number}: {text}"));
            }
            _ => {}
        }
    }

    /// Request `number` expected to be in the transaction of `expected`, and was in that of `found`.
    pub fn compare(&self, number: i64, expected: &str, found: &str) {
        if expected != found {
            self.count(
                &self.strangers,
                format!("request {number}: in {found:?} instead of {expected:?}"),
            );
        }
    }

    pub fn words(&self) -> Vec<String> {
        self.words
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn count(&self, what: &AtomicU64, words: String) {
        what.fetch_add(1, Ordering::Relaxed);
        let mut known = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < 20 {
            known.push(words);
        }
    }
}

/// The server's code and words, with PostgreSQL's detail.
fn told(error: &DbErr) -> Option<(String, String)> {
    let (DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))
    | DbErr::Conn(RuntimeErr::SqlxError(error))) = error
    else {
        return None;
    };
    let error = error.as_database_error()?;
    if let Some(error) = error.try_downcast_ref::<SqlxMySqlError>() {
        return Some((error.number().to_string(), error.message().to_owned()));
    }
    let error = error.try_downcast_ref::<SqlxPostgresError>()?;
    Some((
        error.code().to_owned(),
        format!(
            "{}: {}",
            error.message(),
            error.detail().unwrap_or_default()
        ),
    ))
}
