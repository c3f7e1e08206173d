//! G13, G15: settings that travel with BEGIN hold for exactly one transaction, and are what was asked for.

use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use proptest::{
    collection::vec,
    prelude::any,
    sample::select,
    strategy::{Strategy, ValueTree},
    test_runner::{Config, TestRunner},
};
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, DbBackend, IsolationLevel, MockDatabase,
    MockExecResult, TransactionOptions, TransactionTrait,
};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Reset, TransactionLayer};

use crate::support::{
    bouncer::Bouncer,
    cases,
    database::{Kind, TestDb, insert_item},
    pool::returned,
    requests::text,
    site::{port_of, value},
    world::{World, outcome, post, serve},
};

const TENANT: &str = "SELECT coalesce(current_setting('app.tenant', true), '')";

/// A value for each request, as a layer further out would put it there.
#[derive(Clone)]
struct Tenant(String);

fn tenant(parts: &http::request::Parts) -> String {
    parts.extensions.get::<Tenant>().unwrap().0.clone()
}

/// A request of this tenant.
pub fn request(tenant: &str) -> Request<Body> {
    let mut request = Request::get("/").body(Body::empty()).unwrap();
    request.extensions_mut().insert(Tenant(tenant.to_owned()));
    request
}

#[tokio::test]
async fn settings_last_exactly_as_long_as_each_transaction() {
    let world = World::new(Kind::Postgres, 1).await;
    let app = serve(async |db: DbSession| {
        let mut seen = vec![value::<String>(&db, TENANT).await];
        insert_item(&db, "kept").await;
        db.commit().await.unwrap();
        seen.push(value(&db, TENANT).await);
        db.rollback().await.unwrap();
        db.release().await.unwrap();
        let nested = db.begin().await.unwrap();
        seen.push(value(&nested, TENANT).await);
        nested.rollback().await.unwrap();
        seen.push(value(&db, TENANT).await);
        seen.join(" ")
    });
    let serializable = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    };
    let layer = world.layer().set_local("app.tenant", tenant);
    for layer in [
        layer.clone(),
        layer.clone().lazy(),
        layer.transaction_with(serializable),
    ] {
        let app = app.clone().layer(layer);
        for tenant in ["blue", "o'hara'; DROP TABLE item; --", ""] {
            let response = app.clone().oneshot(request(tenant)).await.unwrap();
            assert_eq!(
                (response.status(), outcome(&response)),
                (StatusCode::OK, "committed")
            );
            assert_eq!(text(response).await, [tenant; 4].join(" "));
            // The pool's only connection.
            assert_eq!(value::<String>(&world.db, TENANT).await, "");
            let rows = world.view.execute_unprepared("DELETE FROM item").await;
            assert_eq!(rows.unwrap().rows_affected(), 1);
        }
    }
    world.assert_whole().await;
}

/// Text of what quoting could get wrong, and of all other characters.
fn values() -> impl Strategy<Value = String> {
    let pieces = select(vec![
        "'",
        "''",
        "\\",
        "\\'",
        "\\\\",
        "\"",
        "E'",
        "$$",
        "$a$",
        ";",
        "--",
        "/*",
        "*/",
        "\n",
        "\r",
        "\t",
        "%",
        "_",
        "?",
        "$1",
        ":a",
        "x",
        " ",
        "\u{1}",
        "\u{7f}",
        "\\x27",
        "\\047",
        "é",
        "\u{2019}",
        "\u{ff07}",
        "\u{1f600}",
        "\u{202e}",
        "\u{feff}",
        ",true); COMMIT; --",
    ]);
    let odd = vec(pieces, 0..12).prop_map(|pieces| pieces.concat());
    let any = vec(any::<char>(), 0..40).prop_map(|chars| chars.into_iter().collect::<String>());
    proptest::prop_oneof![odd, any].prop_map(|text| text.replace('\0', ""))
}

#[tokio::test]
async fn any_value_arrives_as_it_is_whatever_the_servers_quoting() {
    let test = TestDb::new(Kind::Postgres).await;
    let observer = test.observer().await.unwrap();
    let bytes = "SELECT encode(convert_to(current_setting('app.tenant'), 'UTF8'), 'hex')";
    for standard in ["on", "off"] {
        // For the connections to come. `off` is the strictest about quotes.
        for sql in [
            format!("SET standard_conforming_strings = {standard}"),
            "SET backslash_quote = off".to_owned(),
            "SET escape_string_warning = on".to_owned(),
        ] {
            let sql = format!(
                "ALTER DATABASE {} {sql}",
                test.url().rsplit('/').next().unwrap()
            );
            observer.execute_unprepared(&sql).await.unwrap();
        }
        let db = test.connect(1).await;
        let layer = DbSessionLayer::new(db.clone()).set_local("app.tenant", tenant);
        let handler = async move |tx: DbTx| {
            let quoting = "SELECT current_setting('standard_conforming_strings')";
            let quoting = value::<String>(&tx, quoting).await;
            format!("{quoting} {}", value::<String>(&tx, bytes).await)
        };
        let app = serve(handler).layer(layer);
        let mut runner = TestRunner::new(Config::default());
        let mut tried: Vec<String> = (0..cases(150))
            .map(|_| values().new_tree(&mut runner).unwrap().current())
            .collect();
        tried.extend(["'\\".repeat(300_000), "\\".to_owned(), "'".to_owned()]);
        for tried in tried {
            let response = app.clone().oneshot(request(&tried)).await.unwrap();
            let hex: String = tried.bytes().map(|byte| format!("{byte:02x}")).collect();
            assert!(
                text(response).await == format!("{standard} {hex}"),
                "{:?}",
                &tried.chars().take(100).collect::<String>()
            );
        }
        db.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_schema_path_has_its_names_and_nothing_else() {
    let world = World::new(Kind::Postgres, 1).await;
    let schemas = ["Ten\"ant", "a,b", "it's \\", "public"];
    for (number, schema) in schemas.iter().take(3).enumerate() {
        let quoted = schema.replace('"', "\"\"");
        let sql =
            format!("CREATE SCHEMA \"{quoted}\"; CREATE TABLE \"{quoted}\".t{number} AS SELECT 1");
        world.view.execute_unprepared(&sql).await.unwrap();
    }
    let app = serve(async |db: DbSession| {
        for table in ["t0", "t1", "t2", "item"] {
            let sql = format!("SELECT count(*) FROM {table}");
            value::<i64>(&db, &sql).await;
        }
        value::<String>(&db, "SELECT array_to_string(current_schemas(false), '|')").await
    });
    let layer = world
        .layer()
        .search_path(move |_| schemas.map(str::to_owned).to_vec());
    let response = post(&app.layer(layer), "/").await;
    assert_eq!(text(response).await, schemas.join("|"));
    world.assert_whole().await;
}

#[tokio::test]
async fn an_inner_layers_setting_counts_and_the_others_stay() {
    let world = World::new(Kind::Postgres, 1).await;
    let see = "SELECT concat_ws(' ', current_setting('a.outer'), current_setting('a.both'), \
               current_setting('a.inner'), current_setting('lock_timeout'), current_setting('statement_timeout'))";
    let app = serve(async move |db: DbSession| value::<String>(&db, see).await);
    let inner = TransactionLayer::new()
        .set_local("A.Both", |_| "inner".to_owned())
        .set_local("a.inner", |_| "inner".to_owned())
        .statement_timeout(Duration::ZERO);
    let outer = world
        .layer()
        .set_local("a.outer", |_| "outer".to_owned())
        .set_local("a.both", |_| "outer".to_owned())
        .statement_timeout(Duration::from_secs(7))
        .lock_timeout(Duration::from_secs(8));
    let app = app.layer(inner).layer(outer);
    assert_eq!(text(post(&app, "/").await).await, "outer inner inner 8s 0");
    world.assert_whole().await;
}

/// A setting that cannot be sent, and one that the server refuses.
const UNFIT: [(&str, &str); 3] = [
    ("app.tenant", "a\0b"),
    ("work_mem", "plenty"),
    ("no_such_setting", "1"),
];

#[tokio::test]
async fn without_its_settings_no_statement_runs() {
    for reset in [Reset::None, Reset::RollbackOnly, Reset::SessionState] {
        for (name, unfit) in UNFIT {
            let world = World::new(Kind::Postgres, 1).await;
            let app = serve(async |db: DbSession| {
                for _ in 0..2 {
                    let sql = "INSERT INTO item (name) VALUES ('unprepared')";
                    db.execute_unprepared(sql).await.unwrap_err();
                }
            });
            let layer = world
                .layer_with(|pool| pool.reset(reset))
                .set_local(name, tenant);
            let pool = layer.pool().clone();
            let app = app.layer(layer);
            for _ in 0..2 {
                let response = app.clone().oneshot(request(unfit)).await.unwrap();
                // The handler swallows the error, and nothing is a success that ran in no transaction.
                assert_eq!(response.status(), 500, "{name}");
                assert_eq!(world.seen("unprepared").await, 0, "{name}");
            }
            returned(&pool).await;
            let open = "SELECT count(*) FROM pg_stat_activity \
                        WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
            assert_eq!(value::<i64>(&world.view, open).await, 0, "{name}");
            let session = pool.session().await.unwrap();
            insert_item(&*session, "by the next").await;
            drop(session);
            assert_eq!(world.seen("by the next").await, 1, "{name}");
            world.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn behind_pgbouncer_settings_reach_the_transaction_and_no_other() {
    let test = TestDb::new(Kind::Postgres).await;
    let port = port_of(test.url());
    let bouncer = Bouncer::start(port, 1);
    let url = test
        .url()
        .replace(&format!(":{port}/"), &format!(":{}/", bouncer.port()));
    let url = format!("{url}?statement-cache-capacity=0");
    let db = Database::connect(test.options_at(&url, 2)).await.unwrap();
    let layer = DbSessionLayer::new(db.clone()).set_local("app.tenant", tenant);
    let app = serve(async |tx: DbTx| value::<String>(&tx, TENANT).await).layer(layer);
    for tenant in ["red", "blue"] {
        let response = app.clone().oneshot(request(tenant)).await.unwrap();
        assert_eq!(text(response).await, tenant);
        assert_eq!(value::<String>(&db, TENANT).await, "");
    }
    db.close().await.unwrap();
}

#[tokio::test]
async fn a_mock_sees_settings_where_a_server_would() {
    let done = MockExecResult::default();
    let mock = MockDatabase::new(DbBackend::Postgres)
        .append_exec_results([done.clone(), done])
        .into_connection();
    let layer = DbSessionLayer::new(mock.clone())
        .set_local("app.tenant", tenant)
        .statement_timeout(Duration::from_secs(1));
    let insert = async |db: DbSession| {
        db.execute_unprepared("DELETE FROM item").await.unwrap();
    };
    let response = serve(insert).layer(layer).oneshot(request("it's")).await;
    assert_eq!(response.unwrap().status(), StatusCode::OK);
    let log = format!("{:?}", mock.into_transaction_log());
    let set = "SELECT pg_catalog.set_config('app.tenant',E'it''s',true),pg_catalog.set_config('statement_timeout',E'1000',true)";
    assert!(log.contains(set), "{log}");
    // There, nothing takes time.
    for backend in [DbBackend::MySql, DbBackend::Sqlite] {
        let mock = MockDatabase::new(backend)
            .append_exec_results([MockExecResult::default()])
            .into_connection();
        let layer = DbSessionLayer::new(mock).lock_timeout(Duration::from_secs(1));
        assert_eq!(
            post(&serve(insert).layer(layer), "/").await.status(),
            StatusCode::OK
        );
    }
}

fn mock(backend: DbBackend) -> DatabaseConnection {
    MockDatabase::new(backend).into_connection()
}

#[tokio::test]
async fn what_a_database_cannot_do_is_refused() {
    let refused = |build: &dyn Fn()| {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build)).unwrap_err();
        *panic.downcast::<String>().unwrap()
    };
    for name in [
        "", ".", "a.", ".a", "1a", "a b", "a'", "a-b", "a\"", "é", "a;b", "a.1", "$a", "a\0",
    ] {
        let text = refused(&|| drop(TransactionLayer::new().set_local(name, tenant)));
        assert!(text.contains("the name of a setting"), "{name:?}: {text}");
    }
    let text = refused(&|| {
        drop(
            DbSessionLayer::new(mock(DbBackend::Postgres))
                .set_local("Transaction_Isolation", tenant),
        );
    });
    assert!(text.contains("transaction_with"), "{text}");
    for backend in [DbBackend::MySql, DbBackend::Sqlite] {
        let text = refused(&|| drop(DbSessionLayer::new(mock(backend)).set_local("a.b", tenant)));
        assert!(text.contains("need PostgreSQL"), "{text}");
    }
    let second = Duration::from_secs(1);
    let sqlite = || DbSessionLayer::new(mock(DbBackend::Sqlite));
    let text = refused(&|| drop(sqlite().statement_timeout(second)));
    assert!(text.contains("SQLite has no"), "{text}");
    // A route's layer does not know its database before a request comes.
    let app = serve(async || ());
    let routes = [
        TransactionLayer::new().statement_timeout(second),
        TransactionLayer::new().set_local("a.b", |_| String::new()),
        TransactionLayer::autocommit().lock_timeout(second),
    ];
    for route in routes {
        let response = post(&app.clone().layer(route).layer(sqlite().lazy()), "/").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
    // A route cannot opt out of what the others need.
    let off = TransactionLayer::autocommit();
    let layer = sqlite().lazy().lock_timeout(second);
    let response = post(&app.layer(off).layer(layer), "/").await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
}
