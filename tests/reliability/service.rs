//! The service that is broken, built on this crate; and what its answers mean.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    middleware::map_response,
    response::Response,
    routing::{MethodRouter, any},
};
use futures_util::StreamExt;
use http::{Request, StatusCode};
use sea_orm::{DbErr, Statement};
use tower_http::catch_panic::CatchPanicLayer;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Outcome};

use super::{
    ledger::Note,
    witness::Provokes,
    work::{Court, Kind},
};

/// Set by a handler on its own answers.
pub const BY_HANDLER: &str = "x-handler";

/// What became of the request's transaction, if it had one.
pub const OUTCOME: &str = "x-outcome";

/// Set by the client on an answer whose body broke off.
pub const BROKEN: &str = "x-broken";

/// What panics on purpose say.
pub const ON_PURPOSE: &str = "on purpose";

type Court_ = State<Arc<Court>>;

/// The service: `/KIND/NUMBER/STATUS` does the work and, if that succeeds, answers with the status.
pub fn app(layer: DbSessionLayer, court: Arc<Court>) -> Router {
    let route = |kind: Kind| format!("/{}/{{number}}/{{status}}", kind.path());
    let mut router = Router::new();
    for (kind, handler) in handlers() {
        router = router.route(&route(kind), handler);
    }
    router
        .route(&route(Kind::Panic), any(panicking))
        .route(&route(Kind::Held), any(held))
        .route(&route(Kind::Stray), any(stray))
        .route("/upload/{number}/{status}", any(upload))
        .route("/download/{number}/{status}", any(download))
        .layer(layer)
        .layer(map_response(tell_outcome))
        .layer(CatchPanicLayer::new())
        .with_state(court)
}

/// A request to the service.
pub fn request(kind: Kind, number: i64, status: u16) -> Request<Body> {
    let uri = format!("/{}/{number}/{status}", kind.path());
    Request::post(uri).body(Body::empty()).expect("a request")
}

/// What an answer tells its client about the rows. Where this layer says what became of the transaction, it
/// is taken at its word; other services are believed that a handler's own error rolls back.
pub fn meaning<B>(kind: Kind, response: &http::Response<B>) -> Note {
    let said = |name| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let succeeded = response.status().as_u16() < 400;
    if !kind.writes() && !kind.always_fails() {
        return Note::Read;
    }
    match said(OUTCOME) {
        _ if said(BROKEN).is_some() => Note::Unknown,
        _ if succeeded => Note::Acknowledged,
        Some("unknown") => Note::Unknown,
        // What was committed early stands; the handler has noted it.
        _ if kind == Kind::Early => Note::Unknown,
        Some("rolled back" | "untouched" | "failed") => Note::RolledBack,
        // No connection was to be had, so nothing ran.
        _ if response.status() == StatusCode::SERVICE_UNAVAILABLE => Note::RolledBack,
        _ if kind.is_transaction() && said(BY_HANDLER).is_some() => Note::RolledBack,
        _ => Note::Unknown,
    }
}

fn handlers() -> [(Kind, MethodRouter<Arc<Court>>); 11] {
    macro_rules! handler {
        ($db:ident: $Db:ty, $provokes:expr, $method:ident) => {
            any(
                async |$db: $Db, State(court): Court_, Path((number, status)): Path<(i64, u16)>| {
                    let done = court.$method(&$db, number).await;
                    answer(&court, number, status, $provokes, done)
                },
            )
        };
    }
    [
        (Kind::Read, handler!(db: DbSession, Provokes::Nothing, read)),
        (
            Kind::Write,
            handler!(db: DbSession, Provokes::Nothing, write),
        ),
        (
            Kind::Transaction,
            handler!(tx: DbTx, Provokes::Nothing, transact),
        ),
        (Kind::Nested, handler!(tx: DbTx, Provokes::Nothing, nest)),
        (
            Kind::Swallow,
            handler!(tx: DbTx, Provokes::Nothing, swallow),
        ),
        (
            Kind::Stream,
            handler!(db: DbSession, Provokes::Nothing, stream),
        ),
        (Kind::Clash, handler!(db: DbSession, Provokes::Clash, clash)),
        (Kind::Late, handler!(db: DbSession, Provokes::Late, late)),
        (Kind::Slow, handler!(db: DbSession, Provokes::Nothing, slow)),
        (
            Kind::Timeout,
            handler!(tx: DbTx, Provokes::Timeout, time_out),
        ),
        (Kind::Early, any(early)),
    ]
}

async fn early(
    tx: DbTx,
    State(court): Court_,
    Path((number, status)): Path<(i64, u16)>,
) -> Response {
    let done = async {
        court.transact(&tx, number).await?;
        tx.commit().await?;
        court.ledger.note(number, Note::Acknowledged);
        // Its transaction is another one, with nobody's mark.
        sea_orm::ConnectionTrait::execute_unprepared(&tx, "SELECT 1")
            .await
            .map(drop)
    };
    let done = done.await;
    answer(&court, number, status, Provokes::Nothing, done)
}

async fn panicking(
    tx: DbTx,
    State(court): Court_,
    Path((number, _)): Path<(i64, u16)>,
) -> Response {
    match court.transact(&tx, number).await {
        Ok(()) => panic!("{ON_PURPOSE}"),
        Err(error) => answer(&court, number, 500, Provokes::Nothing, Err(error)),
    }
}

async fn held(
    tx: DbTx,
    State(court): Court_,
    Path((number, status)): Path<(i64, u16)>,
) -> Response {
    let rows = async {
        court.transact(&tx, number).await?;
        let sql = format!("SELECT half FROM ledger WHERE number = {number}");
        tx.rows(Statement::from_string(tx.backend(), sql)).await
    };
    match rows.await {
        Ok(rows) => {
            let lines =
                rows.map(|row| Ok::<_, DbErr>(row?.try_get_by_index::<i32>(0)?.to_string()));
            let mut response = answer(&court, number, status, Provokes::Nothing, Ok(()));
            *response.body_mut() = Body::new(tx.hold_until_body_end(Body::from_stream(lines)));
            response
        }
        Err(error) => answer(&court, number, status, Provokes::Nothing, Err(error)),
    }
}

async fn stray(
    tx: DbTx,
    State(court): Court_,
    Path((number, status)): Path<(i64, u16)>,
) -> Response {
    let done = court.transact(&tx, number).await;
    tokio::spawn(async move {
        tokio::time::sleep(KEPT).await;
        drop(tx);
    });
    answer(&court, number, status, Provokes::Nothing, done)
}

/// How long a handle is kept after the answer.
pub const KEPT: Duration = Duration::from_millis(50);

/// Writes in a transaction that is open while the body arrives.
async fn upload(
    tx: DbTx,
    State(court): Court_,
    Path((number, status)): Path<(i64, u16)>,
    body: Body,
) -> Response {
    let done = court.transact(&tx, number).await;
    match axum::body::to_bytes(body, 1 << 20).await {
        Ok(_) => answer(&court, number, status, Provokes::Nothing, done),
        Err(_) => answer(&court, number, 400, Provokes::Nothing, done),
    }
}

/// Reads, then answers with more than a socket takes at once.
async fn download(
    db: DbSession,
    State(court): Court_,
    Path((number, status)): Path<(i64, u16)>,
) -> Response {
    let done = court.read(&db, number).await;
    let mut response = answer(&court, number, status, Provokes::Nothing, done);
    *response.body_mut() = Body::from(Bytes::from_static(&[b'-'; 4 << 20]));
    response
}

/// A handler's own answer.
pub fn answer(
    court: &Court,
    number: i64,
    status: u16,
    provokes: Provokes,
    done: Result<(), DbErr>,
) -> Response {
    let status = match &done {
        Ok(()) => StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
        Err(error) => {
            court.witness.see(number, provokes, error);
            if provokes == Provokes::Nothing {
                StatusCode::INTERNAL_SERVER_ERROR
            } else {
                StatusCode::CONFLICT
            }
        }
    };
    Response::builder()
        .status(status)
        .header(BY_HANDLER, "yes")
        .body(Body::empty())
        .expect("an answer")
}

async fn tell_outcome(mut response: Response) -> Response {
    let outcome = response.extensions().get::<Outcome>();
    // In autocommit there is no transaction of which it could say anything.
    let Some(outcome) = outcome.filter(|outcome| !outcome.is_autocommit()) else {
        return response;
    };
    let said = if outcome.is_pending() {
        "pending"
    } else if outcome.is_committed() {
        "committed"
    } else if outcome.is_rolled_back() {
        "rolled back"
    } else if outcome.is_untouched() {
        "untouched"
    } else if outcome.is_unknown() {
        "unknown"
    } else {
        "failed"
    };
    response
        .headers_mut()
        .insert(OUTCOME, http::HeaderValue::from_static(said));
    response
}
