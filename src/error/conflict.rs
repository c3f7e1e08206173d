//! The server's errors that running the transaction again may cure.

use super::Kind;

/// The conflict that `error` tells of, if it is one.
pub(super) fn conflict(error: &dyn sqlx_core::error::DatabaseError) -> Option<Kind> {
    #[cfg(feature = "sqlx-mysql")]
    if let Some(error) = error.try_downcast_ref::<sea_orm::SqlxMySqlError>() {
        return match error.number() {
            1020 => Some(Kind::Serialization),
            1213 => Some(Kind::Deadlock),
            1205 => Some(Kind::LockTimeout),
            _ => None,
        };
    }
    #[cfg(feature = "sqlx-sqlite")]
    if error.try_downcast_ref::<sea_orm::SqlxSqliteError>().is_some() {
        // The low byte is SQLite's primary result code; 5 is SQLITE_BUSY.
        let code: i32 = error.code()?.parse().ok()?;
        return (code & 0xff == 5).then_some(Kind::LockTimeout);
    }
    match error.code()?.as_ref() {
        "40001" => Some(Kind::Serialization),
        "40P01" => Some(Kind::Deadlock),
        _ => None,
    }
}
