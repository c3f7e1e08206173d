//! [`AppError`]: what a handler answers when it fails.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use sea_orm::DbErr;

/// A status, and the cause for the log.
#[derive(Debug)]
pub struct AppError(StatusCode);

impl AppError {
    pub const NOT_FOUND: Self = Self(StatusCode::NOT_FOUND);
}

impl From<DbErr> for AppError {
    fn from(error: DbErr) -> Self {
        let known = tower_sea_orm::Error::of(&error);
        Self(known.map_or(StatusCode::INTERNAL_SERVER_ERROR, |known| known.status()))
    }
}

impl From<sqlx::Error> for AppError {
    fn from(error: sqlx::Error) -> Self {
        Self(match error {
            sqlx::Error::RowNotFound => StatusCode::NOT_FOUND,
            sqlx::Error::PoolTimedOut => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        })
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}
