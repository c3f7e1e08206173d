//! G2, G4, G7: where a request waits for a connection, the COMMIT before it carries its BEGIN along. The transaction goes to
//! a request that waited by then and wants one like it, and to nobody else.

use std::time::{Duration, Instant};

use axum::{Router, extract::Path, response::Response, routing::get};
use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::{
    AccessMode, ConnectionTrait, Database, DatabaseConnection, DbBackend, IsolationLevel,
    Statement, TransactionOptions,
};
use tokio::task::JoinHandle;
use tower_sea_orm::{DbSession, DbSessionLayer, Outcome};

use crate::{
    acquire::lending::Gate,
    support::{
        database::{Kind, TestDb, count_items, insert_item, unique_name},
        pool::{assert_whole, layer_with, open_transactions},
        requests::send_owned,
        site::{port_of, violate},
        wait::{BOUND, eventually, in_one_of},
        wire::{CHAINED, Proxy},
    },
};

const WITH_SERVERS: [Kind; 2] = [Kind::Postgres, Kind::MySql];

/// A service with few connections, behind a proxy.
struct Busy {
    test: TestDb,
    proxy: Proxy,
    db: DatabaseConnection,
    observer: DatabaseConnection,
    layer: DbSessionLayer,
    size: u32,
    /// What `/hold/…` waits for after its statement, and `/late/…` before it.
    after: Gate,
    before: Gate,
}

impl Busy {
    async fn new(kind: Kind, size: u32) -> Self {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let url = proxy.url(test.url());
        let db = Database::connect(test.options_at(&url, size)).await;
        let db = db.unwrap();
        Self {
            layer: layer_with(&db, |pool| {
                pool.direct_handoff(true)
                    .acquire_timeout(BOUND)
                    .max_pending(1000)
            }),
            observer: test.observer().await.unwrap(),
            test,
            proxy,
            db,
            size,
            after: Gate::new(),
            before: Gate::new(),
        }
    }

    fn app(&self, layer: DbSessionLayer) -> Router {
        let (after, before) = (self.after.clone(), self.before.clone());
        Router::new()
            .route(
                "/insert/{name}",
                get(async |db: DbSession, Path(name): Path<String>| insert_item(&db, &name).await),
            )
            .route(
                "/hold/{name}",
                get(async move |db: DbSession, Path(name): Path<String>| {
                    insert_item(&db, &name).await;
                    after.pass().await;
                }),
            )
            .route(
                "/late/{name}",
                get(async move |db: DbSession, Path(name): Path<String>| {
                    before.pass().await;
                    insert_item(&db, &name).await;
                }),
            )
            .route("/nothing", get(async |_: DbSession| ()))
            .route("/ask/{sql}", get(ask))
            .route("/violate/{name}", {
                let after = self.after.clone();
                get(async move |db: DbSession, Path(name): Path<String>| {
                    insert_item(&db, &name).await;
                    violate(&db).await;
                    after.pass().await;
                })
            })
            .layer(layer)
    }

    /// Eager and lazy.
    fn layers(&self) -> [DbSessionLayer; 2] {
        let layer = self.layer.clone().transaction();
        [layer.clone(), layer.lazy()]
    }

    fn send(&self, layer: &DbSessionLayer, uri: &str) -> JoinHandle<Response> {
        tokio::spawn(send_owned(self.app(layer.clone()), uri))
    }

    /// Waits until so many wait for a connection.
    async fn pending(&self, count: usize) {
        eventually("they wait", async || {
            self.layer.pool().status().pending == count
        })
        .await;
    }

    /// Sends a request that keeps the only connection, and others behind it; then lets it go on to its COMMIT, with
    /// which a BEGIN was sent to nobody's knowledge but the proxy's.
    async fn committing(
        &self,
        first: (&DbSessionLayer, &str),
        then: &[(&DbSessionLayer, &str)],
    ) -> Vec<JoinHandle<Response>> {
        let mut requests = vec![self.send(first.0, first.1)];
        self.after.reached(1).await;
        for (count, (layer, uri)) in then.iter().enumerate() {
            requests.push(self.send(layer, uri));
            self.pending(count + 1).await;
        }
        self.hold_chained_back();
        self.after.open();
        eventually("COMMIT was sent, with BEGIN", async || {
            self.proxy.held() == 1
        })
        .await;
        requests
    }

    /// Holds back what a COMMIT with another request's BEGIN looks like on the wire.
    fn hold_chained_back(&self) {
        let [postgres, mysql] = CHAINED;
        self.proxy.hold_back(match self.db.get_database_backend() {
            DbBackend::MySql => mysql,
            _ => postgres,
        });
    }

    async fn nothing_is_open(&self) {
        eventually("no transaction is open", async || {
            open_transactions(&self.observer).await == 0
        })
        .await;
    }

    async fn assert_whole(&self) {
        assert_whole(&self.test, &self.db, self.size).await;
        self.nothing_is_open().await;
    }
}

/// Answers with what the server says, in one text.
async fn ask(db: DbSession, Path(sql): Path<String>) -> String {
    let sql = format!("SELECT CAST({sql} AS CHAR(80)) AS answer");
    let row = db.query_one_raw(Statement::from_string(db.backend(), sql));
    row.await.unwrap().unwrap().try_get("", "answer").unwrap()
}

async fn answer(request: JoinHandle<Response>) -> String {
    let response = request.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let text = crate::support::requests::text(response).await;
    text.trim().to_owned()
}

async fn assert_committed(request: JoinHandle<Response>) {
    let response = request.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let outcome: &Outcome = response.extensions().get().unwrap();
    assert!(outcome.is_committed(), "{outcome:?}");
}

fn options(level: IsolationLevel, mode: AccessMode) -> TransactionOptions {
    TransactionOptions {
        isolation_level: Some(level),
        access_mode: Some(mode),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_request_that_waits_pays_for_no_begin() {
    for kind in WITH_SERVERS {
        let busy = Busy::new(kind, 1).await;
        for layer in busy.layers() {
            // The clock may have the driver's pool visited, with pings.
            in_one_of(10, "two transactions with a statement each", async || {
                let app = busy.app(layer.clone());
                let first = send_owned(app.clone(), &format!("/insert/{}", unique_name()));
                let second = send_owned(app.clone(), &format!("/insert/{}", unique_name()));
                busy.proxy.reset_count();
                let (first, second) = tokio::join!(first, second);
                assert_eq!(
                    (first.status(), second.status()),
                    (StatusCode::OK, StatusCode::OK)
                );
                eventually("the connection is back", async || {
                    busy.layer.pool().status().used == 0
                })
                .await;
                // sqlx's two pings on top.
                busy.proxy.requests() == 3 + 2 + 2
            })
            .await;
        }
        busy.assert_whole().await;
    }
}

#[tokio::test]
async fn under_load_a_transaction_costs_one_round_trip_less() {
    const CLIENTS: usize = 16;
    const REQUESTS: u64 = 25;
    for kind in WITH_SERVERS {
        let busy = Busy::new(kind, 2).await;
        busy.proxy.delay_replies(Duration::from_millis(1));
        for layer in busy.layers() {
            let app = busy.app(layer);
            let client = async |requests: u64| {
                for _ in 0..requests {
                    let uri = format!("/insert/{}", unique_name());
                    assert_eq!(send_owned(app.clone(), &uri).await.status(), StatusCode::OK);
                }
            };
            // Until both connections have prepared the statement.
            join_all((0..CLIENTS).map(|_| client(2))).await;
            let started = Instant::now();
            busy.proxy.reset_count();
            join_all((0..CLIENTS).map(|_| client(REQUESTS))).await;
            let requests = CLIENTS as u64 * REQUESTS;
            #[allow(clippy::cast_precision_loss, reason = "small numbers")]
            let cost = busy.proxy.requests() as f64 / requests as f64;
            eprintln!("{kind:?}: {cost:.3} round trips, {:?}", started.elapsed());
            assert!(cost < 2.5, "{kind:?}: {cost}");
        }
        busy.proxy.delay_replies(Duration::ZERO);
        busy.assert_whole().await;
    }
}

#[tokio::test]
async fn a_waiter_that_leaves_leaves_no_transaction_behind() {
    for kind in WITH_SERVERS {
        for layer in 0..2 {
            let busy = Busy::new(kind, 1).await;
            let layer = &busy.layers()[layer];
            let [first, second] = [unique_name(), unique_name()];
            let (first_uri, second_uri) = (format!("/hold/{first}"), format!("/insert/{second}"));
            let mut requests = busy
                .committing((layer, &first_uri), &[(layer, &second_uri)])
                .await;
            let left = requests.pop().unwrap();
            left.abort();
            assert!(left.await.unwrap_err().is_cancelled());
            busy.proxy.let_go();
            assert_committed(requests.pop().unwrap()).await;
            assert_eq!(count_items(&busy.observer, &first).await, 1);
            assert_eq!(count_items(&busy.observer, &second).await, 0);
            busy.nothing_is_open().await;
            assert_committed(busy.send(layer, &second_uri)).await;
            busy.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_request_that_came_after_the_commit_gets_no_transaction_from_before_it() {
    for layer in 0..2 {
        let busy = Busy::new(Kind::Postgres, 1).await;
        let layer = &busy.layers()[layer];
        let first = format!("/hold/{}", unique_name());
        let left = format!("/insert/{}", unique_name());
        let mut requests = busy.committing((layer, &first), &[(layer, &left)]).await;
        requests.pop().unwrap().abort();
        busy.pending(0).await;
        let clock = busy.observer.query_one_raw(Statement::from_string(
            Kind::Postgres.backend(),
            "SELECT clock_timestamp()::text AS now",
        ));
        let arrival: String = clock.await.unwrap().unwrap().try_get("", "now").unwrap();
        // A space or a plus in the path would have to be escaped.
        let arrival = arrival.replace(' ', "T").replace('+', "%2B");
        let late = busy.send(layer, &format!("/ask/now()%20%3E=%20'{arrival}'"));
        busy.pending(1).await;
        busy.proxy.let_go();
        assert_eq!(answer(late).await, "true");
        assert_committed(requests.pop().unwrap()).await;
        busy.assert_whole().await;
    }
}

#[tokio::test]
async fn a_request_that_uses_no_transaction_leaves_none_open() {
    for kind in WITH_SERVERS {
        let busy = Busy::new(kind, 1).await;
        let [eager, _] = busy.layers();
        let first = format!("/hold/{}", unique_name());
        let mut requests = busy
            .committing((&eager, &first), &[(&eager, "/nothing")])
            .await;
        busy.proxy.let_go();
        let response = requests.pop().unwrap().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let outcome: &Outcome = response.extensions().get().unwrap();
        assert!(outcome.is_untouched(), "{outcome:?}");
        assert_committed(requests.pop().unwrap()).await;
        busy.assert_whole().await;
    }
}

#[tokio::test]
async fn a_request_that_waits_for_something_else_has_no_transaction_open() {
    for kind in WITH_SERVERS {
        let busy = Busy::new(kind, 1).await;
        let [eager, _] = busy.layers();
        let (first, name) = (format!("/hold/{}", unique_name()), unique_name());
        let mut requests = busy
            .committing((&eager, &first), &[(&eager, &format!("/late/{name}"))])
            .await;
        busy.proxy.let_go();
        busy.before.reached(1).await;
        busy.nothing_is_open().await;
        busy.before.open();
        assert_committed(requests.pop().unwrap()).await;
        assert_committed(requests.pop().unwrap()).await;
        assert_eq!(count_items(&busy.observer, &name).await, 1);
        busy.assert_whole().await;
    }
}

#[tokio::test]
async fn a_transaction_has_the_options_of_its_own_request() {
    let busy = Busy::new(Kind::Postgres, 1).await;
    let settings = "concat_ws(chr(32),current_setting('transaction_isolation'),\
        current_setting('transaction_read_only'),current_setting('statement_timeout'))";
    let uri = format!("/ask/{settings}");
    let [plain, _] = busy.layers();
    let strict = options(IsolationLevel::RepeatableRead, AccessMode::ReadOnly);
    let strict = busy.layer.clone().transaction_with(strict);
    // What a function of the user's does is seen by nobody.
    busy.observer
        .execute_unprepared(
            "CREATE FUNCTION spoil() RETURNS text LANGUAGE plpgsql AS $$ BEGIN \
             SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = '59s'; RETURN ''; END $$",
        )
        .await
        .unwrap();
    let after = busy.after.clone();
    let spoil = Router::new().route(
        "/",
        get(async move |db: DbSession| {
            let sql = Statement::from_string(db.backend(), "SELECT spoil()");
            db.query_one_raw(sql).await.unwrap();
            after.pass().await;
        }),
    );
    let spoiling = tokio::spawn(send_owned(spoil.layer(plain.clone()), "/"));
    busy.after.reached(1).await;
    let plain_one = busy.send(&plain, &uri);
    busy.pending(1).await;
    let strict_one = busy.send(&strict, &uri);
    busy.pending(2).await;
    let plain_two = busy.send(&plain, &uri);
    busy.pending(3).await;
    busy.hold_chained_back();
    busy.after.open();
    eventually("COMMIT was sent, with BEGIN", async || {
        busy.proxy.held() == 1
    })
    .await;
    busy.proxy.let_go();
    assert_committed(spoiling).await;
    assert_eq!(answer(plain_one).await, "read committed off 0");
    assert_eq!(answer(strict_one).await, "repeatable read on 0");
    assert_eq!(answer(plain_two).await, "read committed off 0");
    busy.assert_whole().await;
}

/// Answers with what the server says of a write in a transaction that is to be READ ONLY, and with the number of rows that
/// are committed by others and seen meanwhile: one in READ COMMITTED, none in MySQL's default.
async fn refused(db: DbSession, observer: DatabaseConnection) -> String {
    let before = items(&db).await;
    insert_item(&observer, &unique_name()).await;
    let seen = items(&db).await - before;
    let insert = db.execute_unprepared("INSERT INTO item (name) VALUES ('refused')");
    format!("{seen} {}", insert.await.unwrap_err()).to_uppercase()
}

async fn items(db: &DbSession) -> i64 {
    let count = Statement::from_string(db.backend(), "SELECT COUNT(*) AS n FROM item");
    let row = db.query_one_raw(count).await.unwrap().unwrap();
    row.try_get("", "n").unwrap()
}

fn assert_refused(answer: &str) {
    assert!(answer.starts_with("1 "), "{answer}");
    assert!(answer.contains("READ ONLY"), "{answer}");
}

/// `COMMIT AND CHAIN` begins a transaction like the one before.
#[tokio::test]
async fn a_transaction_of_mysql_has_the_options_of_its_own_request() {
    let busy = Busy::new(Kind::MySql, 1).await;
    let [plain, _] = busy.layers();
    let strict = options(IsolationLevel::ReadCommitted, AccessMode::ReadOnly);
    let strict = busy.layer.clone().transaction_with(strict);
    let observer = busy.observer.clone();
    let (first, third) = (format!("/hold/{}", unique_name()), unique_name());
    let app = Router::new().route(
        "/",
        get(async move |db: DbSession| refused(db, observer).await),
    );
    let first = busy.send(&plain, &first);
    busy.after.reached(1).await;
    let second = tokio::spawn(send_owned(app.layer(strict), "/"));
    busy.pending(1).await;
    let third_one = busy.send(&plain, &format!("/insert/{third}"));
    busy.pending(2).await;
    busy.after.open();
    assert_committed(first).await;
    assert_refused(&answer(second).await);
    assert_committed(third_one).await;
    assert_eq!(count_items(&busy.observer, &third).await, 1);
    assert_eq!(busy.proxy.chained(), 0);
    busy.assert_whole().await;
}

#[tokio::test]
async fn a_transaction_of_mysql_is_like_the_one_that_it_is_chained_to() {
    let busy = Busy::new(Kind::MySql, 1).await;
    let strict = options(IsolationLevel::ReadCommitted, AccessMode::ReadOnly);
    let strict = busy.layer.clone().transaction_with(strict);
    let observer = busy.observer.clone();
    let after = busy.after.clone();
    let app = Router::new()
        .route(
            "/hold",
            get(async move |db: DbSession| {
                let sql = Statement::from_string(db.backend(), "SELECT 1");
                db.query_one_raw(sql).await.unwrap();
                after.pass().await;
            }),
        )
        .route(
            "/refused",
            get(async move |db: DbSession| refused(db, observer).await),
        )
        .layer(strict);
    let first = tokio::spawn(send_owned(app.clone(), "/hold"));
    busy.after.reached(1).await;
    // The third one tells that the second has noted the options of its transaction, which was begun for it.
    let mut others = Vec::new();
    for pending in 1..=2 {
        others.push(tokio::spawn(send_owned(app.clone(), "/refused")));
        busy.pending(pending).await;
    }
    busy.after.open();
    assert_committed(first).await;
    for other in others {
        assert_refused(&answer(other).await);
    }
    assert_eq!(busy.proxy.chained(), 2);
    busy.assert_whole().await;
}

#[tokio::test]
async fn a_refused_commit_leaves_the_next_request_a_transaction_of_its_own() {
    for layer in 0..2 {
        let busy = Busy::new(Kind::Postgres, 1).await;
        busy.observer
            .execute_unprepared(
                "CREATE TABLE later (id integer REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)",
            )
            .await
            .unwrap();
        let layer = &busy.layers()[layer];
        let [lost, kept] = [unique_name(), unique_name()];
        let mut requests = busy
            .committing(
                (layer, &format!("/violate/{lost}")),
                &[(layer, &format!("/insert/{kept}"))],
            )
            .await;
        busy.proxy.let_go();
        assert_committed(requests.pop().unwrap()).await;
        let refused = requests.pop().unwrap().await.unwrap();
        assert_eq!(refused.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let outcome: &Outcome = refused.extensions().get().unwrap();
        assert!(outcome.error().unwrap().is_commit_failed(), "{outcome:?}");
        assert_eq!(count_items(&busy.observer, &lost).await, 0);
        assert_eq!(count_items(&busy.observer, &kept).await, 1);
        busy.assert_whole().await;
    }
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_unknown_and_the_next_request_goes_on() {
    for kind in WITH_SERVERS {
        let busy = Busy::new(kind, 1).await;
        let [layer, _] = busy.layers();
        let [first, second] = [unique_name(), unique_name()];
        let mut requests = busy
            .committing(
                (&layer, &format!("/hold/{first}")),
                &[(&layer, &format!("/insert/{second}"))],
            )
            .await;
        busy.proxy.forsake();
        assert_committed(requests.pop().unwrap()).await;
        let response = requests.pop().unwrap().await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let outcome: &Outcome = response.extensions().get().unwrap();
        assert!(outcome.is_unknown(), "{outcome:?}");
        busy.proxy.let_go();
        // It took effect unheard.
        eventually("it is committed", async || {
            count_items(&busy.observer, &first).await == 1
        })
        .await;
        busy.nothing_is_open().await;
        assert_eq!(count_items(&busy.observer, &second).await, 1);
        busy.assert_whole().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_during_commit_leaves_the_next_one_its_transaction() {
    for kind in WITH_SERVERS {
        for layer in 0..2 {
            let busy = Busy::new(kind, 1).await;
            let layer = &busy.layers()[layer];
            let [first, second] = [unique_name(), unique_name()];
            let mut requests = busy
                .committing(
                    (layer, &format!("/hold/{first}")),
                    &[(layer, &format!("/insert/{second}"))],
                )
                .await;
            requests[0].abort();
            busy.proxy.let_go();
            assert_committed(requests.pop().unwrap()).await;
            assert_eq!(count_items(&busy.observer, &first).await, 1);
            assert_eq!(count_items(&busy.observer, &second).await, 1);
            busy.assert_whole().await;
        }
    }
}
