//! G15: what the log learns, and what the client does not.

use std::time::{Duration, Instant};

use axum::{Router, body::Body, routing::get};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use sea_orm::{ConnectOptions, ConnectionTrait, Database};
use tower::{Layer, ServiceExt};
use tower_sea_orm::{DbSession, DbTx, problem_json};

use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb, insert_item, unique_name},
        pool::{layer_with, opened, session_layer},
        requests::{send, text},
        wait::eventually,
    },
};

async fn call(app: &Router) -> http::Response<Body> {
    app.clone()
        .oneshot(Request::new(Body::empty()))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_session_logs_its_wait_its_hold_and_its_outcome() {
    let (log, _guard) = Log::start();
    let test = TestDb::new(Kind::SqliteFile).await;
    let app = Router::new()
        .route(
            "/",
            get(async |db: DbSession| {
                insert_item(&db, &unique_name()).await;
                insert_item(&db, &unique_name()).await;
            }),
        )
        .route_layer(session_layer(test.connect(1).await));
    assert_eq!(call(&app).await.status(), 200);
    let lines = log.lines().join("\n");
    for part in [
        "span db_session waited_ms=",
        "span db_session held_ms=",
        "statements=2",
        "outcome=\"released\"",
    ] {
        assert!(lines.contains(part), "no {part} in\n{lines}");
    }
}

#[tokio::test]
async fn exhaustion_is_logged_once_a_second_and_once_when_it_is_over() {
    let (log, _guard) = Log::start();
    let test = TestDb::new(Kind::SqliteFile).await;
    let layer = layer_with(&test.connect(1).await, |pool| {
        pool.acquire_timeout(Duration::from_secs(1))
    });
    let pool = layer.pool().clone();
    let app = Router::new()
        .route("/", get(async |_: DbSession| ()))
        .route_layer(layer);
    let holder = opened(&pool).await;
    let started = Instant::now();
    for response in join_all((0..5).map(|_| call(&app))).await {
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
    }
    let warnings: Vec<_> = log
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("WARN tower_sea_orm::pool"))
        .collect();
    // They fail together, a second after they began; a busy machine may take some seconds for that.
    let seconds = started.elapsed().as_secs().max(1) as usize;
    assert!(
        (1..=seconds.min(4)).contains(&warnings.len()),
        "{warnings:?}"
    );
    for part in ["used=1", "pending=", "max=1", "waited_ms="] {
        assert!(warnings[0].contains(part), "no {part} in {}", warnings[0]);
    }
    drop(holder);
    eventually(
        "the log says that connections are available again",
        async || call(&app).await.status() == 200 && log.count("available again") == 1,
    )
    .await;
}

#[tokio::test]
async fn a_missing_layer_is_an_error_in_the_log() {
    let (log, _guard) = Log::start();
    let app = Router::new().route("/", get(async |_: DbSession| ()));
    let response = call(&app).await;
    assert_eq!(response.status(), 500);
    assert_eq!(
        log.count("ERROR tower_sea_orm message=no database session in this request"),
        1,
        "{:?}",
        log.lines()
    );
}

#[tokio::test]
async fn g15_nothing_of_the_database_leaks_to_the_client_or_into_debug() {
    // Nobody listens on the discard port.
    let mut options = ConnectOptions::new("postgres://someone:hunter2@127.0.0.1:9/hidden");
    options
        .connect_lazy(true)
        .acquire_timeout(Duration::from_secs(1))
        .sqlx_logging(false);
    let db = Database::connect(options).await.unwrap();
    let layer = layer_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(1)));
    let secrets = [
        "someone",
        "hunter2",
        "127.0.0.1",
        "hidden",
        "refused",
        "SELECT",
        "sqlx",
    ];
    let hides = |what: &str, text: &str| {
        for secret in secrets {
            assert!(!text.contains(secret), "{what} tells `{secret}`: {text}");
        }
    };
    let pool = layer.pool().clone();
    hides("the layer's Debug", &format!("{layer:?}"));
    hides("the pool's Debug", &format!("{pool:?}"));

    let error = pool.session().await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    hides("the error's Display", &error.to_string());
    assert!(
        std::error::Error::source(&error).is_some(),
        "the log learns the cause"
    );

    async fn tells(session: DbSession) -> Result<(), (StatusCode, String)> {
        let result = session.execute_unprepared("SELECT 1").await;
        result
            .map(drop)
            .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }
    let routes = Router::new().route("/", get(tells));
    let lazy = layer.clone().lazy();
    hides("the service's Debug", &format!("{:?}", lazy.layer(())));
    let apps = [
        routes.clone().layer(layer.clone()),
        routes.clone().layer(layer.response_for_error(problem_json)),
        routes.clone().layer(lazy.clone()),
        routes
            .clone()
            .layer(lazy.clone().response_for_error(problem_json)),
        routes.layer(lazy.keep_handler_errors()),
    ];
    for (nth, app) in apps.iter().enumerate() {
        let answer = send(app, "/").await;
        let status = if nth == 4 {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        assert_eq!(answer.status(), status);
        hides("the body", &text(answer).await);
    }
}

/// A fault that lasts is told once a second, however many requests meet it; what may differ from one to the next, more often.
#[tokio::test]
async fn g15_a_fault_that_lasts_does_not_log_each_request() {
    const REQUESTS: usize = 60;
    let test = TestDb::new(Kind::Postgres).await;
    let layer = layer_with(&test.connect(1).await, |pool| pool);
    for (code, swallows, status, most) in [
        ("25006", false, 503, 1),
        ("40001", false, 503, 1),
        ("40P01", false, 503, 1),
        ("55P03", false, 503, 1),
        ("57014", false, 504, 1),
        ("23505", true, 500, 16),
    ] {
        // Code 57014 has several causes, of which the words tell.
        let words = match code {
            "57014" => "canceling statement due to statement timeout",
            _ => "no",
        };
        let sql = format!("DO $$ BEGIN RAISE EXCEPTION '{words}' USING ERRCODE = '{code}'; END $$");
        let fails = async move |tx: DbTx| {
            tx.execute_unprepared(&sql).await.unwrap_err();
            if swallows {
                StatusCode::OK
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        // A pool of its own has its own lines.
        let app = Router::new().route("/", get(fails)).layer(layer.clone());
        assert_throttled(&app, REQUESTS, status, most).await;
    }
    let missing = Router::new().route("/", get(async |_: DbSession| ()));
    assert_throttled(&missing, REQUESTS, 500, 16).await;
    let repeats = async |db: DbSession| {
        for _ in 0..12 {
            db.execute_unprepared("SELECT 1").await.unwrap();
        }
    };
    let app = Router::new().route("/", get(repeats)).layer(layer);
    assert_throttled(&app, REQUESTS, 200, 16).await;
}

/// Asserts that so many requests write `most` lines a second above INFO, and that the next one says how many it stands for.
async fn assert_throttled(app: &Router, requests: usize, status: u16, most: usize) {
    let (log, _guard) = Log::start();
    let began = Instant::now();
    for _ in 0..requests {
        assert_eq!(call(app).await.status(), status);
    }
    let (lines, seconds) = (log.loud(), began.elapsed().as_secs() as usize);
    let bound = most * (seconds + 1);
    assert!((1..=bound).contains(&lines.len()), "{bound}: {lines:?}");
    eventually("the next line counts the others", async || {
        call(app).await;
        let told = |line: &String| line.contains("suppressed=") && !line.contains("suppressed=0");
        log.loud().iter().any(told)
    })
    .await;
}
