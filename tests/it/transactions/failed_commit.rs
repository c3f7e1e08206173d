//! G7: a transaction that is not committed is never answered as if it were.
//! The COMMIT failed, the server gave the transaction up, or another one was in its way.

use std::sync::Arc;

use axum::{Router, response::Response, routing::any};
use http::StatusCode;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, Statement, TransactionTrait,
    sqlx::sqlite::SqliteJournalMode,
};
use tokio::{join, sync::Notify};
use tower_sea_orm::DbTx;

use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb, insert_item},
        pool::session_layer,
        requests::text,
        site::{BOUND, DEFERRING, SIZE, Site, call, known, outcome, retry_after, value, violate},
        wait::eventually,
    },
};

/// The answer says: nothing happened, come again.
#[track_caller]
fn assert_come_again(response: &Response) {
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(retry_after(response), Some("1"));
    assert!(!outcome(response).is_committed());
}

#[tokio::test]
async fn a_refused_commit_is_a_500_and_nothing_is_written() {
    for kind in DEFERRING {
        for lazy in [false, true] {
            let site = Site::new(kind)
                .await
                .layered(|layer| if lazy { layer.lazy() } else { layer });
            site.defer().await;
            let (log, _guard) = Log::start();
            let response = site
                .call(async |tx: DbTx| {
                    insert_item(&tx, "lost").await;
                    violate(&tx).await;
                    "all is well"
                })
                .await;
            assert_eq!(site.count("lost").await, 0, "{kind:?}");
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(retry_after(&response), None);
            assert!(outcome(&response).error().unwrap().is_commit_failed());
            assert!(!outcome(&response).is_committed() && !outcome(&response).is_unknown());
            let errors: Vec<_> = log
                .lines()
                .into_iter()
                .filter(|line| line.starts_with("ERROR"))
                .collect();
            let [error] = &errors[..] else {
                panic!("one line, not {errors:?}")
            };
            assert!(
                error.to_lowercase().contains("foreign key"),
                "the log knows the cause: {error}"
            );
            assert!(
                !format!("{:?}", response.headers())
                    .to_lowercase()
                    .contains("foreign")
            );
            assert_eq!(
                text(response).await,
                "",
                "the client gets neither the handler's words nor the database's"
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_swallowed_error_is_a_200_only_where_the_server_lives_with_it() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        insert_item(&site.db, "taken").await;
        let response = site
            .call(async |tx: DbTx| {
                insert_item(&tx, "before").await;
                tx.execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
                    .await
                    .unwrap_err();
                let _ = tx
                    .execute_unprepared("INSERT INTO item (name) VALUES ('after')")
                    .await;
            })
            .await;
        let aborted = kind == Kind::Postgres;
        assert_eq!(
            response.status().as_u16(),
            if aborted { 500 } else { 200 },
            "{kind:?}"
        );
        assert_eq!(
            site.seen(["before", "after"]).await,
            [!aborted; 2],
            "{kind:?}"
        );
        assert_eq!(
            outcome(&response)
                .error()
                .is_some_and(|error| error.is_aborted()),
            aborted
        );
        assert_eq!(retry_after(&response), None);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn an_error_rolled_back_to_its_savepoint_spares_the_transaction() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        insert_item(&site.db, "taken").await;
        let response = site
            .call(async |tx: DbTx| {
                insert_item(&tx, "first").await;
                let inner = tx.begin().await.unwrap();
                insert_item(&inner, "undone").await;
                inner
                    .execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
                    .await
                    .unwrap_err();
                inner.rollback().await.unwrap();
                insert_item(&tx, "second").await;
                let inner = tx.begin().await.unwrap();
                inner
                    .execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
                    .await
                    .unwrap_err();
                drop(inner);
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{kind:?}");
        assert!(outcome(&response).is_committed());
        assert_eq!(
            site.seen(["first", "undone", "second"]).await,
            [true, false, true],
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_full_database_refuses_the_rest_of_the_request_and_its_200() {
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let site = Site::with(test, db, 1).await;
        let pages: i64 = value(&site.db, "SELECT page_count FROM pragma_page_count()").await;
        site.db
            .execute_unprepared(&format!("PRAGMA max_page_count = {}", pages + 2))
            .await
            .unwrap();
        let response = site
            .call(async |tx: DbTx| {
                insert_item(&tx, "lost").await;
                let fill = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 9000) \
                            INSERT INTO item (name) SELECT 'filler ' || n FROM t";
                tx.execute_unprepared(fill).await.unwrap_err();
                let next = tx.execute_unprepared("INSERT INTO item (name) VALUES ('autocommitted')").await;
                assert!(known(next).is_aborted());
            })
            .await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(
            site.seen(["lost", "autocommitted"]).await,
            [false, false],
            "{kind:?}"
        );
        site.db
            .execute_unprepared("PRAGMA max_page_count = 1000000")
            .await
            .unwrap();
        site.assert_whole().await;
    }
}

/// How a handler takes an error.
#[derive(Clone, Copy, Debug)]
enum Taken {
    /// With `?`: it answers 500.
    Passed,
    /// It answers 200.
    Swallowed,
}

impl Taken {
    const BOTH: [Self; 2] = [Self::Passed, Self::Swallowed];

    fn answer(self) -> StatusCode {
        match self {
            Self::Passed => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Swallowed => StatusCode::OK,
        }
    }
}

/// Returns whether a session in the observer's database waits for a lock.
async fn waits(observer: &DatabaseConnection, kind: Kind) -> bool {
    let sql = match kind {
        Kind::Postgres => {
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        }
        _ => {
            // Not innodb_trx, which does not see what is new while it is looked at. Here InnoDB's victim is the
            // same whoever comes first.
            "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND id <> connection_id() \
             AND info LIKE 'UPDATE item SET hits = hits + 1 WHERE id = 1%'"
        }
    };
    value::<i64>(observer, sql).await > 0
}

#[tokio::test]
async fn a_deadlock_victim_is_retryable() {
    for kind in [Kind::Postgres, Kind::MySql] {
        for taken in Taken::BOTH {
            let site = Site::new(kind).await;
            insert_item(&site.db, "one").await;
            insert_item(&site.db, "two").await;
            let observer = site.observer.clone().unwrap();
            let lock = |id: u32| format!("UPDATE item SET hits = hits + 1 WHERE id = {id}");
            let (one, two) = (lock(1), lock(2));
            let (locked, crossed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let request = site.app({
                let (one, two, locked, crossed) =
                    (one.clone(), two.clone(), locked.clone(), crossed.clone());
                async move |tx: DbTx| {
                    insert_item(&tx, "lost").await;
                    if kind == Kind::Postgres {
                        // Whoever looks after the circle is closed is the victim.
                        tx.execute_unprepared("SET LOCAL deadlock_timeout = '10ms'")
                            .await
                            .unwrap();
                    }
                    tx.execute_unprepared(&one).await.unwrap();
                    locked.notify_one();
                    crossed.notified().await;
                    let error = known(tx.execute_unprepared(&two).await);
                    assert!(error.is_conflict(), "{error}");
                    let next = tx
                        .execute_unprepared("INSERT INTO item (name) VALUES ('autocommitted')")
                        .await;
                    assert!(next.is_err());
                    taken.answer()
                }
            });
            let other = async {
                let other = observer.begin().await.unwrap();
                // InnoDB gives up the one that has changed fewer rows.
                for n in 0..20 {
                    insert_item(&other, &format!("weight {n}")).await;
                }
                other.execute_unprepared(&two).await.unwrap();
                locked.notified().await;
                let cross = async {
                    eventually("the other one waits", async || waits(&observer, kind).await).await;
                    crossed.notify_one();
                };
                join!(
                    async { other.execute_unprepared(&one).await.unwrap() },
                    cross
                );
                other.rollback().await.unwrap();
            };
            let (response, ()) = join!(call(request), other);
            assert_come_again(&response);
            assert_eq!(
                site.seen(["lost", "autocommitted"]).await,
                [false, false],
                "{kind:?} {taken:?}"
            );
            let again = site
                .call(async |tx: DbTx| insert_item(&tx, "again").await)
                .await;
            assert_eq!(
                (again.status(), site.count("again").await),
                (StatusCode::OK, 1)
            );
            site.assert_whole().await;
        }
    }
}

/// SQLite does not let a transaction change what another connection has changed since its snapshot.
async fn outdated(tx: &DbTx, other: &DatabaseConnection) {
    let _: i64 = value(tx, "SELECT count(*) FROM item").await;
    other
        .execute_unprepared("UPDATE item SET hits = hits + 1")
        .await
        .unwrap();
    let error = known(
        tx.execute_unprepared("INSERT INTO item (name) VALUES ('lost')")
            .await,
    );
    assert!(error.is_conflict(), "{error}");
}

#[tokio::test]
async fn a_statement_on_a_busy_sqlite_is_retryable() {
    let site = Site::new(Kind::SqliteFile).await;
    insert_item(&site.db, "shared").await;
    let other = site.observer.clone().unwrap();
    let response = site
        .call(async move |tx: DbTx| {
            outdated(&tx, &other).await;
            StatusCode::INTERNAL_SERVER_ERROR
        })
        .await;
    assert_come_again(&response);
    assert_eq!(site.count("lost").await, 0);
    let again = site
        .call(async |tx: DbTx| insert_item(&tx, "again").await)
        .await;
    assert_eq!(
        (again.status(), site.count("again").await),
        (StatusCode::OK, 1)
    );
    site.assert_whole().await;
}

#[tokio::test]
async fn what_was_committed_in_part_is_not_retryable() {
    let site = Site::new(Kind::SqliteFile).await;
    let other = site.observer.clone().unwrap();
    let response = site
        .call(async move |tx: DbTx| {
            insert_item(&tx, "kept").await;
            tx.commit().await.unwrap();
            outdated(&tx, &other).await;
            StatusCode::INTERNAL_SERVER_ERROR
        })
        .await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(retry_after(&response), None);
    assert_eq!(site.seen(["kept", "lost"]).await, [true, false]);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_commit_on_a_busy_sqlite_is_retryable() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let open = async || {
        let mut options = ConnectOptions::new(test.url());
        options
            .max_connections(SIZE)
            .sqlx_logging(false)
            .map_sqlx_sqlite_opts(|options| {
                // Without a WAL, a reader is in a COMMIT's way.
                options
                    .journal_mode(SqliteJournalMode::Delete)
                    .busy_timeout(std::time::Duration::from_millis(50))
            });
        Database::connect(options).await.unwrap()
    };
    let (db, other) = (open().await, open().await);
    let layer = session_layer(db.clone());
    let site = Site {
        test,
        db,
        layer,
        observer: Some(other.clone()),
        size: SIZE,
    };
    let reader = other.begin().await.unwrap();
    let _: i64 = value(&reader, "SELECT count(*) FROM item").await;

    let response = site
        .call(async |tx: DbTx| insert_item(&tx, "again").await)
        .await;
    assert_come_again(&response);
    assert!(outcome(&response).error().unwrap().is_conflict());
    reader.rollback().await.unwrap();
    assert_eq!(site.count("again").await, 0);
    let again = site
        .call(async |tx: DbTx| insert_item(&tx, "again").await)
        .await;
    assert_eq!(
        (again.status(), site.count("again").await),
        (StatusCode::OK, 1)
    );
    site.assert_whole().await;
}

#[tokio::test]
async fn a_lost_connection_is_an_error_even_if_the_handler_ignores_it() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let proxy = Arc::new(proxy);
        let response = site
            .call({
                let proxy = proxy.clone();
                async move |tx: DbTx| {
                    insert_item(&tx, "lost").await;
                    proxy.cut();
                    tx.execute_unprepared("INSERT INTO item (name) VALUES ('lost as well')")
                        .await
                        .unwrap_err();
                    let next = tx
                        .execute_unprepared("INSERT INTO item (name) VALUES ('elsewhere')")
                        .await;
                    known(next);
                }
            })
            .await;
        assert_eq!(
            response.status(),
            StatusCode::INTERNAL_SERVER_ERROR,
            "{kind:?}"
        );
        assert!(!outcome(&response).is_committed());
        assert_eq!(
            site.seen(["lost", "lost as well", "elsewhere"]).await,
            [false; 3],
            "{kind:?}"
        );
        tokio::time::timeout(BOUND, site.assert_whole())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_transaction_that_its_set_up_did_not_let_begin_is_no_success() {
    for kind in Kind::ALL {
        for sql in ["SELECT no_such_column FROM item", "COMMIT"] {
            let site = Site::new(kind).await;
            let backend = kind.backend();
            let layer = site
                .layer
                .clone()
                .on_begin(move |_| vec![Statement::from_string(backend, sql)]);
            for status in [200, 422] {
                let handler = async move |tx: DbTx| {
                    let _ = tx
                        .execute_unprepared("INSERT INTO item (name) VALUES ('first')")
                        .await;
                    let _ = tx
                        .execute_unprepared("INSERT INTO item (name) VALUES ('second')")
                        .await;
                    StatusCode::from_u16(status).unwrap()
                };
                let response =
                    call(Router::new().route("/", any(handler)).layer(layer.clone())).await;
                let expected = if status == 200 { 500 } else { status };
                assert_eq!(
                    response.status(),
                    expected,
                    "{kind:?}, {sql}: {:?}",
                    outcome(&response)
                );
                assert_eq!(
                    site.seen(["first", "second"]).await,
                    [false; 2],
                    "{kind:?}, {sql}"
                );
            }
            let handler = async |tx: DbTx| {
                tx.execute_unprepared("SELECT 1").await.unwrap_err();
                known(tx.commit().await);
            };
            let response = call(Router::new().route("/", any(handler)).layer(layer.clone())).await;
            assert_eq!(response.status(), 500, "{kind:?}, {sql}");
            site.assert_whole().await;
        }
    }
}
