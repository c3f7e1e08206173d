//! G13: every way we know to leave something behind.

use http::StatusCode;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tower_sea_orm::{DbSession, PoolSession, Reset, SessionPool, SessionPoolBuilder};

use super::{connection, look, returned};
use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    futures::after_polls,
    pool::{assert_whole, pool_with, session_pool},
    statements::raw,
    world::{World, post, serve},
};

/// A statement that leaves something behind, and the query that sees it.
pub type Leak = (&'static str, &'static str);

const SETTING: &str = "SELECT coalesce(nullif(current_setting('app.x', true), ''), '-')";
const ADVISORY: &str =
    "SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
const TEMPORARY: &str = "SELECT coalesce(to_regclass('pg_temp.mine')::text, '-')";

/// On PostgreSQL, all of it is put back.
pub const POSTGRES: [Leak; 20] = [
    (
        "SET search_path = pg_catalog",
        "SELECT current_setting('search_path')",
    ),
    ("SET app.x = 'y'", SETTING),
    ("SELECT set_config('app.x', 'y', false)", SETTING),
    ("SELECT 1; SET app.x = 'y'; SELECT 2", SETTING),
    (
        "DO $$ BEGIN PERFORM set_config('app.x', 'y', false); END $$",
        SETTING,
    ),
    ("SET ROLE pg_monitor", "SELECT current_user::text"),
    (
        "SET SESSION AUTHORIZATION pg_monitor",
        "SELECT session_user::text",
    ),
    (
        "SET statement_timeout = '77s'",
        "SELECT current_setting('statement_timeout')",
    ),
    (
        "SET TIME ZONE 'Asia/Tokyo'",
        "SELECT current_setting('timezone')",
    ),
    (
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SELECT current_setting('default_transaction_read_only')",
    ),
    ("SELECT pg_advisory_lock(7)", ADVISORY),
    // The server may still be busy with giving back the lock of a connection that has just been closed.
    ("SELECT pg_try_advisory_lock_shared(8)", ADVISORY),
    (
        "WITH a AS (SELECT pg_advisory_lock(7)) SELECT * FROM a",
        ADVISORY,
    ),
    ("CREATE TEMP TABLE mine (a int)", TEMPORARY),
    ("CREATE TABLE pg_temp.mine (a int)", TEMPORARY),
    ("SELECT 1 AS a INTO TEMP mine", TEMPORARY),
    (
        "CREATE OR REPLACE TEMPORARY VIEW mine AS SELECT 1",
        TEMPORARY,
    ),
    (
        "LISTEN news",
        "SELECT count(*)::text FROM pg_listening_channels()",
    ),
    (
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*)::text FROM pg_cursors WHERE is_holdable",
    ),
    ("CREATE TEMP SEQUENCE mine", TEMPORARY),
];

/// On PostgreSQL, the connection is closed.
const POSTGRES_CLOSED: [Leak; 2] = [
    (
        "PREPARE mine AS SELECT 1",
        "SELECT count(*)::text FROM pg_prepared_statements WHERE from_sql",
    ),
    ("PREPARE mine AS SELECT 1; SET app.x = 'y'", SETTING),
];

/// On MariaDB, locks are given back.
pub const MYSQL: [Leak; 3] = [
    (
        "SELECT GET_LOCK('mine', 1)",
        "SELECT CAST(coalesce(IS_USED_LOCK('mine'), 0) = CONNECTION_ID() AS CHAR)",
    ),
    (
        "DO GET_LOCK('mine', 1)",
        "SELECT CAST(coalesce(IS_USED_LOCK('mine'), 0) = CONNECTION_ID() AS CHAR)",
    ),
    (
        "LOCK TABLES item WRITE",
        "SELECT CAST(count(*) AS CHAR) FROM other",
    ),
];

/// On MariaDB, the connection is closed.
const MYSQL_CLOSED: [Leak; 7] = [
    ("SET @mine = 'y'", "SELECT CAST(@mine AS CHAR)"),
    ("SELECT @mine := 'y'", "SELECT CAST(@mine AS CHAR)"),
    ("SELECT 'y' INTO @mine", "SELECT CAST(@mine AS CHAR)"),
    (
        "SET sql_mode = 'ANSI_QUOTES'",
        "SELECT CAST(@@sql_mode AS CHAR)",
    ),
    (
        "SET time_zone = '+09:00'",
        "SELECT CAST(@@time_zone AS CHAR)",
    ),
    (
        "CREATE TEMPORARY TABLE mine (a int)",
        "SELECT CAST(count(*) AS CHAR) FROM mine",
    ),
    ("CALL sets()", "SELECT CAST(@mine AS CHAR)"),
];

pub const SQLITE: [Leak; 4] = [
    (
        "CREATE TEMP TABLE mine (a); CREATE TEMP TABLE \"it's \"\"mine\"\"\" (a)",
        "SELECT CAST(count(*) AS text) FROM sqlite_temp_master",
    ),
    (
        "CREATE TEMP VIEW mine AS SELECT 1",
        "SELECT CAST(count(*) AS text) FROM sqlite_temp_master",
    ),
    (
        "CREATE TEMP TRIGGER mine AFTER INSERT ON main.item BEGIN DELETE FROM item; END",
        "SELECT CAST(count(*) AS text) FROM sqlite_temp_master",
    ),
    (
        "ATTACH ':memory:' AS \"my \"\"own\"",
        "SELECT CAST(count(*) AS text) FROM pragma_database_list WHERE name <> 'temp'",
    ),
];

const PRAGMAS: [Leak; 2] = [
    (
        "PRAGMA foreign_keys = off",
        "SELECT CAST(foreign_keys AS text) FROM pragma_foreign_keys",
    ),
    (
        "PRAGMA case_sensitive_like = on",
        "SELECT CAST('a' LIKE 'A' AS text)",
    ),
];

/// Returns the leaks of a kind of database, and whether the next session has the same connection.
fn leaks(kind: Kind) -> Vec<(Leak, bool)> {
    let (kept, closed): (&[Leak], &[Leak]) = match kind {
        Kind::Postgres => (&POSTGRES, &POSTGRES_CLOSED),
        Kind::MySql => (&MYSQL, &MYSQL_CLOSED),
        Kind::SqliteFile => (&[], &PRAGMAS),
        Kind::SqliteMemory => (&SQLITE, &[]),
    };
    let also = if kind == Kind::SqliteFile {
        &SQLITE[..]
    } else {
        &[]
    };
    let closed = closed.iter().chain(also).map(|leak| (*leak, false));
    kept.iter()
        .map(|leak| (*leak, true))
        .chain(closed)
        .collect()
}

/// How the session comes to it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Plain,
    Committed,
    RolledBack,
    Dropped,
    Raw,
}

async fn go(session: &PoolSession, sql: &'static str, way: Way) {
    match way {
        Way::Plain => drop(session.execute_unprepared(sql).await.unwrap()),
        Way::Raw => raw(session, sql).await,
        _ => {
            let tx = session.begin().await.unwrap();
            tx.execute_unprepared(sql).await.unwrap();
            match way {
                Way::Committed => tx.commit().await.unwrap(),
                Way::RolledBack => tx.rollback().await.unwrap(),
                _ => drop(tx),
            }
        }
    }
}

/// Returns what the next session sees, and what it would see if nothing was left behind.
async fn next_sees(kind: Kind, pool: &SessionPool, leak: Leak, way: Way) -> (String, String, bool) {
    let session = pool.session().await.unwrap();
    let before = look(&*session, leak.1).await;
    let first = connection(kind, &*session).await;
    go(&session, leak.0, way).await;
    if way == Way::Plain {
        assert_ne!(
            look(&*session, leak.1).await,
            before,
            "{kind:?}: {} leaves nothing",
            leak.0
        );
    }
    drop(session);
    returned(pool).await;
    let session = pool.session().await.unwrap();
    let second = connection(kind, &*session).await;
    let seen = look(&*session, leak.1).await;
    drop(session);
    returned(pool).await;
    (seen, before, first == second)
}

async fn database(kind: Kind) -> TestDb {
    let test = TestDb::new(kind).await;
    if kind == Kind::MySql {
        let db = test.connect(1).await;
        db.execute_unprepared("CREATE TABLE other (a int)")
            .await
            .unwrap();
        db.execute_unprepared("CREATE PROCEDURE sets() SET @mine = 'y'")
            .await
            .unwrap();
        db.close().await.unwrap();
    }
    test
}

async fn assert_reset(kind: Kind, reset: Reset) {
    let test = database(kind).await;
    let db = test.connect(2).await;
    let pool = pool_with(&db, |pool| pool.reset(reset));
    let ways: &[Way] = match reset {
        Reset::SessionStateAlways => &[Way::Plain],
        _ => &[
            Way::Plain,
            Way::Committed,
            Way::RolledBack,
            Way::Dropped,
            Way::Raw,
        ],
    };
    for (leak, kept) in leaks(kind) {
        // These are refused, or do nothing, inside of a transaction.
        let alone = ["LOCK", "ATTACH", "PRAGMA foreign_keys"]
            .iter()
            .any(|word| leak.0.starts_with(word));
        for way in ways
            .iter()
            .filter(|way| !alone || matches!(way, Way::Plain | Way::Raw))
        {
            if *way == Way::Raw && leak == POSTGRES_CLOSED[0] {
                // Nobody sees it.
                continue;
            }
            let case = format!("{kind:?} {reset:?} {way:?}: {}", leak.0);
            let (seen, before, same) = next_sees(kind, &pool, leak, *way).await;
            assert_eq!(seen, before, "{case}");
            let kept = match kind {
                // Raw code may have done anything; a reset is the answer to all that PostgreSQL can undo.
                Kind::Postgres => kept || *way == Way::Raw,
                Kind::MySql => kept && *way != Way::Raw,
                _ => true,
            };
            assert_eq!(same, kept, "{case}: the connection");
        }
    }
    insert_item(&db, "still there").await;
    assert_eq!(count_items(&db, "still there").await, 1);
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn g13_nothing_leaks_on_postgres() {
    assert_reset(Kind::Postgres, Reset::SessionState).await;
    assert_reset(Kind::Postgres, Reset::SessionStateAlways).await;
}

#[tokio::test]
async fn g13_nothing_leaks_on_mysql() {
    assert_reset(Kind::MySql, Reset::SessionState).await;
    assert_reset(Kind::MySql, Reset::SessionStateAlways).await;
}

#[tokio::test]
async fn g13_nothing_leaks_on_sqlite() {
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        assert_reset(kind, Reset::SessionState).await;
        assert_reset(kind, Reset::SessionStateAlways).await;
    }
}

/// So that the others prove something.
#[tokio::test]
async fn h7_without_a_reset_everything_leaks() {
    for kind in Kind::ALL {
        let shared = database(kind).await;
        for (leak, _) in leaks(kind) {
            // In memory, there is one connection that keeps everything.
            let own = if kind == Kind::SqliteMemory {
                Some(database(kind).await)
            } else {
                None
            };
            let test = own.as_ref().unwrap_or(&shared);
            let db = test.connect(2).await;
            let pool = session_pool(db.clone());
            let (seen, before, _) = next_sees(kind, &pool, leak, Way::Plain).await;
            assert_ne!(seen, before, "{kind:?}: {}", leak.0);
            db.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn g13_a_failed_statement_counts_as_one_that_may_have_changed_something() {
    let world = World::new(Kind::Postgres, 2).await;
    let pool = pool_with(&world.db, |pool| pool.reset(Reset::SessionState));
    let session = pool.session().await.unwrap();
    let first = connection(Kind::Postgres, &*session).await;
    let sql = "DO $$ BEGIN PERFORM pg_advisory_lock(7); RAISE 'no'; END $$";
    session.execute_unprepared(sql).await.unwrap_err();
    assert_eq!(look(&*session, ADVISORY).await, "1");
    drop(session);
    returned(&pool).await;
    let session = pool.session().await.unwrap();
    assert_eq!(look(&*session, ADVISORY).await, "0");
    assert_eq!(connection(Kind::Postgres, &*session).await, first);
    drop(session);
    world.assert_whole().await;
}

#[tokio::test]
async fn g13_a_request_dropped_at_any_point_of_its_set_leaves_nothing_behind() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (sql, see) = match kind {
            Kind::Postgres => (
                "SET statement_timeout = 77777",
                "SELECT current_setting('statement_timeout')",
            ),
            _ => ("SET @mine = 'y'", "SELECT CAST(@mine AS CHAR)"),
        };
        let world = World::new(kind, 2).await;
        let app = serve(async move |db: DbSession| {
            db.execute_unprepared(sql).await.unwrap();
            let tx = db.begin().await.unwrap();
            tx.execute_unprepared(sql).await.unwrap();
            tx.commit().await.unwrap();
            StatusCode::OK
        });
        let layer = world.layer_with(|pool| pool.reset(Reset::SessionState));
        let pool = layer.pool().clone();
        let app = app.layer(layer);
        let before = look(&world.view, see).await;
        for polls in 0..24 {
            drop(after_polls(polls, post(&app, "/")).await);
            returned(&pool).await;
            for _ in 0..2 {
                let both = [pool.session().await.unwrap(), pool.session().await.unwrap()];
                for session in &both {
                    assert_eq!(
                        look(&**session, see).await,
                        before,
                        "{kind:?} after {polls} polls"
                    );
                }
            }
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn g13_a_connection_released_early_is_reset_as_well() {
    for kind in [Kind::Postgres, Kind::SqliteMemory] {
        let (sql, see) = if kind == Kind::Postgres {
            POSTGRES[0]
        } else {
            SQLITE[0]
        };
        let world = World::new(kind, 1).await;
        let app = serve(async move |db: DbSession| {
            let (first, before) = (connection(kind, &db).await, look(&db, see).await);
            db.execute_unprepared(sql).await.unwrap();
            assert_ne!(look(&db, see).await, before);
            db.release().await.unwrap();
            assert_eq!(look(&db, see).await, before, "{kind:?}");
            // The pool's only one.
            assert_eq!(connection(kind, &db).await, first, "{kind:?}");
        });
        for warm in [true, false] {
            let app = app.clone().layer(
                world.layer_with(|pool| pool.direct_handoff(warm).reset(Reset::SessionState)),
            );
            assert_eq!(post(&app, "/").await.status(), StatusCode::OK);
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn an_open_transaction_left_by_raw_code_is_never_handed_on() {
    for reset in [
        Reset::None,
        Reset::RollbackOnly,
        Reset::SessionState,
        Reset::SessionStateAlways,
    ] {
        for kind in Kind::ALL {
            let world = World::new(kind, 2).await;
            let pool = pool_with(&world.db, |pool| pool.reset(reset));
            let session = pool.session().await.unwrap();
            let first = connection(kind, &*session).await;
            raw(&session, "BEGIN").await;
            drop(session);
            returned(&pool).await;
            let session = pool.session().await.unwrap();
            let keeps = match kind {
                Kind::Postgres => reset != Reset::None,
                Kind::MySql => reset == Reset::RollbackOnly,
                _ => true,
            };
            assert_eq!(
                connection(kind, &*session).await == first,
                keeps,
                "{kind:?} {reset:?}"
            );
            insert_item(&*session, "kept").await;
            drop(session);
            assert_eq!(world.seen("kept").await, 1, "{kind:?} {reset:?}");
            world.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_connection_that_cannot_be_reset_in_time_is_closed_and_its_slot_is_free() {
    use crate::support::site::Site;
    use std::time::Duration;

    let (site, proxy) = Site::behind_a_proxy(Kind::Postgres).await;
    let set = |pool: SessionPoolBuilder| {
        pool.reset(Reset::SessionState)
            .release_timeout(Duration::from_millis(200))
    };
    let pool = pool_with(&site.db, set);
    let session = pool.session().await.unwrap();
    let first = connection(Kind::Postgres, &*session).await;
    session.execute_unprepared("SET app.x = 'y'").await.unwrap();
    proxy.freeze();
    drop(session);
    returned(&pool).await;
    proxy.thaw();
    let session = pool.session().await.unwrap();
    assert_ne!(connection(Kind::Postgres, &*session).await, first);
    assert_eq!(look(&*session, SETTING).await, "-");
    drop(session);
    site.assert_whole().await;
}
