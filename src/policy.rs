//! [`Policy`]: the settings of a layer, and the plan that they make for a request.

mod begin_rule;
#[cfg(feature = "replicas")]
mod replicas;
mod trace_id;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Version, header, request::Parts};
use sea_orm::{AccessMode, Statement, TransactionOptions};

pub(crate) use self::begin_rule::BeginRule;
pub use self::trace_id::trace_id;
#[cfg(feature = "replicas")]
use crate::replicas::Replicas;
#[cfg(feature = "retry")]
use crate::session::Tally;
use crate::{
    Error, SessionPool,
    error::Kind,
    pool::{Label, PoolMode},
    response::ResponsePolicy,
    session::{CommitWhen, Mode, OpenedFor, Order, Plan, Rules},
};

/// The settings of a layer, shared with every service that it wraps.
#[derive(Clone, Default)]
pub(crate) struct Policy {
    pub(crate) checkout: Checkout,
    pub(crate) response: ResponsePolicy,
    pub(crate) transactions: Transactions,
    pub(crate) options: TransactionOptions,
    pub(crate) read_only_otherwise: bool,
    pub(crate) commit_when: Option<CommitWhen>,
    pub(crate) begin: BeginRule,
    pub(crate) on_acquire: Option<SetUp>,
    pub(crate) pool_mode: Option<PoolMode>,
    pub(crate) http_route: Option<HttpRoute>,
    pub(crate) deadline: Option<Deadline>,
    /// `None`: the layer's own.
    pub(crate) by: Option<PickPool>,
    #[cfg(feature = "replicas")]
    pub(crate) replicas: Option<Replicas>,
}

/// Which requests run in a transaction.
#[derive(Clone, Default)]
pub(crate) enum Transactions {
    // As SeaORM itself: each statement commits by itself unless the service
    // asks for more.
    #[default]
    None,
    All,
    If(Predicate),
}

// Shared, since a policy is copied where a layer is changed that others share.
type Predicate = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;

/// Returns the route by which a request was matched.
pub(crate) type HttpRoute = Arc<dyn Fn(&Parts) -> Option<Arc<str>> + Send + Sync>;

/// Returns how much longer a request's client waits.
pub(crate) type Deadline = Arc<dyn Fn(&Parts) -> Option<Duration> + Send + Sync>;

/// Picks the pool for a request.
pub(crate) type PickPool = Arc<dyn Fn(&Parts) -> Option<SessionPool> + Send + Sync>;

/// Statements that prepare a connection or a transaction for a request.
pub(crate) type SetUp = Arc<dyn Fn(&Parts) -> Vec<Statement> + Send + Sync>;

impl Policy {
    /// Returns the pool that is picked for a request; `None` for the layer's
    /// `own`.
    ///
    /// # Errors
    ///
    /// If there is none, or it cannot do what the layer's settings ask for.
    pub(crate) fn pick(
        &self,
        parts: &Parts,
        own: &SessionPool,
    ) -> Result<Option<SessionPool>, Error> {
        let Some(by) = &self.by else { return Ok(None) };
        // Never the layer's own in its place: a tenant that is not known must
        // not see another's rows.
        let pool = by(parts).ok_or(Kind::UnknownDatabase)?;
        let inner = pool.inner();
        // The layer has checked its settings by its own pool: this one is
        // another.
        if inner.backend() != own.inner().backend() {
            return Err(Kind::OtherBackend.into());
        }
        if self.on_acquire.is_some() {
            inner.check_on_acquire()?;
        }
        if self.pool_mode == Some(PoolMode::Transaction) {
            inner.allow_lending()?;
        }
        Ok(Some(pool))
    }

    /// Returns the plan for a request that gets its session from this layer.
    pub(crate) fn plan(&self, parts: &Parts) -> Plan {
        // Asked once: a user's function may look at a clock.
        let left = self.deadline.as_ref().and_then(|left| left(parts));
        // The client has been waiting since the first attempt.
        #[cfg(feature = "retry")]
        let left = left.map(|left| left.saturating_sub(Tally::elapsed_of(&parts.extensions)));
        let Order {
            mode,
            commit_when,
            pool_mode,
            on_begin,
            on_acquire,
        } = self.order_within(parts, left);
        // Outside a transaction, what `on_begin` sets would outlive the
        // request.
        let otherwise = if on_begin.as_ref().is_some_and(|set_up| set_up.is_required) {
            Mode::Transaction(self.options)
        } else {
            Mode::Autocommit
        };
        let rules = Rules {
            mode: mode.unwrap_or(otherwise),
            commit_when,
            on_begin: on_begin.map(Arc::new),
            on_acquire: on_acquire.map(Into::into),
            pool_mode,
            replication: None,
            // A deadline that no clock can show is none.
            deadline: left.and_then(|left| Instant::now().checked_add(left)),
            // A response to HEAD has a length and no body, whose end would be
            // waited for in vain (H24).
            is_head: parts.method == http::Method::HEAD,
            // hyper sends trailers to an HTTP/1 client only if its `TE` asks
            // for them
            // (<https://www.rfc-editor.org/rfc/rfc9110#section-10.1.4>): no
            // outcome may be left to these.
            has_trailers: parts.version >= Version::HTTP_2,
        };
        // Cheap clones: a standard method is inline, and the path's bytes are
        // shared.
        let label = Label {
            method: parts.method.clone(),
            path: parts.uri.path_and_query().cloned(),
            route: self.http_route.as_ref().and_then(|route| route(parts)),
        };
        Plan {
            rules,
            opened_for: OpenedFor::Request(label),
        }
    }

    /// Returns the pool that is picked for a request, `None` for the layer's
    /// `own`, and the plan for it.
    ///
    /// # Errors
    ///
    /// As [`pick`](Self::pick).
    pub(crate) fn route(
        &self,
        parts: &Parts,
        own: &SessionPool,
    ) -> Result<(Option<SessionPool>, Plan), Error> {
        let picked = self.pick(parts, own)?;
        let plan = self.plan(parts);
        #[cfg(feature = "replicas")]
        if let Some(replicas) = &self.replicas {
            return Ok(self.route_by(replicas, parts, plan));
        }
        Ok((picked, plan))
    }

    /// Returns the settings to apply to a session that an outer layer has
    /// opened.
    pub(crate) fn order(&self, parts: &Parts) -> Order {
        // Its deadline belongs to the session, which is there.
        self.order_within(parts, None)
    }

    fn order_within(&self, parts: &Parts, left: Option<Duration>) -> Order {
        let picked = match &self.transactions {
            Transactions::None => false,
            Transactions::All => true,
            Transactions::If(predicate) => predicate(parts),
        };
        // A reader must not take SQLite's lock for writers. Also for
        // `transaction_with`'s options: the isolation level stays, the access
        // mode is replaced.
        let read_only = TransactionOptions {
            access_mode: Some(AccessMode::ReadOnly),
            sqlite_transaction_mode: None,
            ..self.options
        };
        // `None` leaves the mode to an outer layer, or to `otherwise` in
        // `plan`.
        let mode = match (picked, self.read_only_otherwise) {
            (true, _) => Some(Mode::Transaction(self.options)),
            (false, true) => Some(Mode::Transaction(read_only)),
            (false, false) => None,
        };
        Order {
            mode,
            commit_when: self.commit_when.clone(),
            pool_mode: self.pool_mode,
            on_begin: self.begin.set_up(parts, left),
            on_acquire: self.on_acquire.as_ref().map(|set_up| set_up(parts)),
        }
    }
}

/// Returns whether a request has no body that its client may send slowly. For
/// [`DbSessionLayer::eager_if`](crate::DbSessionLayer::eager_if), so that a
/// request whose body may come slowly acquires no connection before it needs
/// one.
///
/// A request has a body if it declares one, by `Content-Length` above 0 or
/// `Transfer-Encoding`. Over HTTP/2, which needs neither, it also has one if it
/// gives no length and its method is not GET, HEAD, OPTIONS or TRACE.
///
/// ```
/// use tower_sea_orm::without_body;
///
/// let parts = |request: http::request::Builder| request.body(()).unwrap().into_parts().0;
/// assert!(without_body(&parts(http::Request::get("/items"))));
/// assert!(!without_body(&parts(http::Request::post("/items").header("content-length", 20))));
/// # #[cfg(feature = "mock")] {
/// # use sea_orm::{DbBackend, MockDatabase};
/// # use tower_sea_orm::DbSessionLayer;
/// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
/// let layer = DbSessionLayer::new(db).eager_if(without_body);
/// # let _ = layer; }
/// ```
pub fn without_body(parts: &Parts) -> bool {
    // Before `Content-Length`, which it overrides
    // (<https://www.rfc-editor.org/rfc/rfc9112#section-6.3>).
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        return false;
    }
    match parts.headers.get(header::CONTENT_LENGTH) {
        // Any other value counts as a body, one that is no number as well.
        Some(length) => length == "0",
        // HTTP/1 announces every body in the head (RFC 9112, 6); from HTTP/2
        // on, one may come without a word.
        None => parts.version < Version::HTTP_2 || parts.method.is_safe(),
    }
}

/// Returns whether a request's method may change something: any method but GET,
/// HEAD, OPTIONS and TRACE, which RFC 9110 calls safe. For
/// [`DbSessionLayer::transaction_if`](crate::DbSessionLayer::transaction_if).
pub fn unsafe_methods(parts: &Parts) -> bool {
    !parts.method.is_safe()
}

/// When a request's connection is checked out.
#[derive(Clone, Default)]
pub(crate) enum Checkout {
    // A request that gets no connection is refused before its handler has done
    // anything (G1).
    #[default]
    Eager,
    Lazy,
    /// Eager where the predicate says so.
    EagerIf(Predicate),
}

impl Checkout {
    pub(crate) fn is_eager(&self, parts: &Parts) -> bool {
        match self {
            Self::Eager => true,
            Self::Lazy => false,
            Self::EagerIf(predicate) => predicate(parts),
        }
    }
}

/// Returns how much longer the client of a gRPC request waits, by its header
/// `grpc-timeout`
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). For
/// [`DbSessionLayer::deadline`](crate::DbSessionLayer::deadline).
///
/// A header that has not the form of one to eight digits and a unit (`H`, `M`,
/// `S`, `m`, `u`, `n`) counts as none.
///
/// ```
/// use std::time::Duration;
///
/// use tower_sea_orm::grpc_timeout;
///
/// let parts = |value| http::Request::post("/").header("grpc-timeout", value).body(()).unwrap().into_parts().0;
/// assert_eq!(grpc_timeout(&parts("250m")), Some(Duration::from_millis(250)));
/// assert_eq!(grpc_timeout(&parts("99999999H")), Some(Duration::from_secs(99_999_999 * 3600)));
/// assert_eq!(grpc_timeout(&parts("soon")), None);
/// ```
pub fn grpc_timeout(parts: &Parts) -> Option<Duration> {
    let value = parts.headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    // The protocol's bound, by which no number of hours can overflow.
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some(grpc_unit(unit)?(digits.parse().ok()?))
}

/// Returns the unit of a number of up to eight digits.
fn grpc_unit(unit: &str) -> Option<fn(u64) -> Duration> {
    Some(match unit {
        "H" => |number| Duration::from_secs(number * 3600),
        "M" => |number| Duration::from_secs(number * 60),
        "S" => Duration::from_secs,
        "m" => Duration::from_millis,
        "u" => Duration::from_micros,
        "n" => Duration::from_nanos,
        _ => return None,
    })
}
