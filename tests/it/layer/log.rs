//! What the log learns, and what the client does not.

use std::{
    fmt::{self, Write},
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use futures_util::future::join_all;
use http::Request;
use tower::ServiceExt;
use tower_sea_orm::DbSession;
use tracing::{
    Dispatch, Event, Id, Subscriber,
    field::{Field, Visit},
    span::Record,
    subscriber::DefaultGuard,
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt, registry::LookupSpan};

use crate::support::database::{Kind, TestDb, insert_item, unique_name};
use crate::support::pool::{layer_with, opened, session_layer};

/// Keeps every line of this crate's targets, one per event or recorded set of span fields.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target().starts_with("tower_sea_orm") {
            let mut text = Text(format!("{} {}", metadata.level(), metadata.target()));
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut text = Text(format!("span {}", context.span(id).unwrap().name()));
        values.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
}

/// Has every line offered to each thread's own log.
///
/// With one log in the process, a line that a thread without a log comes to first is taken for unwanted by all
/// threads: <https://github.com/tokio-rs/tracing/issues/2874>. With a second one, all logs are asked.
pub fn keep_interest() {
    static SECOND: OnceLock<Dispatch> = OnceLock::new();
    SECOND.get_or_init(|| Dispatch::new(tracing_subscriber::registry().with(Log::default())));
}

impl Log {
    pub fn start() -> (Self, DefaultGuard) {
        keep_interest();
        let log = Self::default();
        let guard =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(log.clone()));
        (log, guard)
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn count(&self, part: &str) -> usize {
        self.lines()
            .iter()
            .filter(|line| line.contains(part))
            .count()
    }
}

async fn call(app: &Router) -> http::Response<Body> {
    app.clone()
        .oneshot(Request::new(Body::empty()))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_session_says_how_long_it_waited_and_held_and_what_became_of_it() {
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
async fn exhaustion_is_a_warning_with_figures_once_a_second_and_a_line_when_it_is_over() {
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
    crate::support::wait::eventually(
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
