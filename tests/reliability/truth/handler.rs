//! [`Handler`]: does what a script says, and notes what it is told.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    task::Poll,
};

use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture};
use sea_orm::{ConnectionTrait, DbErr, Statement, StreamTrait, TransactionTrait};
use tower_sea_orm::{DbSession, Error, SessionTransaction};

use super::{
    notes::{Heard, Notes, Told, may_stand},
    operation::{Operation, ROWS},
    script::{End, Step, Taken, Way},
};
use crate::support::database::Kind;

#[derive(Clone)]
pub struct Handler {
    pub kind: Kind,
    /// The number of the next statement's first row.
    pub next: Arc<AtomicI64>,
    notes: Arc<Mutex<Notes>>,
    /// The session's own transaction at this moment, if it is in one.
    own: Arc<Mutex<Option<usize>>>,
}

/// What runs a statement.
#[derive(Clone, Copy)]
enum Db<'a> {
    Session(&'a DbSession),
    /// A transaction that the handler began, and its place in the notes.
    Begun(&'a SessionTransaction, usize),
}

macro_rules! on {
    ($db:expr, $c:ident => $body:expr) => {
        match $db {
            Db::Session($c) => $body,
            Db::Begun($c, _) => $body,
        }
    };
}

impl Handler {
    pub fn new(kind: Kind, next: Arc<AtomicI64>, is_transactional: bool) -> Self {
        let mut notes = Notes::default();
        let own = is_transactional.then(|| notes.open(None));
        Self {
            kind,
            next,
            notes: Arc::new(Mutex::new(notes)),
            own: Arc::new(Mutex::new(own)),
        }
    }

    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn own(&self) -> Option<usize> {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all steps; an error is the status that the handler answers with early.
    pub async fn run(&self, session: &DbSession, steps: &[Step]) -> Result<(), u16> {
        self.steps(Db::Session(session), steps).await
    }

    fn steps<'a>(&'a self, db: Db<'a>, steps: &'a [Step]) -> BoxFuture<'a, Result<(), u16>> {
        async move {
            for step in steps {
                self.step(db, step).await?;
            }
            Ok(())
        }
        .boxed()
    }

    async fn step(&self, db: Db<'_>, step: &Step) -> Result<(), u16> {
        match (step, db) {
            (Step::Run(operation, way, taken), _) => {
                let heard = self.statement(db, *operation, *way).await;
                if matches!(heard, Heard::Failed | Heard::MayStand) {
                    taken.answer()
                } else {
                    Ok(())
                }
            }
            (Step::Nest(steps, end), _) => self.nest(db, steps, *end).await,
            (Step::Commit(taken), Db::Session(session)) => {
                let committed = session.commit().await;
                self.end_own(Told::by_end(&committed, true));
                if committed.is_err() {
                    taken.answer()
                } else {
                    Ok(())
                }
            }
            (Step::Rollback, Db::Session(session)) => {
                let rolled_back = session.rollback().await;
                self.end_own(Told::by_end(&rolled_back, false));
                Ok(())
            }
            (Step::Commit(_) | Step::Rollback, Db::Begun(..)) => Ok(()),
        }
    }

    fn end_own(&self, told: Told) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notes = self.notes();
        if let Some(ended) = *own {
            notes.tell(ended, told);
        }
        *own = Some(notes.open(None));
    }

    fn scope(&self, db: Db<'_>) -> Option<usize> {
        match db {
            Db::Session(_) => self.own(),
            Db::Begun(_, scope) => Some(scope),
        }
    }

    async fn nest(&self, db: Db<'_>, steps: &[Step], end: End) -> Result<(), u16> {
        let parent = self.scope(db);
        let tx = match on!(db, c => c.begin().await) {
            Ok(tx) => tx,
            Err(error) => {
                let mut notes = self.notes();
                if parent.is_none() && !notes.is_contended && !notes.may_be_released() {
                    notes
                        .wrong
                        .push(format!("no BEGIN where nothing is open: {error}"));
                }
                return Ok(());
            }
        };
        let scope = self.notes().open(parent);
        let done = self.steps(Db::Begun(&tx, scope), steps).await;
        let told = match end {
            End::Commit if done.is_ok() => Told::by_end(&tx.commit().await, true),
            End::Rollback if done.is_ok() => Told::by_end(&tx.rollback().await, false),
            _ => {
                drop(tx);
                self.notes().dropped(scope);
                return done;
            }
        };
        self.notes().tell(scope, told);
        done
    }

    /// Runs one statement with rows of its own.
    async fn statement(&self, db: Db<'_>, operation: Operation, way: Way) -> Heard {
        let first = self.next.fetch_add(ROWS, Ordering::Relaxed);
        let Some(traits) = operation.traits(self.kind, first) else {
            return Heard::Nothing;
        };
        let heard = db.run(&traits.sql, way).await;
        self.notes().note(first, traits, heard, self.scope(db));
        heard
    }
}

impl Db<'_> {
    async fn run(self, sql: &str, way: Way) -> Heard {
        let backend = on!(self, c => ConnectionTrait::get_database_backend(c));
        let statement = Statement::from_string(backend, sql);
        match way {
            Way::One => heard(on!(self, c => c.query_one_raw(statement).await)),
            Way::All => heard(on!(self, c => c.query_all_raw(statement).await)),
            Way::Execute => heard(on!(self, c => c.execute_raw(statement).await)),
            Way::Unprepared => heard(on!(self, c => c.execute_unprepared(sql).await)),
            Way::Stream => heard(on!(self, c => match c.stream_raw(statement).await {
                Ok(rows) => rows.try_collect::<Vec<_>>().await,
                Err(error) => Err(error),
            })),
            Way::Half => on!(self, c => match c.stream_raw(statement).await {
                Ok(rows) => half(rows).await,
                Err(error) => heard(Err::<(), _>(error)),
            }),
            Way::Dropped(polls) => {
                let running = on!(self, c => c.execute_unprepared(sql));
                after_polls(polls, running)
                    .await
                    .map_or(Heard::Nothing, heard)
            }
        }
    }
}

async fn half<T>(rows: impl futures_util::Stream<Item = Result<T, DbErr>>) -> Heard {
    match pin!(rows).next().await {
        Some(Ok(_)) => Heard::Half,
        Some(Err(error)) => heard(Err::<(), _>(error)),
        None => Heard::Ok,
    }
}

fn heard<T>(result: Result<T, DbErr>) -> Heard {
    match result {
        Ok(_) => Heard::Ok,
        Err(error) if Error::of(&error).is_some_and(|error| may_stand(&error)) => Heard::MayStand,
        Err(_) => Heard::Failed,
    }
}

impl Taken {
    fn answer(self) -> Result<(), u16> {
        match self {
            Self::Swallowed => Ok(()),
            Self::Passed(status) => Err(status),
        }
    }
}

/// What `future` yields, unless it is dropped after so many polls.
pub async fn after_polls<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let (mut future, mut left) = (pin!(future), polls);
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
