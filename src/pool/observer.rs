//! [`Observer`]: is told what the sessions of a pool do, for metrics; and [`WeakSessionPool`], by which it asks the pool.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    time::Duration,
};

use http::Method;
use sea_orm::{DbBackend, DbErr};

use super::holder::Label;
use crate::{error::Error, sql::Redacted, telemetry::Usage};

/// Receives the events of a pool's sessions, for metrics.
///
/// Set with
/// [`SessionPoolBuilder::observe`](crate::SessionPoolBuilder::observe). With
/// the features `opentelemetry` and `metrics` there are ready ones. Each method
/// does nothing by default.
///
/// The methods are called in the middle of a request, some of them while it is
/// being dropped: they must be quick and must not block. One that panics is
/// logged, and the session goes on. Several observers are called in the order
/// in which they were added.
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
///
/// use sea_orm::{ConnectionTrait, Database};
/// use tower_sea_orm::{Observer, SessionPool, observer::Executed};
///
/// #[derive(Default)]
/// struct Failures(AtomicU64);
///
/// impl Observer for Failures {
///     fn executed(&self, statement: &Executed<'_>) {
///         if statement.error().is_some() {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
///
/// let failures = Arc::new(Failures::default());
/// let db = Database::connect("sqlite::memory:").await?;
/// let pool = SessionPool::builder(db).observe(failures.clone()).build()?;
/// let session = pool.session().await?;
/// session.execute_unprepared("SELECT 1").await?;
/// assert!(session.execute_unprepared("SELECT nothing").await.is_err());
/// assert_eq!(failures.0.load(Ordering::Relaxed), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub trait Observer: Send + Sync {
    /// The pool has been built. Keep the handle to ask for its
    /// [`status`](crate::SessionPool::status) later.
    fn attached(&self, pool: &WeakSessionPool) {
        let _ = pool;
    }

    /// A session has got a connection, or an error instead. A wait that its
    /// request gives up, because the client has gone for example, is not told
    /// of.
    fn acquired(&self, acquired: &Acquired<'_>) {
        let _ = acquired;
    }

    /// A statement has ended, or a COMMIT, ROLLBACK or savepoint that the
    /// handler or the layer asked for. The rollback of what is open when a
    /// session ends is part of giving its connection back, and is not told of.
    /// A statement that still runs when its session ends is told of afterwards.
    fn executed(&self, executed: &Executed<'_>) {
        let _ = executed;
    }

    /// A session has given its connection back, at its end or before: once for
    /// each that it has [acquired](Self::acquired).
    fn released(&self, released: &Released<'_>) {
        let _ = released;
    }

    /// A session has ended, one that ran no statement as well. A request that
    /// was refused before its handler ran, because there was no connection, had
    /// none.
    fn ended(&self, ended: &SessionEnded<'_>) {
        let _ = ended;
    }
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn attached(&self, pool: &WeakSessionPool) {
        (**self).attached(pool);
    }

    fn acquired(&self, acquired: &Acquired<'_>) {
        (**self).acquired(acquired);
    }

    fn executed(&self, executed: &Executed<'_>) {
        (**self).executed(executed);
    }

    fn released(&self, released: &Released<'_>) {
        (**self).released(released);
    }

    fn ended(&self, ended: &SessionEnded<'_>) {
        (**self).ended(ended);
    }
}

/// A session's wait for a connection has ended.
#[derive(Debug, Clone, Copy)]
pub struct Acquired<'e> {
    pub(crate) waited: Duration,
    pub(crate) error: Option<&'e Error>,
    pub(crate) label: Option<&'e Label>,
}

impl Acquired<'_> {
    /// Returns the method of the session's request; `None` outside requests.
    pub fn method(&self) -> Option<&Method> {
        self.label.map(|label| &label.method)
    }

    /// Returns the route of the session's request, such as `/items/{id}`, if
    /// its layer says which it is, by `DbSessionLayer::http_route`.
    pub fn route(&self) -> Option<&str> {
        self.label?.route.as_deref()
    }

    /// Returns how long it took: zero where a connection was idle.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Returns why the session got none; `None` if it did.
    pub fn error(&self) -> Option<&Error> {
        self.error
    }
}

/// A statement has ended.
#[derive(Debug, Clone, Copy)]
pub struct Executed<'e> {
    pub(crate) statement: &'e Redacted,
    pub(crate) backend: DbBackend,
    pub(crate) elapsed: Duration,
    pub(crate) begins: bool,
    pub(crate) is_control: bool,
    pub(crate) error: Option<&'e DbErr>,
    pub(crate) label: Option<&'e Label>,
}

impl Executed<'_> {
    /// Returns the method of the session's request; `None` outside requests.
    pub fn method(&self) -> Option<&Method> {
        self.label.map(|label| &label.method)
    }

    /// Returns the route of the session's request, such as `/items/{id}`, if
    /// its layer says which it is, by `DbSessionLayer::http_route`.
    pub fn route(&self) -> Option<&str> {
        self.label?.route.as_deref()
    }

    /// Returns the beginning of its text, without the values that stand in it;
    /// of what has no text, `COMMIT`, `ROLLBACK TO SAVEPOINT`, `raw code` and
    /// the like. It is made anew with each call.
    pub fn statement(&self) -> String {
        self.statement.without_values(self.backend)
    }

    /// Returns whether it is the session's own COMMIT, ROLLBACK or the like,
    /// and no statement of the handler's.
    pub fn is_control(&self) -> bool {
        self.is_control
    }

    /// Returns the database's kind.
    pub fn backend(&self) -> DbBackend {
        self.backend
    }

    /// Returns the time from its start until its answer had arrived, the BEGIN
    /// that it [brings along](Self::begins) included. Of a stream, until its
    /// last row was read; of one that is dropped before, until the rest has
    /// arrived and was thrown away.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Returns whether the session's own BEGIN was sent before it: it is the
    /// first statement of that transaction. A `begin()` of the handler's is a
    /// statement of its own.
    pub fn begins(&self) -> bool {
        self.begins
    }

    /// Returns why it failed, if it did.
    pub fn error(&self) -> Option<&DbErr> {
        self.error
    }
}

/// A session has given its connection back.
#[derive(Debug, Clone, Copy)]
pub struct Released<'e> {
    pub(crate) held: Duration,
    pub(crate) label: Option<&'e Label>,
}

impl Released<'_> {
    /// Returns the method of the session's request; `None` outside requests.
    pub fn method(&self) -> Option<&Method> {
        self.label.map(|label| &label.method)
    }

    /// Returns the route of the session's request, such as `/items/{id}`, if
    /// its layer says which it is, by `DbSessionLayer::http_route`.
    pub fn route(&self) -> Option<&str> {
        self.label?.route.as_deref()
    }

    /// Returns how long the session had it.
    pub fn held(&self) -> Duration {
        self.held
    }
}

/// A session has ended.
#[derive(Debug, Clone, Copy)]
pub struct SessionEnded<'e> {
    pub(crate) usage: Usage,
    pub(crate) outcome: &'static str,
    pub(crate) label: Option<&'e Label>,
}

impl SessionEnded<'_> {
    /// Returns the method of the session's request; `None` outside requests.
    pub fn method(&self) -> Option<&Method> {
        self.label.map(|label| &label.method)
    }

    /// Returns the route of the session's request, such as `/items/{id}`, if
    /// its layer says which it is, by `DbSessionLayer::http_route`.
    pub fn route(&self) -> Option<&str> {
        self.label?.route.as_deref()
    }

    /// Returns how long the session has waited for connections in all.
    pub fn waited(&self) -> Duration {
        self.usage.waited
    }

    /// Returns how long the session has held connections in all.
    pub fn held(&self) -> Duration {
        self.usage.held
    }

    /// Returns how many statements it has run, with what it was [told to
    /// end](Observer::executed), and without a BEGIN that travelled with the
    /// first one.
    pub fn statements(&self) -> u64 {
        self.usage.statements
    }

    /// Returns how the session's transaction ended: `committed`, `rolled_back`,
    /// `failed` (it was to be committed and was not, or stored or raw code has
    /// ended it) or `unknown`; `released` if there was none to end.
    pub fn outcome(&self) -> &'static str {
        self.outcome
    }
}

/// The observers of a pool.
#[derive(Clone, Default)]
// Set before the pool is shared, so that telling them takes no lock.
pub(crate) struct Observers(Vec<Arc<dyn Observer>>);

impl Observers {
    pub(super) fn add(&mut self, observer: impl Observer + 'static) {
        self.0.push(Arc::new(observer));
    }

    /// Returns whether there is any: if not, nothing is measured for them.
    pub(crate) fn is_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Tells each of them. Not to be called under a lock: this is user code.
    pub(crate) fn tell(&self, tell: impl Fn(&dyn Observer)) {
        for observer in &self.0 {
            // Some are told while a request is dropped: a panic there would end
            // the process (G11). Shown by
            // `a_panic_of_an_observer_costs_no_session`.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| tell(&**observer))) {
                // The payload's `Drop` is foreign code as well, and may panic.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
                tracing::error!(target: "tower_sea_orm::pool", "an observer panicked; the session goes on");
            }
        }
    }
}

/// A handle that does not keep its pool, from
/// [`SessionPool::downgrade`](crate::SessionPool::downgrade).
// Of no type: an observer is given one, and the pool has its observers.
#[derive(Clone)]
pub struct WeakSessionPool(Weak<dyn Any + Send + Sync>);

impl WeakSessionPool {
    pub(super) fn of<T: Any + Send + Sync>(pool: &Arc<T>) -> Self {
        let weak: Weak<T> = Arc::downgrade(pool);
        Self(weak)
    }

    /// Returns what it was made of, if that is still there.
    pub(super) fn inner<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.0.upgrade()?.downcast().ok()
    }
}

impl fmt::Debug for WeakSessionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakSessionPool").finish_non_exhaustive()
    }
}
