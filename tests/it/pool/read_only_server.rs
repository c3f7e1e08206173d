//! G18: the pool leaves a server that no longer accepts writes, whichever way its requests write.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    response::{IntoResponse, Response},
    routing::any,
};
use futures_util::StreamExt;
use http::StatusCode;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbErr, Statement, TransactionTrait};
use tower_sea_orm::{DbSession, Error, PoolMode, Reset, SessionPool};

use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb, count_items, insert_item, try_insert_item, unique_name},
        pool::session_layer,
        requests::status,
        servers::OwnServer,
        site::{SIZE, Site, call, retry_after},
        wait::eventually,
        wire::Proxy,
    },
};

/// Two servers, one of which takes writes, and a proxy that leads to it.
struct Pair {
    servers: [OwnServer; 2],
    /// The accounts that may write on a read-only server.
    admins: [DatabaseConnection; 2],
    proxy: Proxy,
    primary: AtomicUsize,
    test: TestDb,
}

impl Pair {
    async fn new() -> Self {
        let servers = [OwnServer::mysql(), OwnServer::mysql()];
        let test = TestDb::on(&servers[0]).await;
        let name = test.url().rsplit_once('/').unwrap().1;
        let second = format!("mysql://root@127.0.0.1:{}", servers[1].port());
        let root = Database::connect(format!("{second}/mysql")).await.unwrap();
        root.execute_unprepared(&format!("CREATE DATABASE {name}"))
            .await
            .unwrap();
        let second = Database::connect(format!("{second}/{name}")).await.unwrap();
        for sql in test.kind.schema() {
            second.execute_unprepared(sql).await.unwrap();
        }
        let admins = [test.connect(1).await, second];
        for admin in &admins {
            admin
                .execute_unprepared("CREATE USER plain@'%'")
                .await
                .unwrap();
            admin
                .execute_unprepared("GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO plain@'%'")
                .await
                .unwrap();
        }
        admins[1]
            .execute_unprepared("SET GLOBAL read_only = 1")
            .await
            .unwrap();
        let proxy = Proxy::start(servers[0].port()).await;
        Self {
            servers,
            admins,
            proxy,
            primary: AtomicUsize::new(0),
            test,
        }
    }

    /// By which a service connects that may not write on a read-only server.
    fn url(&self) -> String {
        self.proxy.url(self.test.url()).replace("root@", "plain@")
    }

    /// The other server takes the writes from now on, and the name leads there. The first one lives on.
    async fn fail_over(&self) {
        let old = self.primary.load(Ordering::SeqCst);
        let new = 1 - old;
        self.admins[old]
            .execute_unprepared("SET GLOBAL read_only = 1")
            .await
            .unwrap();
        self.admins[new]
            .execute_unprepared("SET GLOBAL read_only = 0")
            .await
            .unwrap();
        self.proxy.lead_to(self.servers[new].port());
        self.primary.store(new, Ordering::SeqCst);
    }

    async fn count(&self, name: &str) -> i64 {
        count_items(&self.admins[0], name).await + count_items(&self.admins[1], name).await
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Autocommit,
    Stream,
    Transaction,
    Nested,
    Job,
    /// The server becomes read-only between the write and its COMMIT.
    Commit,
    /// The same, where COMMIT comes at the end of the answer's body.
    Held,
}

const WAYS: [Way; 7] = [
    Way::Autocommit,
    Way::Stream,
    Way::Transaction,
    Way::Nested,
    Way::Job,
    Way::Commit,
    Way::Held,
];

async fn write(db: &DbSession, way: Way, name: &str) -> Result<(), DbErr> {
    let sql = format!("INSERT INTO item (name) VALUES ('{name}')");
    match way {
        Way::Stream => {
            let mut rows = db.rows(Statement::from_string(db.backend(), sql)).await?;
            while let Some(row) = rows.next().await {
                row?;
            }
        }
        Way::Nested => {
            let inner = db.tx().begin().await?;
            inner.execute_unprepared(&sql).await?;
            inner.commit().await?;
        }
        Way::Autocommit => _ = db.execute_unprepared(&sql).await?,
        Way::Transaction | Way::Commit | Way::Held | Way::Job => {
            _ = db.tx().execute_unprepared(&sql).await?
        }
    }
    Ok(())
}

async fn handle(db: DbSession, way: Way, name: String, fails_over: Option<Arc<Pair>>) -> Response {
    if write(&db, way, &name).await.is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if let Some(pair) = fails_over {
        pair.fail_over().await;
    }
    if way == Way::Held {
        return Response::new(Body::new(db.hold_until_body_end(Body::from("held"))));
    }
    StatusCode::CREATED.into_response()
}

/// Returns whether a request that writes succeeds; otherwise it gets a 503. The pair fails over after the write.
async fn succeeds(
    pool: &SessionPool,
    way: Way,
    name: &str,
    fails_over: Option<&Arc<Pair>>,
) -> bool {
    if way == Way::Job {
        let sql = format!("INSERT INTO item (name) VALUES ('{name}')");
        let job = pool
            .transaction(async |tx| tx.execute_unprepared(&sql).await.map(drop))
            .await;
        let known = job.as_ref().err().and_then(Error::of_transaction);
        assert!(
            job.is_ok() || known.is_some_and(|known| known.is_read_only()),
            "{name}: {job:?}"
        );
        return job.is_ok();
    }
    let (owned, fails_over) = (name.to_owned(), fails_over.cloned());
    let handler = move |db: DbSession| handle(db, way, owned.clone(), fails_over.clone());
    let layer = tower_sea_orm::DbSessionLayer::new(pool.clone());
    let response = call(Router::new().route("/", any(handler)).layer(layer)).await;
    if !response.status().is_success() {
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{name}");
        assert!(retry_after(&response).is_some(), "{name}");
        return false;
    }
    to_bytes(response.into_body(), 100).await.is_ok()
}

#[tokio::test]
async fn g18_after_a_failover_every_way_to_write_reaches_the_other_server() {
    let pair = Arc::new(Pair::new().await);
    for way in WAYS {
        let db = Database::connect(pair.test.options_at(&pair.url(), SIZE))
            .await
            .unwrap();
        let pool = session_layer(db).pool().clone();
        // All connections are to the server of before.
        let mut held = Vec::new();
        for _ in 0..SIZE {
            let session = pool.session().await.unwrap();
            session.execute_unprepared("SELECT 1").await.unwrap();
            held.push(session);
        }
        drop(held);
        let by_itself = matches!(way, Way::Commit | Way::Held);
        if !by_itself {
            pair.fail_over().await;
        }
        let mut failed = 0;
        for n in 0..8 {
            let name = format!("{way:?} {n}");
            let is_good = succeeds(
                &pool,
                way,
                &name,
                Some(&pair).filter(|_| by_itself && n == 0),
            )
            .await;
            assert_eq!(pair.count(&name).await, i64::from(is_good), "{name}");
            failed += u32::from(!is_good);
        }
        assert!(
            (1..=SIZE).contains(&failed),
            "{way:?}: {failed} of 8 writes failed"
        );
        let name = format!("{way:?} 7");
        assert_eq!(
            count_items(&pair.admins[pair.primary.load(Ordering::SeqCst)], &name).await,
            1,
            "{name}"
        );
    }
}

#[tokio::test]
async fn writes_refused_by_a_standby_go_to_the_primary_the_name_leads_to() {
    let primary = OwnServer::postgres();
    let test = TestDb::on(&primary).await;
    let (standby, observer) = (primary.standby(), test.connect(1).await);
    let proxy = Proxy::start(standby.port()).await;
    for way in WAYS
        .into_iter()
        .filter(|way| !matches!(way, Way::Commit | Way::Held))
    {
        proxy.lead_to(standby.port());
        let db = Database::connect(test.options_at(&proxy.url(test.url()), SIZE))
            .await
            .unwrap();
        let pool = session_layer(db).pool().clone();
        let name = format!("{way:?}");
        assert!(
            !succeeds(&pool, way, &name, None).await,
            "{name} on the standby"
        );
        assert_eq!(
            count_items(&observer, &name).await,
            0,
            "{name} on the standby"
        );
        proxy.lead_to(primary.port());
        eventually("a write takes place", async || {
            succeeds(&pool, way, &name, None).await
        })
        .await;
        assert_eq!(
            count_items(&observer, &name).await,
            1,
            "{name} on the primary"
        );
    }
}

#[tokio::test]
async fn a_standby_that_is_promoted_takes_the_next_write() {
    let primary = OwnServer::postgres();
    let test = TestDb::on(&primary).await;
    let standby = primary.standby();
    let proxy = Proxy::start(standby.port()).await;
    let db = Database::connect(test.options_at(&proxy.url(test.url()), SIZE))
        .await
        .unwrap();
    let pool = session_layer(db.clone()).pool().clone();
    assert!(!succeeds(&pool, Way::Transaction, "before", None).await);
    db.execute_unprepared("SELECT pg_promote()").await.unwrap();
    eventually("it takes a write", async || {
        succeeds(&pool, Way::Transaction, "after", None).await
    })
    .await;
    assert_eq!(
        (
            count_items(&db, "before").await,
            count_items(&db, "after").await
        ),
        (0, 1)
    );
}

/// A database that is read-only for good, as a replica is or a role's setting says.
#[tokio::test]
async fn refused_writes_do_not_replace_a_connection_each() {
    let test = TestDb::new(Kind::Postgres).await;
    let name = test
        .url()
        .rsplit_once('/')
        .unwrap()
        .1
        .split('?')
        .next()
        .unwrap()
        .to_owned();
    let admin = test.connect(1).await;
    let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    admin.execute_unprepared(&set).await.unwrap();
    let proxy = Proxy::start(crate::support::site::port_of(test.url())).await;
    let db = Database::connect(test.options_at(&proxy.url(test.url()), SIZE))
        .await
        .unwrap();
    let site = Site::with(test, db, SIZE).await;
    let (before, since) = (proxy.accepted(), Instant::now());
    for n in 0..60 {
        let handler = async move |db: DbSession| {
            if n % 2 == 0 {
                db.tx();
            }
            match db
                .execute_unprepared("UPDATE item SET hits = hits + 1")
                .await
            {
                Ok(_) => StatusCode::OK,
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
            }
        };
        let response = site.call(handler).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(retry_after(&response).is_some());
    }
    let new = proxy.accepted() - before;
    // After 50 ms, twice as late each time, and at last every second; all that are idle each time.
    let evictions = 7 + since.elapsed().as_secs();
    assert!(
        new <= evictions * u64::from(SIZE),
        "{new} connections for 60 writes"
    );
}

/// A handler's own ways to have its writes refused: what it says first, what is refused then, and whether in a
/// transaction.
const OWN: [(Kind, &str, &str, bool); 9] = [
    (Kind::Postgres, "SET TRANSACTION READ ONLY", WRITE, true),
    (
        Kind::Postgres,
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        WRITE,
        false,
    ),
    (
        Kind::Postgres,
        "SET default_transaction_read_only = on",
        WRITE,
        false,
    ),
    (
        Kind::Postgres,
        "SET transaction_read_only = on",
        WRITE,
        true,
    ),
    (Kind::Postgres, "SELECT 1", "SELECT refuses()", false),
    (Kind::Postgres, "SELECT 1", "SELECT refuses()", true),
    (
        Kind::MySql,
        "SET SESSION TRANSACTION READ ONLY",
        WRITE,
        false,
    ),
    (Kind::MySql, "SELECT 1", "CALL refuses()", false),
    (Kind::MySql, "SELECT 1", "CALL refuses()", true),
];

const WRITE: &str = "INSERT INTO item (name) VALUES ('refused')";

/// Has `refuses` raise what a server says that takes no writes.
async fn with_refusing_code(kind: Kind) -> Site {
    let site = Site::new(kind).await;
    let sql = match kind {
        Kind::MySql => {
            "CREATE PROCEDURE refuses() SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290, MESSAGE_TEXT = '--read-only'"
        }
        _ => {
            "CREATE FUNCTION refuses() RETURNS void LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '25006'; END $$"
        }
    };
    site.run(sql).await;
    site
}

#[tokio::test]
async fn a_write_in_a_read_only_transaction_closes_no_connection() {
    for (kind, before, refused, in_transaction) in OWN {
        let site = with_refusing_code(kind).await;
        let (log, _guard) = Log::start();
        let response = site
            .call(async move |db: DbSession| {
                if in_transaction {
                    db.tx();
                }
                db.execute_unprepared(before).await.unwrap();
                let error = db.execute_unprepared(refused).await.unwrap_err();
                assert!(
                    Error::of(&error).unwrap().is_read_only(),
                    "{before}: {error}"
                );
                StatusCode::INTERNAL_SERVER_ERROR
            })
            .await;
        let is_askable = !in_transaction && refused == WRITE || kind == Kind::MySql;
        if is_askable {
            assert_eq!(
                response.status(),
                StatusCode::INTERNAL_SERVER_ERROR,
                "{kind:?} {before}, {refused}"
            );
        }
        site.assert_whole().await;
        // The first time, the pool says that it leaves a server.
        let lines = log.lines();
        assert!(
            !lines
                .iter()
                .any(|line| line.contains("connections are closed")),
            "{kind:?} {before}, {refused}: {lines:?}"
        );
        for n in 0..SIZE {
            let name = format!("after {n}");
            let inserted = name.clone();
            site.call(async move |db: DbSession| insert_item(&db, &inserted).await)
                .await;
            assert_eq!(site.count(&name).await, 1, "{kind:?} {before}, {refused}");
        }
        site.assert_whole().await;
    }
}

/// G13: without a reset it stays, for one write of another request.
#[tokio::test]
async fn a_session_made_read_only_refuses_one_later_write_or_none_with_a_reset() {
    let sets = [
        (
            Kind::Postgres,
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        ),
        (Kind::MySql, "SET SESSION TRANSACTION READ ONLY"),
    ];
    for (kind, set) in sets {
        for (reset, refused) in [(Reset::RollbackOnly, 1), (Reset::SessionState, 0)] {
            let (site, _proxy) = Site::queued(kind).await;
            let site = site.pooled(|pool| pool.reset(reset).pool_mode(PoolMode::Session));
            let set_up = site
                .call(async move |db: DbSession| status(db.execute_unprepared(set).await))
                .await;
            assert_eq!(set_up.status(), 200, "{kind:?}");
            let mut statuses = Vec::new();
            for _ in 0..3 {
                let write =
                    async |db: DbSession| status(try_insert_item(&db, &unique_name()).await);
                statuses.push(site.call(write).await.status().as_u16());
            }
            let mut expected = vec![200; 3];
            expected[..refused].fill(500);
            assert_eq!(statuses, expected, "{kind:?}, {reset:?}");
            site.assert_whole().await;
        }
    }
}

/// SQLite has no other server that would take the write.
#[tokio::test]
async fn a_write_to_a_read_only_file_keeps_the_handlers_own_500() {
    let site = Site::new(Kind::SqliteFile).await;
    let (path, _) = site.test.url().split_once('?').unwrap();
    let db = Database::connect(format!("{path}?mode=ro")).await.unwrap();
    let write = async |db: DbSession| status(db.execute_unprepared(WRITE).await);
    for layer in [session_layer(db.clone()), session_layer(db).transaction()] {
        let answer = call(Router::new().route("/", any(write)).layer(layer)).await;
        assert_eq!(
            (answer.status(), retry_after(&answer)),
            (StatusCode::INTERNAL_SERVER_ERROR, None)
        );
    }
    site.assert_whole().await;
}

/// A database that refuses writes on the connections of before, as a server does that another one has taken over
/// from, and takes those of new ones, as that other one does.
#[tokio::test]
async fn after_a_failover_writes_succeed_within_a_few_requests() {
    for in_transaction in [false, true] {
        let test = TestDb::new(Kind::Postgres).await;
        let name = test
            .url()
            .rsplit_once('/')
            .unwrap()
            .1
            .split('?')
            .next()
            .unwrap()
            .to_owned();
        let admin = test.connect(1).await;
        let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
        admin.execute_unprepared(&set).await.unwrap();
        let db = test.connect(3).await;
        let site = Site::with(test, db, 3).await;
        // All connections are opened to the server of before.
        let mut held = Vec::new();
        for _ in 0..3 {
            let session = site.layer.pool().session().await.unwrap();
            session.execute_unprepared("SELECT 1").await.unwrap();
            held.push(session);
        }
        drop(held);
        let reset = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
        admin
            .execute_unprepared("SET default_transaction_read_only = off")
            .await
            .unwrap();
        admin.execute_unprepared(&reset).await.unwrap();
        let mut failed = 0;
        for _ in 0..10 {
            let response = site
                .call(async move |db: DbSession| {
                    if in_transaction {
                        db.tx();
                    }
                    status(
                        db.execute_unprepared("UPDATE item SET hits = hits + 1")
                            .await,
                    )
                })
                .await;
            if response.status() != StatusCode::OK {
                failed += 1;
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
                assert!(retry_after(&response).is_some());
            }
        }
        // The first one closes the connections of the others.
        assert_eq!(failed, 1, "of 10 writes");
        site.layer.pool().ping().await.unwrap();
    }
}
