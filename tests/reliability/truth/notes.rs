//! [`Notes`]: what a handler and its client were told.

use std::collections::BTreeSet;

use tower_sea_orm::{Error, Outcome};

use super::operation::{ROWS, Traits};

#[derive(Debug, Default)]
pub struct Notes {
    /// Requests beside it may make any statement fail.
    pub is_contended: bool,
    statements: Vec<Noted>,
    scopes: Vec<Scope>,
    /// What was seen to be wrong at once.
    pub wrong: Vec<String>,
}

#[derive(Debug)]
struct Noted {
    first: i64,
    traits: Traits,
    heard: Heard,
    scope: Option<usize>,
}

/// A transaction or savepoint.
#[derive(Debug)]
struct Scope {
    parent: Option<usize>,
    told: Told,
    /// Something in it may have ended the whole transaction.
    ends: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Ok,
    Failed,
    /// It failed, and something may stand.
    MayStand,
    /// Nothing: nobody waited for it.
    Nothing,
    /// Its rows were there, and nobody waited for its end. It takes place nevertheless.
    Half,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing so far, or that it is not known.
    Unknown,
    Committed,
    RolledBack,
}

impl Notes {
    pub fn open(&mut self, parent: Option<usize>) -> usize {
        self.scopes.push(Scope {
            parent,
            told: Told::Unknown,
            ends: false,
        });
        self.scopes.len() - 1
    }

    pub fn tell(&mut self, scope: usize, told: Told) {
        self.scopes[scope].told = told;
    }

    /// A handle that is dropped is a rollback, unless there was nothing to roll back any more.
    pub fn dropped(&mut self, scope: usize) {
        if !self.scopes[self.root(scope)].ends {
            self.tell(scope, Told::RolledBack);
        }
    }

    pub fn note(&mut self, first: i64, traits: Traits, heard: Heard, scope: Option<usize>) {
        if traits.ends
            && let Some(scope) = scope
        {
            let root = self.root(scope);
            self.scopes[root].ends = true;
        }
        if heard == Heard::Ok && traits.must_fail {
            self.wrong.push(format!("succeeded: {}", traits.sql));
        }
        let must_work = traits.must_work && !self.is_contended && !self.may_be_released();
        if matches!(heard, Heard::Failed | Heard::MayStand) && must_work && scope.is_none() {
            self.wrong.push(format!(
                "failed where each statement is alone: {}",
                traits.sql
            ));
        }
        self.statements.push(Noted {
            first,
            traits,
            heard,
            scope,
        });
    }

    /// Whether MySQL was told to close the connection at the end of the transaction.
    pub fn may_be_released(&self) -> bool {
        self.statements
            .iter()
            .any(|noted| noted.traits.sql.contains("completion_type = 2"))
    }

    /// Compares with the rows that others see.
    pub fn compare(&mut self, seen: &BTreeSet<i64>) {
        for noted in &self.statements {
            let rows: Vec<_> = seen.range(noted.first..noted.first + ROWS).collect();
            let there = rows.len() as i64;
            let (rows_of_it, several) = (noted.traits.rows, noted.traits.several);
            let fate = self.fate(noted);
            let fits = match fate {
                // A stream that failed behind its reader's back is not committed.
                Some(_) if noted.is_unheard_failure() => self.told(noted) == Told::RolledBack,
                Some(true) if several && noted.scope.is_some() => true,
                Some(true) => there == rows_of_it,
                Some(false) => there == 0,
                None => several || there == 0 || there == rows_of_it,
            };
            if !fits {
                self.wrong.push(format!(
                    "{there} rows of {rows_of_it}, present: {fate:?}, heard {:?}: {noted:?}",
                    noted.heard
                ));
            }
        }
    }

    /// Whether its rows have to be there; `None` if that is open.
    fn fate(&self, noted: &Noted) -> Option<bool> {
        match (self.told(noted), noted.heard) {
            (Told::RolledBack, _) => Some(false),
            (Told::Committed, Heard::Ok) => Some(!noted.traits.must_fail),
            (Told::Committed, Heard::Half) if noted.scope.is_some() || noted.traits.must_work => {
                Some(!noted.traits.must_fail)
            }
            (_, Heard::Failed) if !noted.traits.several => Some(false),
            _ => None,
        }
    }

    /// What became of everything around it.
    fn told(&self, noted: &Noted) -> Told {
        let mut told = Told::Committed;
        let mut scope = noted.scope;
        while let Some(around) = scope {
            match self.scopes[around].told {
                Told::RolledBack => return Told::RolledBack,
                Told::Unknown => told = Told::Unknown,
                Told::Committed => {}
            }
            scope = self.scopes[around].parent;
        }
        told
    }

    fn root(&self, mut scope: usize) -> usize {
        while let Some(parent) = self.scopes[scope].parent {
            scope = parent;
        }
        scope
    }
}

impl Noted {
    fn is_unheard_failure(&self) -> bool {
        self.heard == Heard::Half && self.traits.must_fail && self.scope.is_some()
    }
}

impl Told {
    /// What the end of a transaction says.
    pub fn by_end(end: &Result<(), sea_orm::DbErr>, commits: bool) -> Self {
        match end {
            Ok(()) if commits => Self::Committed,
            Ok(()) => Self::RolledBack,
            Err(error) => Self::by_failure(Error::of(error).as_ref()),
        }
    }

    /// What the end of a request says.
    pub fn by_outcome(outcome: Option<&Outcome>) -> Self {
        match outcome {
            Some(outcome) if outcome.is_committed() => Self::Committed,
            Some(outcome) if outcome.is_rolled_back() => Self::RolledBack,
            Some(outcome) if outcome.error().is_some() => Self::by_failure(outcome.error()),
            // An untouched one has no rows.
            Some(outcome) if outcome.is_untouched() => Self::Committed,
            _ => Self::Unknown,
        }
    }

    pub fn by_failure(error: Option<&Error>) -> Self {
        if error.is_some_and(|error| error.is_outcome_unknown() || may_stand(error)) {
            Self::Unknown
        } else {
            Self::RolledBack
        }
    }
}

pub fn may_stand(error: &Error) -> bool {
    error.to_string().contains("may be committed")
}
