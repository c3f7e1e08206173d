//! A password that changes: new connections take the new one, and no request notices.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};

use crate::support::{
    database::{Kind, SERVERS, TestDb},
    network::select,
    servers::OwnServer,
    site::{SIZE, Site, call},
    wait::eventually,
};

/// Makes the account `app` with the password `one`, which is asked for.
async fn make_account(test: &TestDb, admin: &DatabaseConnection) {
    let statements: &[&str] = match test.kind {
        Kind::Postgres => &[
            // A fast one: what is tested is not the strength of a hash.
            "SET password_encryption = 'md5'; CREATE ROLE app LOGIN PASSWORD 'one' IN ROLE pg_read_all_data, pg_write_all_data",
            "DO $$ BEGIN EXECUTE format('COPY (SELECT unnest(ARRAY[%L, %L])) TO %L', \
             'host all postgres 127.0.0.1/32 trust', 'host all app 127.0.0.1/32 md5', \
             current_setting('hba_file')); END $$",
            "SELECT pg_reload_conf()",
        ],
        _ => &[
            "CREATE USER app@127.0.0.1 IDENTIFIED BY 'one'",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO app@127.0.0.1",
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

#[tokio::test]
async fn a_changed_password_reaches_new_connections_and_fails_no_request() {
    for kind in SERVERS {
        let server = match kind {
            Kind::Postgres => OwnServer::postgres(),
            _ => OwnServer::mysql(),
        };
        let test = TestDb::on(&server).await;
        let admin = test.connect(1).await;
        make_account(&test, &admin).await;
        let url = test
            .url()
            .replace("postgres@", "app:one@")
            .replace("root@", "app:one@");
        let db = Database::connect(test.options_at(&url, SIZE))
            .await
            .unwrap();
        let site = Site::with(test, db, SIZE).await;
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
