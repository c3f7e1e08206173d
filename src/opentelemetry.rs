//! [`OpenTelemetryObserver`]: OpenTelemetry's metrics of database clients.

use std::{fmt, sync::OnceLock};

use ::opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Counter, Histogram, Meter},
};

use crate::{
    error::server,
    pool::{
        Observer, SessionPool, WeakSessionPool,
        observer::{Acquired, Executed, Released, SessionEnded},
    },
    target::{self, Target},
    telemetry::error_type,
};

/// The boundaries that the conventions give for `db.client.operation.duration`.
/// For the times of a pool they give none, and the SDK's default is meant for
/// milliseconds.
const BOUNDARIES: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

const POOL_NAME: &str = "db.client.connection.pool.name";
const STATE: &str = "db.client.connection.state";

/// Measures a pool's sessions by OpenTelemetry's [conventions for database
/// clients](https://opentelemetry.io/docs/specs/semconv/db/database-metrics/),
/// version 1.44.
///
/// One for each pool: it takes its pool's name for its own. The version of the
/// `opentelemetry` crate must be the application's; with another one in the
/// dependency tree, there is no error and no data.
///
/// | instrument | kind, unit | attributes |
/// |---|---|---|
/// | `db.client.operation.duration` | histogram, s | `db.system.name`, `server.address`, `server.port` (if it is not the default), `db.namespace`; of a failure `error.type` and `db.response.status_code` |
/// | `db.client.connection.count` | up-down counter, `{connection}` | pool name, `db.client.connection.state`: `idle` or `used` |
/// | `db.client.connection.max` | up-down counter, `{connection}` | pool name |
/// | `db.client.connection.pending_requests` | up-down counter, `{request}` | pool name |
/// | `db.client.connection.timeouts` | counter, `{timeout}` | pool name |
/// | `db.client.connection.wait_time`, `.use_time` | histogram, s | pool name |
/// | `tower_sea_orm.sessions` | counter, `{session}` | pool name, `tower_sea_orm.outcome`, `http.route` (if the layer [knows it](crate::DbSessionLayer::http_route)) |
///
/// *Pool name* is `db.client.connection.pool.name`: the [given
/// one](Self::pool_name), or `server.address:server.port/db.namespace`.
/// `db.namespace` is the database that the pool's options name, without a
/// schema; for SQLite, it is the file's name, or `:memory:`. `error.type` is
/// the server's code (the SQLSTATE; SQLite's result code),
/// `connection_acquire`, `connection` or `_OTHER`. The outcomes are those of
/// [`SessionEnded::outcome`]. No attribute has a statement, a value or a
/// request's path in it.
///
/// A wait that ended with an error is no `wait_time`; it counts among the
/// `timeouts` if no connection became free in time, or if too many requests
/// were waiting already.
///
/// Left out: `db.client.connection.create_time`, because the driver opens
/// connections on its own; `db.client.connection.idle.max` and `.idle.min`,
/// which this pool does not have; `db.client.response.returned_rows`; and
/// `db.query.summary`, `db.operation.name` and `db.collection.name`, which the
/// conventions do not want to be read from SQL.
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use opentelemetry::global;
/// use sea_orm::Database;
/// use tower_sea_orm::{OpenTelemetryObserver, SessionPool};
///
/// // After `global::set_meter_provider(…)`.
/// let meter = global::meter("my_service");
/// let db = Database::connect("sqlite::memory:").await?;
/// let pool = SessionPool::builder(db)
///     .observe(OpenTelemetryObserver::new(&meter).pool_name("shop"))
///     .build()?;
/// # let _ = pool;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[must_use = "it measures the pool that it is given to, by `SessionPoolBuilder::observe`"]
pub struct OpenTelemetryObserver {
    // Kept, since the counts can be registered only once the pool is there.
    meter: Meter,
    pool_name: Option<String>,
    operation_duration: Histogram<f64>,
    wait_time: Histogram<f64>,
    use_time: Histogram<f64>,
    timeouts: Counter<u64>,
    sessions: Counter<u64>,
    // Made once: a statement must not cost strings.
    attributes: OnceLock<Attributes>,
}

/// The attributes that all measurements of one pool have in common.
#[derive(Default)]
struct Attributes {
    // Two lists, because the conventions name the server for statements, and
    // the pool alone for connections.
    statement: Vec<KeyValue>,
    pool: Vec<KeyValue>,
}

impl OpenTelemetryObserver {
    /// Creates an observer whose instruments belong to `meter`.
    pub fn new(meter: &Meter) -> Self {
        Self {
            meter: meter.clone(),
            pool_name: None,
            operation_duration: seconds(
                meter,
                "db.client.operation.duration",
                "Duration of database client operations.",
            ),
            wait_time: seconds(
                meter,
                "db.client.connection.wait_time",
                "How long sessions waited for a connection.",
            ),
            use_time: seconds(
                meter,
                "db.client.connection.use_time",
                "How long sessions held a connection.",
            ),
            timeouts: meter
                .u64_counter("db.client.connection.timeouts")
                .with_description("Sessions that got no connection in time.")
                // Braces are a note beside the unit, which is 1
                // (<https://opentelemetry.io/docs/specs/semconv/general/metrics/#instrument-units>).
                .with_unit("{timeout}")
                .build(),
            sessions: meter
                .u64_counter("tower_sea_orm.sessions")
                .with_description("Sessions that have ended.")
                .with_unit("{session}")
                .build(),
            attributes: OnceLock::new(),
        }
    }

    /// Sets the pool's name, which must be unique in the application. Default:
    /// `server.address:server.port/db.namespace`.
    pub fn pool_name(mut self, name: impl Into<String>) -> Self {
        self.pool_name = Some(name.into());
        self
    }

    fn attributes_of(&self, target: &Target) -> Attributes {
        let optional = [
            ("server.address", &target.address),
            ("db.namespace", &target.namespace),
        ];
        // Left out if the options do not name it: an empty text would be a
        // value.
        let texts = optional
            .into_iter()
            .filter_map(|(name, value)| Some(KeyValue::new(name, value.clone()?)));
        // Only one that is not the default, as the conventions want it.
        let port = target.unusual_port();
        let port = port.map(|port| KeyValue::new("server.port", i64::from(port)));
        let system = KeyValue::new("db.system.name", target.system);
        let name = self.pool_name.clone();
        Attributes {
            statement: [system].into_iter().chain(texts).chain(port).collect(),
            pool: vec![KeyValue::new(
                POOL_NAME,
                name.unwrap_or_else(|| target.pool_name()),
            )],
        }
    }

    // Empty until the pool is built, before which nothing is measured.
    fn pool(&self) -> &[KeyValue] {
        self.attributes.get().map_or(&[], |all| &all.pool)
    }

    /// Has the SDK ask for the numbers of connections when it collects.
    fn register_counts(&self, pool: &WeakSessionPool) {
        let all = self.pool().to_vec();
        let with_state = |state: &'static str| [&all[..], &[KeyValue::new(STATE, state)]].concat();
        let (used, idle) = (with_state("used"), with_state("idle"));
        self.register(
            ("db.client.connection.count", "{connection}"),
            "Open connections, by their state.",
            pool,
            move |pool, count| {
                // Both in one callback, nearly of one moment: in two, a
                // connection could be counted in neither.
                count.observe(pool.status().used.into(), &used);
                count.observe(signed(target::idle(pool)), &idle);
            },
        );
        let attributes = all.clone();
        self.register(
            ("db.client.connection.max", "{connection}"),
            "The most connections that sessions may hold.",
            pool,
            move |pool, max| max.observe(pool.status().max.into(), &attributes),
        );
        self.register(
            ("db.client.connection.pending_requests", "{request}"),
            "Requests that wait for a connection.",
            pool,
            move |pool, pending| pending.observe(signed(pool.status().pending), &all),
        );
    }

    /// The SDK cannot be told to stop asking, so that what it asks must not
    /// keep the pool.
    fn register(
        &self,
        (name, unit): (&'static str, &'static str),
        description: &'static str,
        pool: &WeakSessionPool,
        ask: impl Fn(&SessionPool, &dyn AsyncInstrument<i64>) + Send + Sync + 'static,
    ) {
        let weak = pool.clone();
        self.meter
            // The conventions' kind of instrument: unlike a gauge's, the
            // numbers of several instances add up.
            .i64_observable_up_down_counter(name)
            .with_description(description)
            .with_unit(unit)
            .with_callback(move |instrument| {
                // A pool that is gone reports nothing more: its series end.
                if let Some(pool) = weak.upgrade() {
                    ask(&pool, instrument);
                }
            })
            .build();
    }
}

impl Observer for OpenTelemetryObserver {
    fn attached(&self, pool: &WeakSessionPool) {
        let Some(strong) = pool.upgrade() else { return };
        let attributes = self.attributes_of(&Target::of(&strong));
        // Of a second pool, nothing is counted twice under the name of the
        // first.
        if self.attributes.set(attributes).is_ok() {
            self.register_counts(pool);
        }
    }

    fn acquired(&self, acquired: &Acquired<'_>) {
        match acquired.error() {
            None => self
                .wait_time
                .record(acquired.waited().as_secs_f64(), self.pool()),
            // Not if the database is down, which is no time-out of the pool's.
            Some(error) if error.is_exhausted() => self.timeouts.add(1, self.pool()),
            Some(_) => {}
        }
    }

    fn executed(&self, executed: &Executed<'_>) {
        let seconds = executed.elapsed().as_secs_f64();
        let all = self.attributes.get().map_or(&[][..], |all| &all.statement);
        let Some(error) = executed.error() else {
            return self.operation_duration.record(seconds, all);
        };
        // On failures only: the conventions want no `error.type` where nothing
        // failed
        // (<https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/>).
        let kind = KeyValue::new("error.type", error_type(error).into_owned());
        let code = server::code(error).map(|code| KeyValue::new("db.response.status_code", code));
        let failure = [kind].into_iter().chain(code);
        let all: Vec<_> = all.iter().cloned().chain(failure).collect();
        self.operation_duration.record(seconds, &all);
    }

    fn released(&self, released: &Released<'_>) {
        self.use_time
            .record(released.held().as_secs_f64(), self.pool());
    }

    fn ended(&self, ended: &SessionEnded<'_>) {
        // The conventions have no name for it.
        let outcome = KeyValue::new("tower_sea_orm.outcome", ended.outcome());
        let route = ended.route();
        let route = route.map(|route| KeyValue::new("http.route", route.to_owned()));
        let own = [outcome].into_iter().chain(route);
        let all: Vec<_> = self.pool().iter().cloned().chain(own).collect();
        self.sessions.add(1, &all);
    }
}

impl fmt::Debug for OpenTelemetryObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenTelemetryObserver")
            .field("pool_name", &self.pool_name)
            .finish_non_exhaustive()
    }
}

// The SDK's up-down counters are signed; no pool has so many.
fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(meter: &Meter, name: &'static str, description: &'static str) -> Histogram<f64> {
    meter
        .f64_histogram(name)
        .with_description(description)
        .with_unit("s")
        // A hint: a view of the application's goes before it.
        .with_boundaries(BOUNDARIES.to_vec())
        .build()
}
