//! What the requests do, on anything that SeaORM runs statements on: so that peers can do the same.

use std::{pin::pin, time::Duration};

use futures_util::TryStreamExt;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, StreamTrait, TransactionTrait, Value};

use super::{ledger::Ledger, witness::Witness};

/// What all requests of one service have in common.
#[derive(Debug, Default)]
pub struct Court {
    pub ledger: Ledger,
    pub witness: Witness,
    /// Whether every request is in a transaction, as the layer says.
    pub in_transaction: bool,
}

/// How many rows a stream has.
pub const STREAMED: i64 = 6;

/// The kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two reads, each for itself.
    Read,
    /// A read and a write of both rows in one statement, each for itself.
    Write,
    /// Both rows, one after the other, in a transaction.
    Transaction,
    /// A savepoint rolled back and one released, in a transaction.
    Nested,
    /// A stream of rows, read to its end.
    Stream,
    /// Both rows in a transaction that is committed before the answer, and a read after it.
    Early,
    /// Both rows in a transaction that the answer's body reads them in, and that is committed at its end.
    Held,
    /// Both rows in a transaction, with a failed statement between them that the handler does not mind. Where
    /// the server does, the answer must not be a success.
    Swallow,
    /// Both rows in a transaction whose handle a task keeps for a while after the answer.
    Stray,
    /// A unique violation of its own.
    Clash,
    /// One row of a statement that fails after it.
    Late,
    /// A slow read.
    Slow,
    /// One row, then a statement that times out, in a transaction.
    Timeout,
    /// One row in a transaction, then a panic.
    Panic,
}

/// How long a slow read takes.
pub fn slowness(number: i64) -> Duration {
    Duration::from_millis(number as u64 % 40)
}

impl Kind {
    /// Those whose conversations are broken at every message.
    pub const CONVERSATIONS: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Transaction,
        Self::Nested,
        Self::Stream,
        Self::Early,
        Self::Held,
    ];

    pub fn path(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Transaction => "transaction",
            Self::Nested => "nested",
            Self::Stream => "stream",
            Self::Early => "early",
            Self::Held => "held",
            Self::Swallow => "swallow",
            Self::Stray => "stray",
            Self::Clash => "clash",
            Self::Late => "late",
            Self::Slow => "slow",
            Self::Timeout => "timeout",
            Self::Panic => "panic",
        }
    }

    /// Whether a success means that both rows are there.
    pub fn writes(self) -> bool {
        self == Self::Write || self == Self::Early || self.is_transaction() && !self.always_fails()
    }

    /// Whether it writes, and no answer can be a success.
    pub fn always_fails(self) -> bool {
        matches!(self, Self::Timeout | Self::Panic)
    }

    /// Whether nothing of it may ever be there if its handler answers with `status`.
    pub fn is_doomed(self, status: u16) -> bool {
        self.always_fails() || self.is_transaction() && status >= 400
    }

    /// Whether all of it is in one transaction that the answer decides.
    pub fn is_transaction(self) -> bool {
        matches!(
            self,
            Self::Transaction
                | Self::Nested
                | Self::Held
                | Self::Swallow
                | Self::Stray
                | Self::Timeout
                | Self::Panic
        )
    }
}

impl Court {
    pub async fn read<C: ConnectionTrait>(&self, db: &C, number: i64) -> Result<(), DbErr> {
        self.expect_nobody(db, number).await?;
        db.query_all_raw(with(
            db,
            "SELECT half FROM ledger WHERE number = ?",
            [number.into()],
        ))
        .await
        .map(drop)
    }

    pub async fn write<C: ConnectionTrait>(&self, db: &C, number: i64) -> Result<(), DbErr> {
        self.expect_nobody(db, number).await?;
        let sql = "INSERT INTO ledger VALUES (?, 1), (?, 2)";
        db.execute_raw(with(db, sql, [number.into(), number.into()]))
            .await
            .map(drop)
    }

    /// In a transaction.
    pub async fn transact<C: ConnectionTrait>(&self, tx: &C, number: i64) -> Result<(), DbErr> {
        self.mark(tx, number).await?;
        insert(tx, number, 1).await?;
        self.expect_mark(tx, number).await?;
        insert(tx, number, 2).await
    }

    /// In a transaction.
    pub async fn swallow<C: ConnectionTrait>(&self, tx: &C, number: i64) -> Result<(), DbErr> {
        insert(tx, number, 1).await?;
        let _ = insert(tx, number, 1).await;
        let second = insert(tx, number, 2).await;
        // Only PostgreSQL gives the transaction up after an error. Elsewhere it goes on, and a handler that
        // swallowed this one would ask for half of its work.
        if tx.get_database_backend() == DbBackend::Postgres {
            Ok(())
        } else {
            second
        }
    }

    /// In a transaction.
    pub async fn nest<C: ConnectionTrait + TransactionTrait>(
        &self,
        tx: &C,
        number: i64,
    ) -> Result<(), DbErr> {
        self.mark(tx, number).await?;
        insert(tx, number, 1).await?;
        let inner = tx.begin().await?;
        insert(&inner, number, 3).await?;
        sea_orm::TransactionSession::rollback(inner).await?;
        let inner = tx.begin().await?;
        insert(&inner, number, 2).await?;
        sea_orm::TransactionSession::commit(inner).await?;
        self.expect_mark(tx, number).await
    }

    pub async fn stream<C: ConnectionTrait + StreamTrait>(
        &self,
        db: &C,
        number: i64,
    ) -> Result<(), DbErr> {
        self.expect_nobody(db, number).await?;
        let sql = format!(
            "WITH RECURSIVE row_of (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM row_of WHERE n < {STREAMED}) \
             SELECT n, '{}' AS filling FROM row_of",
            "-".repeat(100)
        );
        let statement = Statement::from_string(ConnectionTrait::get_database_backend(db), sql);
        let rows: Vec<_> = db.stream_raw(statement).await?.try_collect().await?;
        if rows.len() as i64 != STREAMED {
            return Err(DbErr::Custom(format!("{} rows of {STREAMED}", rows.len())));
        }
        Ok(())
    }

    /// Always an error: that of its own number.
    pub async fn clash<C: ConnectionTrait>(&self, db: &C, number: i64) -> Result<(), DbErr> {
        for _ in 0..2 {
            db.execute_raw(with(db, "INSERT INTO clash VALUES (?)", [number.into()]))
                .await?;
        }
        Ok(())
    }

    /// What is wrong with a later row is nobody's business, least of all another request's.
    pub async fn late<C: ConnectionTrait + StreamTrait>(
        &self,
        db: &C,
        _: i64,
    ) -> Result<(), DbErr> {
        let backend = ConnectionTrait::get_database_backend(db);
        let sql = match backend {
            DbBackend::Postgres => "SELECT 1 / (1000 - n) FROM generate_series(1, 1000) AS n",
            _ => {
                "SELECT exp(500 * n) FROM (SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3) AS numbers"
            }
        };
        let statement = Statement::from_string(backend, sql);
        if backend == DbBackend::Postgres {
            // sqlx reads on after the only row that is asked for, but not after a stream's first ones.
            return pin!(db.stream_raw(statement).await?)
                .try_next()
                .await
                .map(drop);
        }
        db.query_one_raw(statement).await.map(drop)
    }

    pub async fn slow<C: ConnectionTrait>(&self, db: &C, number: i64) -> Result<(), DbErr> {
        let sql = match db.get_database_backend() {
            DbBackend::Postgres => "SELECT pg_sleep(?)",
            _ => "SELECT SLEEP(?)",
        };
        db.query_all_raw(with(db, sql, [slowness(number).as_secs_f64().into()]))
            .await
            .map(drop)
    }

    /// In a transaction. Always an error.
    pub async fn time_out<C: ConnectionTrait>(&self, tx: &C, number: i64) -> Result<(), DbErr> {
        insert(tx, number, 1).await?;
        match tx.get_database_backend() {
            DbBackend::Postgres => {
                tx.execute_unprepared("SET LOCAL statement_timeout = 20")
                    .await?;
                tx.execute_unprepared("SELECT pg_sleep(5)").await?;
            }
            _ => {
                let sql = "SET STATEMENT max_statement_time = 0.02 FOR SELECT count(*) FROM \
                           information_schema.columns a, information_schema.columns b, information_schema.columns c";
                tx.execute_unprepared(sql).await?;
            }
        }
        Ok(())
    }

    /// Marks the transaction as this request's.
    async fn mark<C: ConnectionTrait>(&self, tx: &C, number: i64) -> Result<(), DbErr> {
        let sql = match tx.get_database_backend() {
            DbBackend::Postgres => "SELECT set_config('app.req', ?, true)",
            _ => "SET @req = ?",
        };
        tx.execute_raw(with(tx, sql, [number.to_string().into()]))
            .await
            .map(drop)
    }

    async fn expect_mark<C: ConnectionTrait>(&self, tx: &C, number: i64) -> Result<(), DbErr> {
        let (sql, expected) = match tx.get_database_backend() {
            DbBackend::Postgres => (
                "SELECT current_setting('app.req', true)",
                number.to_string(),
            ),
            // MariaDB alone reads what is in such a comment, and MySQL cannot be asked.
            _ => (
                "SELECT concat(@req, '/', coalesce(/*M! @@in_transaction, */ 1))",
                format!("{number}/1"),
            ),
        };
        self.witness
            .compare(number, &expected, &text(tx, sql).await?);
        Ok(())
    }

    /// In no transaction that somebody has marked.
    async fn expect_nobody<C: ConnectionTrait>(&self, db: &C, number: i64) -> Result<(), DbErr> {
        let (sql, expected) = match db.get_database_backend() {
            DbBackend::Postgres => ("SELECT coalesce(current_setting('app.req', true), '')", ""),
            _ if self.in_transaction => (
                "SELECT concat(coalesce(/*M! @@in_transaction, */ 1), '')",
                "1",
            ),
            _ => (
                "SELECT concat(coalesce(/*M! @@in_transaction, */ 0), '')",
                "0",
            ),
        };
        self.witness
            .compare(number, expected, &text(db, sql).await?);
        Ok(())
    }
}

async fn insert<C: ConnectionTrait>(db: &C, number: i64, half: i32) -> Result<(), DbErr> {
    db.execute_raw(with(
        db,
        "INSERT INTO ledger VALUES (?, ?)",
        [number.into(), half.into()],
    ))
    .await
    .map(drop)
}

/// A statement with values, its `?` in the dialect's own words.
fn with<C: ConnectionTrait, const N: usize>(db: &C, sql: &str, values: [Value; N]) -> Statement {
    let backend = db.get_database_backend();
    if backend != DbBackend::Postgres {
        return Statement::from_sql_and_values(backend, sql, values);
    }
    let mut words = sql.split('?');
    let mut numbered = words.next().unwrap_or_default().to_owned();
    for (index, rest) in words.enumerate() {
        numbered += &format!("${}{rest}", index + 1);
    }
    Statement::from_sql_and_values(backend, numbered, values)
}

async fn text<C: ConnectionTrait>(db: &C, sql: &str) -> Result<String, DbErr> {
    let row = db
        .query_one_raw(Statement::from_string(db.get_database_backend(), sql))
        .await?;
    let row = row.ok_or_else(|| DbErr::Custom("no row".to_owned()))?;
    row.try_get_by_index(0)
}
