//! What is allocated for each request and each statement.

use sea_orm::{ConnectionTrait, DbBackend, MockDatabase, Statement};

use super::{core::Core, db_session::DbSession};
use crate::{connection::Task, pool::CheckedOut};

/// The largest block that glibc's allocator keeps at hand for the next one of
/// its size (the thread local cache in
/// <https://sourceware.org/glibc/wiki/MallocInternals>). A larger one costs several
/// hundred instructions more.
const KEPT_AT_HAND: usize = 1032;

fn size_of_future<A, B, F: Future>(_: impl FnOnce(A, B) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_call_is_small() {
    let size = size_of_future(|connection: CheckedOut, task: Task| connection.call(task));
    assert!(size <= KEPT_AT_HAND, "{size} bytes");
}

#[test]
fn a_session_is_small() {
    // With the two counts of its `Arc`.
    let size = size_of::<Core>() + 2 * size_of::<usize>();
    assert!(size <= KEPT_AT_HAND, "{size} bytes");
}

#[test]
fn the_future_of_a_statement_is_small() {
    let database = MockDatabase::new(DbBackend::Postgres).into_connection();
    let session = DbSession::from(database);
    let statement = Statement::from_string(DbBackend::Postgres, "SELECT 1");
    let size = size_of_val(&*session.query_one_raw(statement));
    assert!(size <= KEPT_AT_HAND, "{size} bytes");
}
