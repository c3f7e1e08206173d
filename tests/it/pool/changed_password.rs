//! A password that changes: new connections take the new one, and no request notices.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};

use crate::support::{
    database::{Kind, SERVERS, TestDb},
    network::select,
    servers::OwnServer,
    site::{SIZE, Site, call},
    wait::eventually,
};

/// Makes the accounts `app` with the password `one`, and `next` with `two`. They are asked for.
async fn make_accounts(test: &TestDb, admin: &DatabaseConnection) {
    let statements: &[&str] = match test.kind {
        Kind::Postgres => &[
            // A fast one: what is tested is not the strength of a hash.
            "SET password_encryption = 'md5'; CREATE ROLE app LOGIN PASSWORD 'one' IN ROLE pg_read_all_data, pg_write_all_data; \
             CREATE ROLE next LOGIN PASSWORD 'two' IN ROLE pg_read_all_data, pg_write_all_data",
            "DO $$ BEGIN EXECUTE format('COPY (SELECT unnest(ARRAY[%L, %L])) TO %L', \
             'host all postgres 127.0.0.1/32 trust', 'host all all 127.0.0.1/32 md5', \
             current_setting('hba_file')); END $$",
            "SELECT pg_reload_conf()",
        ],
        _ => &[
            "CREATE USER app@127.0.0.1 IDENTIFIED BY 'one'",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO app@127.0.0.1",
            "CREATE USER next@127.0.0.1 IDENTIFIED BY 'two'",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO next@127.0.0.1",
        ],
    };
    for sql in statements {
        admin.execute_unprepared(sql).await.unwrap();
    }
    let as_anyone = test
        .url()
        .replace("postgres@", "app@")
        .replace("root@", "app@");
    eventually("the server asks for the password", async || {
        Database::connect(as_anyone.clone()).await.is_err()
    })
    .await;
}

async fn change_password(test: &TestDb, admin: &DatabaseConnection, password: &str) {
    let sql = match test.kind {
        Kind::Postgres => {
            format!("SET password_encryption = 'md5'; ALTER ROLE app PASSWORD '{password}'")
        }
        _ => format!("ALTER USER app@127.0.0.1 IDENTIFIED BY '{password}'"),
    };
    admin.execute_unprepared(&sql).await.unwrap();
}

/// Tells the driver's pool with which password to log in from now on.
fn use_password(db: &DatabaseConnection, password: &str) {
    match db.get_database_backend() {
        DbBackend::Postgres => {
            let pool = db.get_postgres_connection_pool();
            let options = pool.connect_options().as_ref().clone();
            pool.set_connect_options(options.password(password));
        }
        _ => {
            let pool = db.get_mysql_connection_pool();
            let options = pool.connect_options().as_ref().clone();
            pool.set_connect_options(options.password(password));
        }
    }
}

/// Tells the driver's pool to log in as `next` from now on.
fn use_next(db: &DatabaseConnection) {
    match db.get_database_backend() {
        DbBackend::Postgres => {
            let pool = db.get_postgres_connection_pool();
            let options = pool.connect_options().as_ref().clone();
            pool.set_connect_options(options.username("next").password("two"));
        }
        _ => {
            let pool = db.get_mysql_connection_pool();
            let options = pool.connect_options().as_ref().clone();
            pool.set_connect_options(options.username("next").password("two"));
        }
    }
}

/// Returns the server's numbers of the account's connections.
async fn connections(admin: &DatabaseConnection) -> BTreeSet<i64> {
    let backend = admin.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => {
            "SELECT CAST(pid AS bigint) FROM pg_stat_activity WHERE usename = 'app'"
        }
        _ => "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE user = 'app'",
    };
    let rows = admin.query_all_raw(Statement::from_string(backend, sql));
    let rows = rows.await.unwrap().into_iter();
    rows.map(|row| row.try_get_by_index(0).unwrap()).collect()
}

/// Requests that do not stop, more at a time than there are connections.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Vec<u16>>>,
}

impl Load {
    fn on(site: &Site) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let clients = (0..2 * SIZE).map(|_| {
            let (app, stop, answered) = (site.app(select), stop.clone(), answered.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let status = call(app.clone()).await.status().as_u16();
                    answered.fetch_add(1, Ordering::SeqCst);
                    failures.extend((status != 200).then_some(status));
                }
                failures
            })
        });
        let clients = clients.collect();
        Self {
            stop,
            answered,
            clients,
        }
    }

    /// Waits until requests that began after this call are answered.
    async fn goes_on(&self) {
        let until = self.answered.load(Ordering::SeqCst) + 4 * SIZE as usize;
        eventually("requests are answered", async || {
            self.answered.load(Ordering::SeqCst) >= until
        })
        .await;
    }

    /// Returns the statuses of the requests that failed.
    async fn end(self) -> Vec<u16> {
        self.stop.store(true, Ordering::SeqCst);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.unwrap());
        }
        failures
    }
}

/// A service on a server of its own, which logs in as `app`.
async fn site_of_app(
    kind: Kind,
    max_lifetime: Option<Duration>,
) -> (OwnServer, DatabaseConnection, Site) {
    let server = match kind {
        Kind::Postgres => OwnServer::postgres(),
        _ => OwnServer::mysql(),
    };
    let test = TestDb::on(&server).await;
    let admin = test.connect(1).await;
    make_accounts(&test, &admin).await;
    let url = test
        .url()
        .replace("postgres@", "app:one@")
        .replace("root@", "app:one@");
    let mut options = test.options_at(&url, SIZE);
    if let Some(max_lifetime) = max_lifetime {
        options.max_lifetime(max_lifetime);
    }
    let db = Database::connect(options).await.unwrap();
    (server, admin, Site::with(test, db, SIZE).await)
}

#[tokio::test]
async fn a_changed_password_reaches_new_connections_and_fails_no_request() {
    for kind in SERVERS {
        let (_server, admin, site) = site_of_app(kind, None).await;
        let pool = site.layer.pool();
        let load = Load::on(&site);
        load.goes_on().await;
        let before = connections(&admin).await;
        assert!(!before.is_empty(), "{kind:?}");
        change_password(&site.test, &admin, "two").await;
        load.goes_on().await; // on the connections that are there
        use_password(&site.db, "two");
        pool.recycle().unwrap();
        load.goes_on().await;
        eventually("all connections are replaced", async || {
            connections(&admin).await.is_disjoint(&before)
        })
        .await;
        load.goes_on().await;
        let failures = load.end().await;
        assert!(failures.is_empty(), "{kind:?}: {failures:?}");
        // Bounded by a second, which a busy machine may need for it.
        eventually("it is used beside the pool as well", async || {
            pool.ping().await.is_ok()
        })
        .await;
        site.assert_whole().await;
    }
}

/// Two accounts that take turns: nothing is replaced by force.
#[tokio::test]
async fn connections_of_the_account_before_age_out_and_fail_no_request() {
    for kind in SERVERS {
        let lifetime = Duration::from_secs(1);
        let (_server, admin, site) = site_of_app(kind, Some(lifetime)).await;
        let load = Load::on(&site);
        load.goes_on().await;
        assert!(!connections(&admin).await.is_empty(), "{kind:?}");
        use_next(&site.db);
        eventually("the last one has aged out", async || {
            connections(&admin).await.is_empty()
        })
        .await;
        // Nothing of the service's needs it any more.
        let drop_it = match kind {
            Kind::Postgres => "REASSIGN OWNED BY app TO next; DROP ROLE app",
            _ => "DROP USER app@127.0.0.1",
        };
        admin.execute_unprepared(drop_it).await.unwrap();
        load.goes_on().await;
        let failures = load.end().await;
        assert!(failures.is_empty(), "{kind:?}: {failures:?}");
        site.assert_whole().await;
    }
}
