//! The savepoint around code that cannot be looked into, such as raw code or a `CALL`. Its absence afterwards gives
//! away that the transaction around it was ended.

use sea_orm::DbErr;

use super::link::Link;

const GUARD: &str = "tower_sea_orm_guard";

pub(super) async fn set(link: &mut Link) -> Result<(), DbErr> {
    link.run(format!("SAVEPOINT {GUARD}")).await
}

pub(super) async fn release(link: &mut Link) -> Result<(), DbErr> {
    link.run(format!("RELEASE SAVEPOINT {GUARD}")).await
}

/// Rolls back to the savepoint, and releases it.
pub(super) async fn undo(link: &mut Link) -> Result<(), DbErr> {
    link.run(format!("ROLLBACK TO SAVEPOINT {GUARD}")).await?;
    release(link).await
}
