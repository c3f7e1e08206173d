//! A service with the session layer on a private database, and the results of its requests.

use axum::{Router, body::Body, handler::Handler, response::Response, routing::any};
use http::{Request, header};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbErr, Statement};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSessionLayer, Error, Outcome, SessionPoolBuilder};

use super::{
    database::{Kind, TestDb, count_items},
    pool::{assert_whole, layer_with, returned, session_layer},
    wire::Proxy,
};

/// How many connections a site's pool has.
pub const SIZE: u32 = 3;

/// The kinds that can check a constraint at COMMIT.
pub const DEFERRING: [Kind; 3] = [Kind::Postgres, Kind::SqliteFile, Kind::SqliteMemory];

/// How long a request may take until it hangs.
pub use super::wait::BOUND;

/// A database, a pool on it, and a layer over that.
#[derive(Debug)]
pub struct Site {
    pub test: TestDb,
    pub db: DatabaseConnection,
    pub layer: DbSessionLayer,
    pub observer: Option<DatabaseConnection>,
    /// How many connections the pool has.
    pub size: u32,
}

impl Site {
    pub async fn new(kind: Kind) -> Self {
        let test = TestDb::new(kind).await;
        let db = test.connect(SIZE).await;
        Self::with(test, db, SIZE).await
    }

    /// A site whose connections go through a proxy.
    pub async fn behind_a_proxy(kind: Kind) -> (Self, Proxy) {
        Self::proxied(kind, SIZE).await
    }

    /// A site with one connection, which goes through a proxy.
    pub async fn queued(kind: Kind) -> (Self, Proxy) {
        Self::proxied(kind, 1).await
    }

    async fn proxied(kind: Kind, size: u32) -> (Self, Proxy) {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let db = Database::connect(test.options_at(&proxy.url(test.url()), size))
            .await
            .unwrap();
        (Self::with(test, db, size).await, proxy)
    }

    pub async fn with(test: TestDb, db: DatabaseConnection, size: u32) -> Self {
        let observer = test.observer().await;
        Self {
            layer: session_layer(db.clone()),
            test,
            db,
            observer,
            size,
        }
    }

    pub fn kind(&self) -> Kind {
        self.test.kind
    }

    /// Changes the layer.
    pub fn layered(mut self, change: impl FnOnce(DbSessionLayer) -> DbSessionLayer) -> Self {
        self.layer = change(self.layer);
        self
    }

    /// Gives the layer another pool, with settings.
    pub fn pooled(mut self, set: impl FnOnce(SessionPoolBuilder) -> SessionPoolBuilder) -> Self {
        self.layer = layer_with(&self.db, set);
        self
    }

    /// Somebody else's connection; that of an in-memory database is the pool's own.
    pub fn view(&self) -> &DatabaseConnection {
        self.observer.as_ref().unwrap_or(&self.db)
    }

    pub fn app<H, T>(&self, handler: H) -> Router
    where
        H: Handler<T, ()>,
        T: 'static,
    {
        Router::new()
            .route("/", any(handler))
            .layer(self.layer.clone())
    }

    /// The answer to one request, which must not hang.
    pub async fn call<H, T>(&self, handler: H) -> Response
    where
        H: Handler<T, ()>,
        T: 'static,
    {
        call(self.app(handler)).await
    }

    /// Runs SQL outside of the service.
    pub async fn run(&self, sql: &str) {
        self.view().execute_unprepared(sql).await.unwrap();
    }

    /// Makes a table whose constraint is checked at COMMIT: see [`violate`].
    pub async fn defer(&self) {
        self.run(
            "CREATE TABLE later (id integer REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)",
        )
        .await;
    }

    /// Returns how many rows of this name others see: 0 or 1.
    pub async fn count(&self, name: &str) -> i64 {
        count_items(self.view(), name).await
    }

    /// Returns which of these rows others see.
    pub async fn seen<const N: usize>(&self, names: [&str; N]) -> [bool; N] {
        let mut seen = [false; N];
        for (seen, name) in seen.iter_mut().zip(names) {
            *seen = self.count(name).await == 1;
        }
        seen
    }

    pub async fn assert_whole(&self) {
        returned(self.layer.pool()).await;
        assert_whole(&self.test, &self.db, self.size).await;
    }
}

/// The answer of `app` to one request, which must not hang.
pub async fn call(app: Router) -> Response {
    match timeout(BOUND, app.oneshot(Request::new(Body::empty())))
        .await
        .expect("an answer, not a hang")
    {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Makes the next COMMIT fail.
pub async fn violate(db: &impl ConnectionTrait) {
    db.execute_unprepared("INSERT INTO later VALUES (-1)")
        .await
        .unwrap();
}

pub fn outcome(response: &Response) -> &Outcome {
    response.extensions().get().expect("an outcome")
}

pub fn retry_after(response: &Response) -> Option<&str> {
    response
        .headers()
        .get(header::RETRY_AFTER)
        .map(|value| value.to_str().unwrap())
}

/// The crate's own error in a statement's.
#[track_caller]
pub fn known<T>(result: Result<T, DbErr>) -> Error {
    let Err(error) = result else {
        panic!("no error")
    };
    Error::of(&error).unwrap_or_else(|| panic!("another error: {error}"))
}

/// The first column of the only row.
pub async fn value<T: sea_orm::TryGetable>(db: &impl ConnectionTrait, sql: &str) -> T {
    let row = db
        .query_one_raw(Statement::from_string(db.get_database_backend(), sql))
        .await
        .unwrap();
    row.unwrap().try_get_by_index(0).unwrap()
}

/// Returns whether the server is MariaDB, and not MySQL.
pub async fn is_mariadb(db: &impl ConnectionTrait) -> bool {
    value::<String>(db, "SELECT VERSION()")
        .await
        .contains("MariaDB")
}

/// The port in a database URL.
pub fn port_of(url: &str) -> u16 {
    let after = url.rsplit_once(':').expect("a URL with a port").1;
    after
        .split(['/', '?'])
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a port")
}
