//! G5, G16: a session's future that is dropped at any poll costs its own work and nothing else.
//! The request goes on, the locks are free, and what was reported stands.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::Poll,
};

use futures_util::StreamExt;
use http::StatusCode;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbErr, Statement, StreamTrait, TransactionError,
    TransactionTrait,
};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbTx, SessionTransaction};

use crate::support::{
    database::{Kind, TestDb, unique_name},
    site::{BOUND, DEFERRING, SIZE, Site, call, outcome, violate},
    wait::eventually,
};

/// The code around the work that is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    /// Nothing: what it begins is a transaction of its own.
    Autocommit,
    /// A transaction that the handler began.
    Begun,
    /// The layer's transaction, which begins with the work.
    Layer,
    /// The transaction of a `DbTx`, in which something has been done.
    Argument,
    /// The transaction of `pool.transaction`.
    Job,
}

/// The work that is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Everything that a transaction can do, then `commit()`.
    Commit,
    RollBack,
    /// The handle goes out of scope.
    Leave,
    /// Statements without a transaction of their own.
    Statements,
    /// Ends the session's own transaction.
    EarlyCommit,
    EarlyRollBack,
}

/// How it is dropped.
#[derive(Clone, Copy, Debug)]
struct Cut {
    polls: u32,
    /// Not at once, but when what it waits for is there.
    late: bool,
    /// Each step has to wait for a statement that was dropped before.
    contended: bool,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    around: Around,
    work: Work,
    cut: Cut,
    /// The handler does more before it answers.
    goes_on: bool,
    status: u16,
}

impl Around {
    fn works(self) -> &'static [Work] {
        match self {
            Self::Autocommit => &[Work::Commit, Work::RollBack, Work::Leave, Work::Statements],
            Self::Begun => &[Work::Commit, Work::RollBack, Work::Leave],
            Self::Job => &[Work::Leave, Work::EarlyCommit],
            Self::Layer | Self::Argument => &[
                Work::Commit,
                Work::RollBack,
                Work::Leave,
                Work::Statements,
                Work::EarlyCommit,
                Work::EarlyRollBack,
            ],
        }
    }
}

/// How far the work has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Waiting,
    /// The first row's statement has been polled.
    First,
    /// The second row's statement has been polled.
    Second,
    /// The end has been polled.
    Ending,
    Ended,
}

/// The reports that a case gets, and the names of its rows.
#[derive(Clone)]
struct Notes {
    stage: Arc<AtomicU8>,
    prefix: String,
}

impl Notes {
    fn new() -> Self {
        Self {
            stage: Arc::new(AtomicU8::new(0)),
            prefix: unique_name(),
        }
    }

    fn reach(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::SeqCst);
    }

    fn stage(&self) -> Stage {
        let stages = [
            Stage::Waiting,
            Stage::First,
            Stage::Second,
            Stage::Ending,
            Stage::Ended,
        ];
        stages[usize::from(self.stage.load(Ordering::SeqCst))]
    }

    fn insert(&self, name: &str) -> String {
        format!("INSERT INTO item (name) VALUES ('{}_{name}')", self.prefix)
    }
}

/// Takes the lock that others want as well.
const LOCK: &str = "UPDATE item SET hits = hits + 1 WHERE name = 'locked'";

fn rows(kind: Kind) -> Statement {
    let sql = match kind {
        Kind::Postgres => "SELECT pg_sleep(0.001), i FROM generate_series(1, 3) AS t (i)",
        Kind::MySql => {
            "SELECT SLEEP(0.001), n FROM (SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3) AS numbers"
        }
        _ => {
            "WITH RECURSIVE t (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t WHERE i < 300) SELECT i FROM t"
        }
    };
    Statement::from_string(kind.backend(), sql)
}

impl Case {
    /// Leaves a statement behind for which the next one has to wait.
    async fn contend(&self, db: &impl ConnectionTrait) {
        if self.cut.contended {
            let mut left = pin!(db.query_all_raw(rows(self.kind)));
            let _ = futures_util::poll!(left.as_mut());
        }
    }

    /// A nested transaction, to its end.
    async fn transact<C>(&self, db: &C, notes: &Notes) -> Result<(), DbErr>
    where
        C: ConnectionTrait + TransactionTrait<Transaction = SessionTransaction>,
    {
        self.contend(db).await;
        let tx = db.begin().await?;
        self.contend(&tx).await;
        notes.reach(Stage::First);
        tx.execute_unprepared(&notes.insert("first")).await?;
        tx.execute_unprepared(LOCK).await?;
        self.contend(&tx).await;
        if self.work == Work::Commit {
            let mut stream = tx.stream_raw(rows(self.kind)).await?;
            while let Some(row) = stream.next().await {
                row?;
            }
            drop(stream);
            tx.query_one_raw(rows(self.kind)).await?;
        }
        notes.reach(Stage::Second);
        tx.execute_unprepared(&notes.insert("second")).await?;
        self.contend(&tx).await;
        notes.reach(Stage::Ending);
        match self.work {
            Work::Commit => tx.commit().await?,
            Work::RollBack => tx.rollback().await?,
            _ => drop(tx),
        }
        notes.reach(Stage::Ended);
        Ok(())
    }

    /// Statements of the session itself, and perhaps the end of its transaction.
    async fn state(&self, db: &DbSession, notes: &Notes) -> Result<(), DbErr> {
        self.contend(db).await;
        notes.reach(Stage::First);
        db.execute_unprepared(&notes.insert("first")).await?;
        self.contend(db).await;
        notes.reach(Stage::Second);
        db.execute_unprepared(&notes.insert("second")).await?;
        if self.work != Work::Statements {
            db.execute_unprepared(LOCK).await?;
            self.contend(db).await;
            notes.reach(Stage::Ending);
            if self.work == Work::EarlyCommit {
                db.commit().await?
            } else {
                db.rollback().await?
            }
        }
        notes.reach(Stage::Ended);
        Ok(())
    }

    /// The handler.
    async fn serve(self, db: &DbSession, other: Option<&DatabaseConnection>, notes: &Notes) {
        if self.around != Around::Layer {
            db.execute_unprepared(&notes.insert("before"))
                .await
                .unwrap();
        }
        if self.around != Around::Begun {
            let done = match self.work {
                Work::Commit | Work::RollBack | Work::Leave => {
                    self.cut.short(self.transact(db, notes)).await
                }
                _ => self.cut.short(self.state(db, notes)).await,
            };
            done.unwrap_or(Ok(())).unwrap();
            return self.go_on(db, other, notes).await;
        }
        let outer = db.begin().await.unwrap();
        outer
            .execute_unprepared(&notes.insert("around"))
            .await
            .unwrap();
        self.cut
            .short(self.transact(&outer, notes))
            .await
            .unwrap_or(Ok(()))
            .unwrap();
        self.go_on(&outer, other, notes).await;
        if self.status == 200 {
            outer.commit().await.unwrap()
        } else {
            outer.rollback().await.unwrap()
        }
    }

    /// Others get the lock although the session is not used.
    async fn look(&self, other: Option<&DatabaseConnection>, notes: &Notes) {
        let Some(other) = other.filter(|_| self.is_unlocked(notes.stage())) else {
            return;
        };
        let locked = timeout(BOUND / 3, other.execute_unprepared(LOCK)).await;
        locked
            .unwrap_or_else(|_| panic!("locked: {self:?} {:?}", notes.stage()))
            .unwrap();
    }

    fn is_unlocked(&self, stage: Stage) -> bool {
        let nests = matches!(self.work, Work::Commit | Work::RollBack | Work::Leave);
        match self.around {
            Around::Autocommit => true,
            // A lock on a file is the whole transaction's.
            _ if self.kind == Kind::SqliteFile && nests => false,
            // InnoDB keeps what a savepoint has locked, PostgreSQL what a released one has.
            _ if nests => {
                self.kind == Kind::Postgres && (stage < Stage::Ending || self.work != Work::Commit)
            }
            _ if self.work == Work::Statements => self.kind != Kind::SqliteFile,
            _ => stage == Stage::Ended || stage == Stage::Ending && !self.cut.contended,
        }
    }

    async fn go_on<C>(&self, db: &C, other: Option<&DatabaseConnection>, notes: &Notes)
    where
        C: ConnectionTrait + TransactionTrait<Transaction = SessionTransaction>,
    {
        if !self.goes_on {
            return;
        }
        self.look(other, notes).await;
        let what = |error| panic!("{error}: {self:?} {:?}", notes.stage());
        db.execute_unprepared(&notes.insert("after"))
            .await
            .map(drop)
            .unwrap_or_else(what);
        let again = db
            .begin()
            .await
            .unwrap_or_else(|error| panic!("{error}: {self:?} {:?}", notes.stage()));
        again
            .execute_unprepared(&notes.insert("again"))
            .await
            .map(drop)
            .unwrap_or_else(what);
        again.commit().await.unwrap_or_else(what);
    }

    /// Checks that the reports to the client and the handler agree with what others see.
    fn judge(&self, notes: &Notes, seen: &[String]) {
        let stage = notes.stage();
        let is_there = |name: &str| seen.contains(&format!("{}_{name}", notes.prefix));
        let stands = self.status == 200;
        let what = format!("{self:?} {stage:?} {seen:?}");
        let has_ended = |work| {
            self.work == work && stage >= Stage::Ending && !self.cut.contended
                || stage == Stage::Ended
        };
        let own = matches!(self.around, Around::Layer | Around::Argument | Around::Job);
        if self.work == Work::EarlyCommit && (stage == Stage::Ended || has_ended(Work::EarlyCommit))
        {
            assert!(is_there("first") && is_there("second"), "{what}");
            assert_eq!(is_there("before"), self.around != Around::Layer, "{what}");
        } else if self.work == Work::EarlyRollBack && has_ended(Work::EarlyRollBack) {
            assert!(
                !is_there("first") && !is_there("second") && !is_there("before"),
                "{what}"
            );
        }
        let kept = stands || !own && self.around != Around::Begun;
        let more = kept && self.goes_on;
        assert_eq!(
            (is_there("after"), is_there("again")),
            (more, more),
            "{what}"
        );
        match self.work {
            Work::EarlyCommit | Work::EarlyRollBack if stage < Stage::Ending => {
                assert_eq!(
                    is_there("before"),
                    stands && self.around != Around::Layer,
                    "{what}"
                );
                assert!(
                    stands || !is_there("first") && !is_there("second"),
                    "{what}"
                );
            }
            Work::EarlyCommit | Work::EarlyRollBack => {
                assert_eq!(is_there("first"), is_there("second"), "{what}")
            }
            Work::Statements => {
                // What was sent is seen through.
                let sent = |of| kept && stage >= of && !self.cut.contended || kept && stage > of;
                assert!(is_there("first") || !sent(Stage::First), "{what}");
                assert!(is_there("second") || !sent(Stage::Second), "{what}");
                assert!(kept || !is_there("first") && !is_there("second"), "{what}");
            }
            _ => {
                assert_eq!(is_there("first"), is_there("second"), "{what}");
                let committed = self.work == Work::Commit && kept && has_ended(Work::Commit);
                let open = self.work == Work::Commit
                    && kept
                    && stage == Stage::Ending
                    && self.cut.contended;
                assert!(open || is_there("first") == committed, "{what}");
            }
        }
        if !matches!(self.work, Work::EarlyCommit | Work::EarlyRollBack)
            && self.around != Around::Layer
        {
            assert_eq!(is_there("before"), stands || !own, "{what}");
        }
    }
}

impl Cut {
    /// Returns the output of `work`, unless it is dropped before.
    async fn short<F: Future>(self, work: F) -> Option<F::Output> {
        let (mut work, mut polls) = (pin!(work), 0);
        std::future::poll_fn(|cx| {
            if polls == self.polls {
                return Poll::Ready(None);
            }
            polls += 1;
            match work.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if polls == self.polls && !self.late => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// A request of this case; whether its work came to its end.
async fn ask(site: &Site, case: Case) -> bool {
    let notes = Notes::new();
    let (other, status) = (
        site.observer.clone(),
        StatusCode::from_u16(case.status).unwrap(),
    );
    let at_work = notes.clone();
    let response = match case.around {
        Around::Autocommit | Around::Begun => {
            let serving =
                async move |db: DbSession| case.serve(&db, other.as_ref(), &at_work).await;
            site.call(async move |db: DbSession| {
                serving(db).await;
                status
            })
            .await
        }
        Around::Argument => {
            site.call(async move |tx: DbTx| {
                case.serve(&tx, other.as_ref(), &at_work).await;
                status
            })
            .await
        }
        Around::Layer => {
            let serving = async move |db: DbSession| {
                case.serve(&db, other.as_ref(), &at_work).await;
                status
            };
            let app = axum::Router::new()
                .fallback(serving)
                .layer(site.layer.clone().transaction());
            call(app).await
        }
        Around::Job => {
            work(site, case, other, &at_work).await;
            judge(site, case, &notes).await;
            return notes.stage() == Stage::Ended;
        }
    };
    assert_eq!(response.status(), status, "{case:?} {:?}", notes.stage());
    if !matches!(case.around, Around::Autocommit | Around::Begun) {
        let outcome = outcome(&response);
        let may_be = case.around == Around::Layer || case.work == Work::EarlyRollBack;
        let untouched = outcome.is_untouched() && may_be && !case.goes_on;
        assert!(
            untouched
                || if case.status == 200 {
                    outcome.is_committed()
                } else {
                    outcome.is_rolled_back()
                },
            "{case:?} {outcome:?}"
        );
    }
    judge(site, case, &notes).await;
    notes.stage() == Stage::Ended
}

async fn work(site: &Site, case: Case, other: Option<DatabaseConnection>, notes: &Notes) {
    let working = site.layer.pool().transaction(async |tx| {
        case.serve(tx, other.as_ref(), notes).await;
        if case.status == 200 {
            Ok(())
        } else {
            Err("no")
        }
    });
    match timeout(BOUND, working).await.expect("an end, not a hang") {
        Ok(()) => assert_eq!(case.status, 200, "{case:?}"),
        Err(TransactionError::Transaction(_)) => assert_ne!(case.status, 200, "{case:?}"),
        Err(error) => panic!("{error}: {case:?} {:?}", notes.stage()),
    }
}

async fn judge(site: &Site, case: Case, notes: &Notes) {
    // What was sent is seen through, also after the answer.
    eventually("the connection is back", async || {
        site.layer.pool().status().used == 0
    })
    .await;
    let sql = format!("SELECT name FROM item WHERE name LIKE '{}%'", notes.prefix);
    let rows = site
        .view()
        .query_all_raw(Statement::from_string(case.kind.backend(), sql))
        .await
        .unwrap();
    let seen: Vec<String> = rows
        .iter()
        .map(|row| row.try_get_by_index(0).unwrap())
        .collect();
    case.judge(notes, &seen);
}

/// Drops each work at each of its polls.
async fn drop_everywhere(kind: Kind) {
    use Around::*;
    let test = TestDb::new(kind).await;
    let db = test.connect(SIZE).await;
    let site = Site::with(test, db, SIZE).await;
    site.run("INSERT INTO item (name) VALUES ('locked')").await;
    for around in [Autocommit, Begun, Layer, Argument, Job] {
        for &work in around.works() {
            // Whether each step has to wait, whether it is dropped late, whether the handler goes on, its answer.
            let ways = [
                (false, false, true, 200),
                (false, false, false, 200),
                (false, false, true, 409),
                (false, true, true, 200),
                (true, false, true, 200),
                (true, false, false, 200),
            ];
            for (contended, late, goes_on, status) in ways {
                let case = |polls| Case {
                    kind,
                    around,
                    work,
                    cut: Cut {
                        polls,
                        late,
                        contended,
                    },
                    goes_on,
                    status,
                };
                let mut polls = 1;
                while !ask(&site, case(polls)).await {
                    polls += 1;
                }
            }
        }
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn a_dropped_future_costs_only_its_own_work_on_postgres() {
    drop_everywhere(Kind::Postgres).await;
}

#[tokio::test]
async fn a_dropped_future_costs_only_its_own_work_on_mysql() {
    drop_everywhere(Kind::MySql).await;
}

#[tokio::test]
async fn a_dropped_future_costs_only_its_own_work_on_a_sqlite_file() {
    drop_everywhere(Kind::SqliteFile).await;
}

#[tokio::test]
async fn a_dropped_future_costs_only_its_own_work_in_memory() {
    drop_everywhere(Kind::SqliteMemory).await;
}

#[tokio::test]
async fn a_dropped_commit_that_the_server_refuses_is_reported() {
    for kind in DEFERRING {
        let site = Site::new(kind).await;
        site.defer().await;
        for late in [false, true] {
            for polls in 1.. {
                let cut = Cut {
                    polls,
                    late,
                    contended: false,
                };
                let response = site
                    .call(async move |tx: DbTx| {
                        violate(&tx).await;
                        let heard = cut.short(tx.commit()).await;
                        // It may be told here as well.
                        let _ = tx.execute_unprepared("UPDATE item SET hits = 1").await;
                        if heard.is_some_and(|committed| committed.is_err()) {
                            StatusCode::CREATED
                        } else {
                            StatusCode::OK
                        }
                    })
                    .await;
                if response.status() == StatusCode::CREATED {
                    break;
                }
                assert_eq!(
                    response.status(),
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "{kind:?} {cut:?}"
                );
                assert!(
                    outcome(&response).error().unwrap().is_commit_failed(),
                    "{kind:?} {cut:?}"
                );
            }
        }
        site.assert_whole().await;
    }
}
