//! Handlers, requests and what is asserted of their answers.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::Path,
    response::{IntoResponse, Response},
};
use http::{Request, StatusCode};
use sea_orm::{ConnectionTrait, DbErr};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, Error, PoolSession};

use super::{
    database::TestDb,
    pool::{layer_with, opened},
};

/// A handler's failure: a driver's own error is 418, to be told from the layer's answers.
#[derive(Debug)]
pub struct Failed(pub DbErr);

impl From<DbErr> for Failed {
    fn from(error: DbErr) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = Error::of(&self.0).map_or(StatusCode::IM_A_TEAPOT, |error| error.status());
        (status, self.0.to_string()).into_response()
    }
}

/// A handler that writes one row, outside a transaction.
pub async fn write(session: DbSession, Path(name): Path<String>) -> Result<(), Failed> {
    let sql = format!("INSERT INTO item (name) VALUES ('{name}')");
    session.execute_unprepared(&sql).await?;
    Ok(())
}

/// The answer of `app` to a GET of `uri`.
pub async fn send(app: &Router, uri: &str) -> Response {
    send_owned(app.clone(), uri).await
}

pub fn send_owned(app: Router, uri: &str) -> impl Future<Output = Response> + Send + use<> {
    let request = Request::get(uri).body(Body::empty()).unwrap();
    async move {
        match app.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// The text of a response's body.
pub async fn text(response: Response) -> String {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

/// Asserts that the crate refused, and why.
#[track_caller]
pub fn assert_wrong_handle<T>(result: Result<T, DbErr>) {
    let Err(error) = result else {
        panic!("not refused")
    };
    let known = Error::of(&error).unwrap_or_else(|| panic!("another error: {error}"));
    assert!(known.is_wrong_handle(), "another error: {known}");
}

/// A `release_timeout` that a test can wait for.
pub const RELEASE: Duration = Duration::from_millis(500);

/// A second database's tag.
pub enum Analytics {}

/// An error that only the service itself has.
#[derive(Debug, PartialEq)]
pub struct Own(pub u32);

/// A layer whose only connection is held, and its holder.
pub async fn exhausted(test: &TestDb) -> (DbSessionLayer, PoolSession) {
    let layer = layer_with(&test.connect(1).await, |pool| {
        pool.acquire_timeout(Duration::from_secs(1))
    });
    let holder = opened(layer.pool()).await;
    (layer, holder)
}

pub fn request() -> Request<Body> {
    Request::new(Body::empty())
}

pub fn status<T>(result: Result<T, DbErr>) -> StatusCode {
    if result.is_ok() {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}
