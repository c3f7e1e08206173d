//! What an observer of a pool, the response's `Outcome` and the log tell of sessions.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::MatchedPath, routing::get};
use futures_util::{FutureExt, future::join_all};
use http::{Request, Response, StatusCode};
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{
    DbSession, DbSessionLayer, DbTx, Observer, Outcome, SessionPool, WeakSessionPool,
    observer::{Acquired, Executed, Released, SessionEnded},
};

use tracing::{Instrument, instrument::WithSubscriber};
use tracing_subscriber::layer::SubscriberExt;

use crate::{
    log::{FullLog, Log},
    support::{
        database::{Kind, TestDb, insert_item, unique_name},
        pool::{assert_whole, lends, pool_with},
        wait::{BOUND, eventually},
    },
};

/// Keeps a line for each event.
#[derive(Default)]
struct Diary {
    lines: Mutex<Vec<String>>,
    pool: Mutex<Option<WeakSessionPool>>,
}

impl Diary {
    fn note(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }

    fn lines(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap())
    }
}

impl Observer for Diary {
    fn attached(&self, pool: &WeakSessionPool) {
        *self.pool.lock().unwrap() = Some(pool.clone());
    }

    fn acquired(&self, acquired: &Acquired<'_>) {
        let error = acquired.error().map(ToString::to_string);
        self.note(format!("acquired {:?} {error:?}", acquired.route()));
        assert!(acquired.waited() < Duration::from_secs(3600));
    }

    fn executed(&self, executed: &Executed<'_>) {
        let statement = executed.statement();
        let word = statement.split(' ').next().unwrap().to_owned();
        self.note(format!(
            "{}{word} {}",
            if executed.begins() { "BEGIN; " } else { "" },
            if executed.error().is_some() {
                "failed"
            } else {
                "done"
            }
        ));
        assert!(!executed.elapsed().is_zero());
    }

    fn released(&self, released: &Released<'_>) {
        self.note(format!(
            "released {:?}",
            released.method().map(|method| method.as_str())
        ));
        assert!(!released.held().is_zero());
    }

    fn ended(&self, ended: &SessionEnded<'_>) {
        self.note(format!("ended {} {}", ended.outcome(), ended.statements()));
        assert!(ended.held() >= Duration::ZERO && ended.waited() >= Duration::ZERO);
    }
}

fn observed(test: &sea_orm::DatabaseConnection) -> (Arc<Diary>, DbSessionLayer) {
    let diary = Arc::new(Diary::default());
    let pool = pool_with(test, |pool| pool.observe(diary.clone()));
    let layer = DbSessionLayer::new(pool)
        .lazy()
        .http_route(|parts| Some(parts.extensions.get::<MatchedPath>()?.as_str().into()));
    (diary, layer)
}

async fn call(app: &Router, path: &str) -> Response<Body> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

fn outcome(response: &Response<Body>) -> Outcome {
    response.extensions().get::<Outcome>().unwrap().clone()
}

#[tokio::test]
async fn an_observer_is_told_of_a_transaction_from_its_wait_to_its_end() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let (diary, layer) = observed(&db);
        let write = get(async |tx: DbTx| {
            insert_item(&tx, &unique_name()).await;
            let nested = tx.begin().await.unwrap();
            insert_item(&nested, &unique_name()).await;
            nested.commit().await.unwrap();
        });
        let app = Router::new().route("/items/{id}", write).route_layer(layer);
        let response = call(&app, "/items/7").await;
        assert!(outcome(&response).is_committed(), "{kind:?}");
        assert_eq!(outcome(&response).statements(), 5, "{kind:?}");
        assert!(!outcome(&response).held().is_zero(), "{kind:?}");
        let expected = [
            "acquired Some(\"/items/{id}\") None",
            "BEGIN; INSERT done",
            "SAVEPOINT done",
            "INSERT done",
            "RELEASE done",
            "COMMIT done",
            "released Some(\"GET\")",
            "ended committed 5",
        ];
        assert_eq!(diary.lines(), expected, "{kind:?}");
        assert_whole(&test, &db, 2).await;
    }
}

#[tokio::test]
async fn an_observer_is_told_of_failures_and_rollbacks() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let (diary, layer) = observed(&db);
        let fail = get(async |tx: DbTx| {
            insert_item(&tx, &unique_name()).await;
            tx.execute_unprepared("SELECT nothing FROM nowhere")
                .await
                .unwrap_err();
            StatusCode::CONFLICT
        });
        let app = Router::new().route("/", fail).route_layer(layer);
        let response = call(&app, "/").await;
        assert!(outcome(&response).is_rolled_back(), "{kind:?}");
        let lines = diary.lines();
        let told = lines.iter().map(String::as_str);
        let told: Vec<_> = told.filter(|line| !line.starts_with("acquired")).collect();
        let expected = [
            "BEGIN; INSERT done",
            "SELECT failed",
            "released Some(\"GET\")",
            "ended rolled_back 2",
        ];
        assert_eq!(told, expected, "{kind:?}");
    }
}

#[tokio::test]
async fn an_observer_is_told_of_a_wait_that_ends_with_an_error() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(1).await;
    let diary = Arc::new(Diary::default());
    let pool = SessionPool::builder(db)
        .acquire_timeout(Duration::from_millis(50))
        .observe(diary.clone())
        .build()
        .unwrap();
    let held = pool.session().await.unwrap();
    insert_item(&held, &unique_name()).await;
    diary.lines();
    let refused = pool.session().await.unwrap_err();
    assert!(refused.is_exhausted());
    assert_eq!(
        diary.lines(),
        [format!("acquired None Some(\"{refused}\")")]
    );
    // Lazily, as a handler's first statement finds out.
    let app = Router::new()
        .route(
            "/",
            get(async |db: DbSession| {
                db.execute_unprepared("SELECT 1")
                    .await
                    .map(|_| ())
                    .map_err(|_| StatusCode::BAD_GATEWAY)
            }),
        )
        .route_layer(DbSessionLayer::new(pool.clone()).lazy());
    let response = call(&app, "/").await;
    assert_eq!(response.status(), 503);
    let lines = diary.lines();
    assert_eq!(lines[0], format!("acquired None Some(\"{refused}\")"));
    assert_eq!(lines[1..], ["ended released 0"]);
    assert!(outcome(&response).waited() >= Duration::from_millis(50));
}

#[tokio::test]
async fn each_release_is_told_and_a_pool_is_not_kept_by_its_observer() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let (diary, layer) = observed(&db);
    let pool = layer.pool().clone();
    let session = pool.session().await.unwrap();
    insert_item(&session, &unique_name()).await;
    session.release().await.unwrap();
    insert_item(&session, &unique_name()).await;
    drop(session);
    let lines = diary.lines();
    let count = |part: &str| lines.iter().filter(|line| line.starts_with(part)).count();
    // A session that lends gives its connection back more often.
    let released = count("released");
    assert!(released == 2 || lends() && released > 2, "{lines:?}");
    assert_eq!(count("ended"), 1, "{lines:?}");
    let weak = diary.pool.lock().unwrap().clone().unwrap();
    assert_eq!(weak.upgrade().unwrap().status().max, 2);
    assert_whole(&test, &db, 2).await;
    drop((pool, layer));
    eventually("the pool is gone", async || weak.upgrade().is_none()).await;
}

#[tokio::test]
async fn a_panic_of_an_observer_costs_no_session() {
    struct Panics;
    impl Observer for Panics {
        fn acquired(&self, _: &Acquired<'_>) {
            panic!("on purpose");
        }
        fn executed(&self, _: &Executed<'_>) {
            panic!("on purpose");
        }
        fn released(&self, _: &Released<'_>) {
            panic!("on purpose");
        }
        fn ended(&self, _: &SessionEnded<'_>) {
            panic!("on purpose");
        }
    }
    let (log, _guard) = Log::start();
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let pool = pool_with(&db, |pool| pool.observe(Panics));
    let app = Router::new()
        .route(
            "/",
            get(async |tx: DbTx| insert_item(&tx, &unique_name()).await),
        )
        .route_layer(DbSessionLayer::new(pool.clone()));
    for _ in 0..3 {
        assert_eq!(call(&app, "/").await.status(), 200);
    }
    assert!(log.count("an observer panicked") >= 12);
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn in_autocommit_the_outcome_tells_what_was_used() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let (_, layer) = observed(&db);
    let app = Router::new()
        .route(
            "/",
            get(async |db: DbSession| {
                insert_item(&db, &unique_name()).await;
                insert_item(&db, &unique_name()).await;
            }),
        )
        .route("/untouched", get(async || ()))
        .route_layer(layer);
    let told = outcome(&call(&app, "/").await);
    assert!(told.is_autocommit() && !told.is_committed() && !told.is_untouched());
    assert_eq!(told.statements(), 2);
    assert!(!told.held().is_zero());
    assert!(
        call(&app, "/untouched")
            .await
            .extensions()
            .get::<Outcome>()
            .is_none()
    );
}

#[tokio::test]
async fn a_statement_that_a_request_repeats_is_logged_once() {
    for kind in Kind::ALL {
        let (log, _guard) = Log::start();
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let (_, layer) = observed(&db);
        let pool = layer.pool().clone();
        async fn repeat(db: DbSession, times: u32) {
            for id in 0..times {
                let statement = sea_orm::Statement::from_sql_and_values(
                    db.backend(),
                    match db.backend() {
                        sea_orm::DbBackend::Postgres => "SELECT 'secret', CAST($1 AS integer)",
                        _ => "SELECT 'secret', ?",
                    },
                    [id.into()],
                );
                db.query_one_raw(statement).await.unwrap();
            }
        }
        let app = Router::new()
            .route("/few", get(async |db: DbSession| repeat(db, 10).await))
            .route(
                "/many/{id}",
                get(async |db: DbSession| repeat(db, 30).await),
            )
            .route_layer(layer);
        assert_eq!(call(&app, "/few").await.status(), 200);
        assert_eq!(log.count("again and again"), 0, "{kind:?}");
        assert_eq!(call(&app, "/many/1").await.status(), 200);
        let lines = log.lines();
        let line = lines
            .iter()
            .find(|line| line.contains("again and again"))
            .unwrap();
        for part in [
            "WARN",
            "times=30",
            "route=\"/many/{id}\"",
            "method=\"GET\"",
            "SELECT ?",
        ] {
            assert!(line.contains(part), "{kind:?}: no {part} in {line}");
        }
        assert!(!line.contains("secret"), "{kind:?}: {line}");
        assert_eq!(log.count("again and again"), 1, "{kind:?}");
        // A job may loop.
        let session = pool.session().await.unwrap();
        repeat((*session).clone(), 30).await;
        drop(session);
        assert_eq!(log.count("again and again"), 1, "{kind:?}");
    }
}

#[tokio::test]
async fn the_threshold_for_repeated_statements_can_be_set() {
    let (log, _guard) = Log::start();
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(2).await;
    for (threshold, lines) in [(2, 1), (u32::MAX, 1)] {
        let pool = pool_with(&db, |pool| pool.n_plus_one_threshold(threshold));
        let app = Router::new()
            .route(
                "/",
                get(async |db: DbSession| {
                    for _ in 0..40 {
                        db.execute_unprepared("SELECT 1").await.unwrap();
                    }
                }),
            )
            .route_layer(DbSessionLayer::new(pool));
        assert_eq!(call(&app, "/").await.status(), 200);
        assert_eq!(log.count("again and again"), lines, "{threshold}");
    }
}

#[tokio::test]
async fn each_statement_has_a_span_of_opentelemetrys_form() {
    let (log, _guard) = FullLog::start();
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let (_, layer) = observed(&db);
    let app = Router::new()
        .route("/", get(async |tx: DbTx| insert_item(&tx, "secret").await))
        .route_layer(layer);
    assert_eq!(call(&app, "/").await.status(), 200);
    let text = log.text();
    let spans: Vec<_> = text
        .lines()
        .filter(|line| line.contains("db_statement{") && line.contains("new"))
        .collect();
    for part in [
        "otel.name=\"INSERT\"",
        "otel.name=\"COMMIT\"",
        "otel.kind=\"client\"",
        "db.system.name=\"postgresql\"",
    ] {
        assert!(
            spans.iter().any(|line| line.contains(part)),
            "no {part} in {spans:?}"
        );
    }
    assert!(
        spans
            .iter()
            .all(|line| line.contains("db_session:db_statement{")),
        "{spans:?}"
    );
    assert!(
        spans.iter().all(|line| !line.contains("secret")),
        "{spans:?}"
    );
}

#[tokio::test]
async fn the_span_of_a_statement_says_that_begin_is_sent_before_it() {
    let (log, _guard) = Log::start();
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let (_, layer) = observed(&db);
    let two = async |tx: DbTx| {
        insert_item(&tx, &unique_name()).await;
        insert_item(&tx, &unique_name()).await;
    };
    let app = Router::new().route("/", get(two)).route_layer(layer);
    assert_eq!(call(&app, "/").await.status(), 200);
    let begins = "span db_statement tower_sea_orm.begins=true";
    assert_eq!(log.count(begins), 1, "{:?}", log.lines());
}

#[tokio::test]
async fn server_timing_says_how_long_the_database_took() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(2).await;
    let app = Router::new()
        .route(
            "/",
            get(async |db: DbSession| {
                insert_item(&db, &unique_name()).await;
                [("server-timing", "own;dur=1")]
            }),
        )
        .route_layer(DbSessionLayer::new(db).server_timing());
    let response = call(&app, "/").await;
    let values: Vec<_> = response.headers().get_all("server-timing").iter().collect();
    assert_eq!(values.len(), 2, "beside the handler's own: {values:?}");
    let value = values[1].to_str().unwrap();
    let parts: Vec<_> = value.split(", ").collect();
    assert!(parts[0].starts_with("db-wait;dur="), "{value}");
    assert!(
        value.contains("db-hold;dur=") && value.contains("1 statements"),
        "{value}"
    );
}

/// Counts the events.
#[derive(Default)]
struct Counts {
    acquired: AtomicU64,
    released: AtomicU64,
    ended: AtomicU64,
}

impl Observer for Counts {
    fn acquired(&self, acquired: &Acquired<'_>) {
        let got_one = u64::from(acquired.error().is_none());
        self.acquired.fetch_add(got_one, Ordering::SeqCst);
    }

    fn released(&self, released: &Released<'_>) {
        assert!(released.held() < BOUND);
        self.released.fetch_add(1, Ordering::SeqCst);
    }

    fn ended(&self, _: &SessionEnded<'_>) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// Requests of all sorts, which are dropped at any moment.
async fn abort_at_random(app: &Router, round: u64) {
    let paths = [
        "/read",
        "/write",
        "/panic",
        "/release",
        "/nested",
        "/untouched",
    ];
    let requests = (0..40_u64).map(|number| {
        let (app, path) = (app.clone(), paths[(number + round) as usize % paths.len()]);
        let request = Request::get(path).body(Body::empty()).unwrap();
        // From none to enough for most of them.
        let time = Duration::from_millis((number * 7 + round * 13) % 24);
        async move {
            let served = AssertUnwindSafe(app.oneshot(request)).catch_unwind();
            let _ = timeout(time, served).await;
        }
    });
    join_all(requests).await;
}

#[tokio::test]
async fn what_is_acquired_is_released_whatever_becomes_of_requests() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let counts = Arc::new(Counts::default());
        let pool = pool_with(&db, |pool| pool.observe(counts.clone()).max_pending(1000));
        let routes = Router::new()
            .route("/read", get(async |db: DbSession| drop(count(&db).await)))
            .route(
                "/write",
                get(async |tx: DbTx| insert_item(&tx, &unique_name()).await),
            )
            .route(
                "/panic",
                get(async |tx: DbTx| {
                    insert_item(&tx, &unique_name()).await;
                    std::hint::black_box(None::<()>).expect("on purpose")
                }),
            )
            .route(
                "/release",
                get(async |db: DbSession| {
                    let _ = count(&db).await;
                    let _ = db.release().await;
                    let _ = count(&db).await;
                }),
            )
            .route(
                "/nested",
                get(async |tx: DbTx| {
                    if let Ok(nested) = tx.begin().await {
                        insert_item(&nested, &unique_name()).await;
                    }
                }),
            )
            .route("/untouched", get(async || ()));
        for layer in [
            DbSessionLayer::new(pool.clone()),
            DbSessionLayer::new(pool.clone()).lazy(),
        ] {
            let app = routes.clone().layer(layer);
            for round in 0..12 {
                abort_at_random(&app, round).await;
            }
        }
        eventually("nothing is out", async || pool.status().used == 0).await;
        let counted = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        eventually("all is told", async || {
            counted(&counts.acquired) == counted(&counts.released)
        })
        .await;
        assert!(counted(&counts.acquired) > 100, "{kind:?}");
        // Of a lazy layer each, and of an eager one all that got a connection.
        assert!(counted(&counts.ended) > 12 * 40, "{kind:?}");
        assert_whole(&test, &db, 2).await;
    }
}

async fn count(db: &DbSession) -> Result<(), sea_orm::DbErr> {
    db.execute_unprepared("SELECT count(*) FROM item")
        .await
        .map(drop)
}

#[tokio::test]
async fn subscribers_may_differ_from_statement_to_statement() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let pool = pool_with(&db, |pool| pool);
    let subscriber = || {
        let log = tracing_subscriber::registry().with(Log::default());
        tracing::Dispatch::new(log)
    };
    let (one, other) = (subscriber(), subscriber());
    for _ in 0..3 {
        let request = tracing::dispatcher::with_default(&one, || tracing::info_span!("request"));
        let session = async { pool.session().instrument(request).await.unwrap() };
        let session = session.with_subscriber(one.clone()).await;
        let read = count(&session).with_subscriber(other.clone());
        read.await.unwrap();
        count(&session).with_subscriber(one.clone()).await.unwrap();
        count(&session).await.unwrap();
        async { drop(session) }.with_subscriber(other.clone()).await;
    }
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn a_commit_that_the_server_refuses_is_told_as_failed() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let (diary, layer) = observed(&db);
    let sql = "CREATE TABLE late (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)";
    db.execute_unprepared(sql).await.unwrap();
    let write = get(async |tx: DbTx| {
        let sql = "INSERT INTO late VALUES (1), (1)";
        tx.execute_unprepared(sql).await.unwrap();
    });
    let app = Router::new().route("/", write).route_layer(layer);
    assert_eq!(call(&app, "/").await.status(), 500);
    let lines = diary.lines();
    assert!(lines.contains(&"COMMIT failed".to_owned()), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "ended failed 2", "{lines:?}");
}
