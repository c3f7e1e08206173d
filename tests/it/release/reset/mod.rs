//! G13: a session's changes to its connection are gone before the next session gets it.

mod configured;
mod cost;
mod leaks;
mod storm;

use sea_orm::{ConnectionTrait, Statement};

use self::leaks::Leak;
use crate::support::{database::Kind, pool::returned};

/// Returns a query's result as a text, or that it failed.
async fn look<C: ConnectionTrait>(db: &C, sql: &str) -> String {
    let row = db
        .query_one_raw(Statement::from_string(db.get_database_backend(), sql))
        .await;
    match row {
        Ok(Some(row)) => row
            .try_get_by_index::<Option<String>>(0)
            .expect("a text")
            .unwrap_or_else(|| "null".to_owned()),
        Ok(None) => "nothing".to_owned(),
        Err(_) => "an error".to_owned(),
    }
}

/// The connection's number on its server. For a SQLite connection there is none that changes nothing.
async fn connection<C: ConnectionTrait>(kind: Kind, db: &C) -> String {
    match kind {
        Kind::Postgres => look(db, "SELECT pg_backend_pid()::text").await,
        Kind::MySql => look(db, "SELECT CAST(CONNECTION_ID() AS CHAR)").await,
        _ => String::new(),
    }
}
