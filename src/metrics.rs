//! [`MetricsObserver`]: a pool's measurements for Prometheus, through the `metrics` crate.

use std::{fmt, sync::OnceLock};

use ::metrics::{
    Counter, Gauge, Histogram, Label, SharedString, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

use crate::{
    error::server,
    pool::{
        Observer, WeakSessionPool,
        observer::{Acquired, Executed, Released, SessionEnded},
    },
    target::{self, Target},
    telemetry::error_type,
};

// OpenTelemetry's names by the rules for Prometheus: `_` for dots, the unit and
// `_total` behind
// (<https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>).
// A dashboard has one set of names whichever exporter a service uses.
const OPERATION: &str = "db_client_operation_duration_seconds";
const COUNT: &str = "db_client_connection_count";
const MAX: &str = "db_client_connection_max";
const PENDING: &str = "db_client_connection_pending_requests";
const TIMEOUTS: &str = "db_client_connection_timeouts_total";
const WAIT: &str = "db_client_connection_wait_time_seconds";
const USE: &str = "db_client_connection_use_time_seconds";
const SESSIONS: &str = "tower_sea_orm_sessions_total";

/// Measures a pool's sessions through the [`metrics`](https://docs.rs/metrics)
/// crate, under the names that Prometheus gives to the metrics of
/// OpenTelemetry's [conventions for database
/// clients](https://opentelemetry.io/docs/specs/semconv/db/database-metrics/).
///
/// One for each pool. It uses the recorder that is installed when the pool is
/// built: install it first. The gauges have the numbers of the last
/// [`update`](Self::update): call it before each scrape.
///
/// | metric | kind | labels |
/// |---|---|---|
/// | `db_client_operation_duration_seconds` | histogram | `db_system_name`, `server_address`, `server_port` (if it is not the default), `db_namespace`; of a failure `error_type` and `db_response_status_code` |
/// | `db_client_connection_count` | gauge | pool name, `db_client_connection_state`: `idle` or `used` |
/// | `db_client_connection_max` | gauge | pool name |
/// | `db_client_connection_pending_requests` | gauge | pool name |
/// | `db_client_connection_timeouts_total` | counter | pool name |
/// | `db_client_connection_wait_time_seconds`, `db_client_connection_use_time_seconds` | histogram | pool name |
/// | `tower_sea_orm_sessions_total` | counter | pool name, `tower_sea_orm_outcome`, `http_route` (if the layer [knows it](crate::DbSessionLayer::http_route)) |
///
/// *Pool name* is `db_client_connection_pool_name`: the [given
/// one](Self::pool_name), or `server.address:server.port/db.namespace`.
/// `db_namespace` is the database that the pool's options name; for SQLite, the
/// file's name, or `:memory:`. `error_type` is the server's code (the SQLSTATE;
/// SQLite's result code), `connection_acquire`, `connection` or `_OTHER`. No
/// label has a statement, a value or a request's path in it.
///
/// A wait that ended with an error is no `wait_time`; it counts among the
/// timeouts if no connection became free in time, or if too many requests were
/// waiting already. How long it takes to open a connection is not measured: the
/// driver does so on its own.
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::sync::Arc;
///
/// use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
/// use sea_orm::{ConnectionTrait, Database};
/// use tower_sea_orm::{MetricsObserver, SessionPool};
///
/// // Without buckets, the exporter makes summaries, which cannot be added up over instances.
/// let seconds = Matcher::Suffix("_seconds".to_owned());
/// let scrape = PrometheusBuilder::new()
///     .set_buckets_for_metric(seconds, &MetricsObserver::BUCKETS)?
///     .install_recorder()?;
/// let metrics = Arc::new(MetricsObserver::new().pool_name("shop"));
/// let db = Database::connect("sqlite::memory:").await?;
/// let pool = SessionPool::builder(db).observe(metrics.clone()).build()?;
/// pool.session().await?.execute_unprepared("SELECT 1").await?;
///
/// // In the handler of `/metrics`:
/// metrics.update();
/// let text = scrape.render();
/// assert!(text.contains("db_client_connection_max{db_client_connection_pool_name=\"shop\"} 1"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Default)]
#[must_use = "it measures the pool that it is given to, by `SessionPoolBuilder::observe`"]
pub struct MetricsObserver {
    pool_name: Option<String>,
    // Set when the pool is built: the labels are the pool's, and an observer is
    // made before it.
    pool: OnceLock<Observed>,
}

/// The pool, and the recorder's handles for it.
struct Observed {
    // Weak, because the pool owns its observers and would keep itself alive.
    pool: WeakSessionPool,
    /// The labels of statements.
    target: Vec<Label>,
    name: Label,
    // Kept, because to look one up hashes all its labels.
    succeeded: Histogram,
    waited: Histogram,
    held: Histogram,
    timeouts: Counter,
    used: Gauge,
    idle: Gauge,
    max: Gauge,
    pending: Gauge,
}

impl MetricsObserver {
    /// Buckets for the histograms, in seconds: those of OpenTelemetry's
    /// conventions.
    pub const BUCKETS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

    /// Creates an observer for one pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the pool's name, which must be unique in the application. Default:
    /// `server.address:server.port/db.namespace`.
    pub fn pool_name(mut self, name: impl Into<String>) -> Self {
        self.pool_name = Some(name.into());
        self
    }

    /// Sets the gauges to the pool's [`status`](crate::SessionPool::status); to
    /// zero, if the pool is gone.
    pub fn update(&self) {
        let Some(observed) = self.pool.get() else {
            return;
        };
        let pool = observed.pool.upgrade();
        // Asked for and not counted along: a number that is missed once would
        // be wrong for ever.
        let status = pool
            .as_ref()
            .map(|pool| (pool.status(), target::idle(pool)));
        // Zeros once the pool has gone: a gauge shows what it was last set to
        // for ever.
        let (used, max, pending, idle) = status.map_or((0, 0, 0, 0), |(status, idle)| {
            (status.used, status.max, status.pending, idle)
        });
        observed.used.set(used);
        observed.max.set(max);
        observed.pending.set(pending as f64);
        observed.idle.set(idle as f64);
    }
}

impl Observed {
    fn new(pool: &WeakSessionPool, target: &Target, name: Option<String>) -> Self {
        let name = name.unwrap_or_else(|| target.pool_name());
        let name = Label::new("db_client_connection_pool_name", name);
        let state = |state: &'static str| {
            let state = Label::new("db_client_connection_state", state);
            gauge!(COUNT, vec![name.clone(), state])
        };
        let target = labels(target);
        // The name alone, as the conventions have it: the server's labels are
        // for statements.
        let pool_name = vec![name.clone()];
        Self {
            pool: pool.clone(),
            succeeded: histogram!(OPERATION, target.clone()),
            waited: histogram!(WAIT, pool_name.clone()),
            held: histogram!(USE, pool_name.clone()),
            timeouts: counter!(TIMEOUTS, pool_name.clone()),
            used: state("used"),
            idle: state("idle"),
            max: gauge!(MAX, pool_name.clone()),
            pending: gauge!(PENDING, pool_name),
            target,
            name,
        }
    }
}

impl Observer for MetricsObserver {
    fn attached(&self, pool: &WeakSessionPool) {
        // The recorder's handles are made here as well: a recorder that is
        // installed later would never see them.
        let Some(strong) = pool.upgrade() else { return };
        describe();
        let observed = Observed::new(pool, &Target::of(&strong), self.pool_name.clone());
        // Of a second pool, nothing is counted under the name of the first.
        let _ = self.pool.set(observed);
    }

    fn acquired(&self, acquired: &Acquired<'_>) {
        let Some(observed) = self.pool.get() else {
            return;
        };
        match acquired.error() {
            // Waits without a connection would make the time look long when the
            // pool is too small, and short when the queue is full.
            None => observed.waited.record(acquired.waited()),
            Some(error) if error.is_exhausted() => observed.timeouts.increment(1),
            Some(_) => {}
        }
    }

    fn executed(&self, executed: &Executed<'_>) {
        let Some(observed) = self.pool.get() else {
            return;
        };
        let Some(error) = executed.error() else {
            return observed.succeeded.record(executed.elapsed());
        };
        // Made anew each time: failures are few, and each kind has labels of
        // its own.
        let mut labels = observed.target.clone();
        // The server's code, and never its text, which may have values in it
        // and is different each time.
        labels.push(Label::new("error_type", error_type(error).into_owned()));
        let code = server::code(error);
        labels.extend(code.map(|code| Label::new("db_response_status_code", code)));
        histogram!(OPERATION, labels).record(executed.elapsed());
    }

    fn released(&self, released: &Released<'_>) {
        if let Some(observed) = self.pool.get() {
            observed.held.record(released.held());
        }
    }

    fn ended(&self, ended: &SessionEnded<'_>) {
        let Some(observed) = self.pool.get() else {
            return;
        };
        // The conventions have no name for what a session has come to: the
        // prefix is this crate's.
        let outcome = Label::new("tower_sea_orm_outcome", ended.outcome());
        let mut labels = vec![observed.name.clone(), outcome];
        let route = ended.route();
        // The route's pattern, never the path: each path would be a series of
        // its own.
        labels.extend(route.map(|route| Label::new("http_route", route.to_owned())));
        counter!(SESSIONS, labels).increment(1);
    }
}

impl fmt::Debug for MetricsObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsObserver")
            .field("pool_name", &self.pool_name)
            .finish_non_exhaustive()
    }
}

fn labels(target: &Target) -> Vec<Label> {
    // Only if it is not the default one, as the conventions want it
    // (<https://opentelemetry.io/docs/specs/semconv/db/database-metrics/>).
    let port = target.unusual_port().map(|port| port.to_string());
    let optional = [
        ("server_address", target.address.clone()),
        ("server_port", port),
        ("db_namespace", target.namespace.clone()),
    ];
    let system = Label::new("db_system_name", SharedString::from(target.system));
    let known = optional
        .into_iter()
        .filter_map(|(name, value)| Some(Label::new(name, value?)));
    [system].into_iter().chain(known).collect()
}

/// Gives the recorder the texts that exporters show beside the metrics.
fn describe() {
    describe_histogram!(OPERATION, "Duration of database client operations.");
    describe_histogram!(WAIT, "How long sessions waited for a connection.");
    describe_histogram!(USE, "How long sessions held a connection.");
    describe_gauge!(COUNT, "Open connections, by their state.");
    describe_gauge!(MAX, "The most connections that sessions may hold.");
    describe_gauge!(PENDING, "Requests that wait for a connection.");
    describe_counter!(TIMEOUTS, "Sessions that got no connection in time.");
    describe_counter!(SESSIONS, "Sessions that have ended.");
}
