//! [`Replicas`]: which server a request reads on.

mod carrier;
mod check;
mod checks;
mod former;
mod node;

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::request::Parts;
use tokio::sync::Semaphore;

pub use self::{
    carrier::{PositionCarrier, PositionCookie, PositionHeader},
    node::{OutOfUse, ReplicaStatus},
};
use self::{checks::Checks, node::Node};
use crate::{
    SessionPool,
    connection::ReadDemand,
    position::Position,
    session::{Mode, Reads, Replica, Replication},
};

/// A check's answer counts for that long at least: on a busy machine, checks
/// take their time.
const MIN_AGE: Duration = Duration::from_secs(5);

/// A PostgreSQL primary and its streaming replicas, a MariaDB primary and its
/// replicas, or the nodes of a Galera cluster, for
/// [`DbSessionLayer::replicas`](crate::DbSessionLayer::replicas) (feature
/// `replicas`).
///
/// Requests with a [safe](https://www.rfc-editor.org/rfc/rfc9110#section-9.2.1)
/// method read on a replica, in a READ ONLY transaction; all others go to the
/// primary. A client reads its own writes, as long as it sends back the latest
/// [`Position`](crate::Position) that it received ([`carrier`](Self::carrier)):
/// BEGIN on a replica checks, in its own round trip, that the replica has
/// replayed it. A replica that has not may take [`wait`](Self::wait) to do so;
/// then the session moves to the primary, as it does from one that fails.
///
/// While there are requests, every server is asked for its role and its
/// position once a second, on a connection of its own, which closes when the
/// last clone of the layer and of this is dropped. Clones share what is known
/// of the servers. Each server's pool is closed, pinged, recycled and observed
/// on its own.
///
/// The name of the primary's pool has to lead to the primary: a proxy with a
/// role check, or several hosts behind one name, see to that. The replicas' too
/// may be such names.
///
/// Reads that no replica can serve go to the primary, but only so many at once
/// ([`max_reads_on_primary`](Self::max_reads_on_primary)).
///
/// If two servers take writes, because one was promoted while the primary went
/// on, only the later one serves, once a check has seen that: requests whose
/// connection leads to the former primary get a 503
/// ([`Error::is_read_only`](crate::Error::is_read_only)). On MariaDB, the
/// checks see it if both the promoted server and one that follows it are
/// replicas of this.
///
/// A client's own writes are those that its requests' sessions have committed.
/// Commits by jobs, hooks, other pools and sessions that a handler opens from
/// [`DbSession::pool`](crate::DbSession::pool) carry no position.
///
/// ```no_run
/// # async fn run() -> Result<(), sea_orm::DbErr> {
/// use sea_orm::Database;
/// use tower_sea_orm::{DbSessionLayer, Replicas, SessionPool, unsafe_methods};
///
/// let primary = SessionPool::new(Database::connect("postgres://app@primary/shop").await?);
/// let replica = SessionPool::new(Database::connect("postgres://app@replica/shop").await?);
/// let replicas = Replicas::of(primary.clone()).replica("r1", replica);
/// let layer = DbSessionLayer::new(primary)
///     .transaction_if(unsafe_methods)
///     .replicas(replicas.clone());
/// assert!(replicas.status()[0].out_of_use.is_some()); // nothing was asked yet
/// # let _ = layer;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Replicas {
    primary: Arc<Node>,
    nodes: Vec<Arc<Node>>,
    carrier: Arc<dyn PositionCarrier>,
    max_lag: Duration,
    wait: Duration,
    acquire_timeout: Duration,
    check_every: Duration,
    reads: Option<Predicate>,
    // Shared, because servers clone a layer's service: each clone would begin
    // with the same replica.
    next: Arc<AtomicUsize>,
    checks: Arc<Mutex<Checks>>,
    /// For those that read on the primary, because no replica can serve them.
    room: Arc<Semaphore>,
}

type Predicate = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;

impl Replicas {
    /// Returns a database without replicas: add them by
    /// [`replica`](Self::replica).
    ///
    /// # Panics
    ///
    /// If it is given a `DatabaseConnection`, as [`SessionPool::new`].
    pub fn of(primary: impl Into<SessionPool>) -> Self {
        let primary = primary.into();
        // Half: where all replicas are lost, a service's reads are a multiple
        // of its writes, and would take every connection.
        let room = room(primary.status().max.div_ceil(2).max(1));
        Self {
            primary: Arc::new(Node::new("primary".to_owned(), primary)),
            nodes: Vec::new(),
            carrier: Arc::new(PositionCookie::new()),
            // Ten checks, so that one that is late takes no replica out of use.
            max_lag: Duration::from_secs(10),
            wait: Duration::from_millis(20),
            // Not the pool's own, which is longer: there is a primary to read
            // on (G17).
            acquire_timeout: Duration::from_secs(1),
            check_every: Duration::from_secs(1),
            reads: None,
            next: Arc::default(),
            checks: Arc::default(),
            room,
        }
    }

    /// Adds a replica. The name is for the log and for
    /// [`status`](Self::status).
    ///
    /// # Panics
    ///
    /// If it is given a `DatabaseConnection`, as [`SessionPool::new`].
    #[must_use]
    pub fn replica(mut self, name: impl Into<String>, pool: impl Into<SessionPool>) -> Self {
        self.nodes
            .push(Arc::new(Node::new(name.into(), pool.into())));
        self
    }

    /// Sets for how long a replica may be behind the primary before it is out
    /// of use. Default: 10 s.
    ///
    /// This bounds the staleness of reads by clients without a recent write.
    /// While the primary does not answer, or is one from before a fail-over, no
    /// replica goes out of use for its lag. With zero, no replica is used at
    /// all; a value below [`check_every`](Self::check_every) takes replicas out
    /// of use between two checks.
    #[must_use]
    pub fn max_lag(mut self, lag: Duration) -> Self {
        self.max_lag = lag;
        self
    }

    /// Sets for how long a request waits on a replica for its client's own
    /// writes, before it reads on the primary. Default: 20 ms. With zero, the
    /// replica is asked once.
    #[must_use]
    pub fn wait(mut self, time: Duration) -> Self {
        self.wait = time;
        self
    }

    /// Sets for how long a request waits for a connection to a replica, and
    /// then for the answer to BEGIN, before it reads on the primary; and for
    /// how long a check waits for a server. Default: 1 s.
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// Sets how many requests that read may have a session on the primary at
    /// once, because no replica can serve them. Default: half of the primary's
    /// `max_connections`, rounded up.
    ///
    /// This leaves connections to requests that write when the replicas fail.
    /// Further reads wait for their turn; after the pool's
    /// [`acquire_timeout`](crate::SessionPoolBuilder::acquire_timeout), they
    /// get a 503 ([`Error::is_exhausted`](crate::Error::is_exhausted)). With
    /// zero, they get it at once, and so do clients that have just written what
    /// no replica has yet.
    #[must_use]
    pub fn max_reads_on_primary(mut self, max: u32) -> Self {
        self.room = room(max);
        self
    }

    /// Sets how often servers are asked for their role and position, while
    /// there are requests. Default: 1 s. An answer counts for three times as
    /// long, and for 5 s at least. With zero, the next check begins with the
    /// first request after the last one has ended.
    #[must_use]
    pub fn check_every(mut self, interval: Duration) -> Self {
        self.check_every = interval;
        self
    }

    /// Sets how a client's position gets to the client and back. Default:
    /// [`PositionCookie`].
    ///
    /// Two clusters in one service need carriers of different names.
    #[must_use]
    pub fn carrier(mut self, carrier: impl PositionCarrier + 'static) -> Self {
        self.carrier = Arc::new(carrier);
        self
    }

    /// Sets which requests read on a replica. Default: those whose method is
    /// GET, HEAD, OPTIONS or TRACE.
    #[must_use]
    pub fn replica_if<P>(mut self, reads: P) -> Self
    where
        P: Fn(&Parts) -> bool + Send + Sync + 'static,
    {
        self.reads = Some(Arc::new(reads));
        self
    }

    /// Returns the state of each replica, as of the last check.
    pub fn status(&self) -> Vec<ReplicaStatus> {
        let nodes = self.nodes.iter();
        let status = nodes.map(|node| node.status(self.max_lag, self.max_age()));
        status.collect()
    }

    pub(crate) fn primary(&self) -> &SessionPool {
        &self.primary.pool
    }

    /// Returns each server's pool with its name.
    pub(crate) fn pools(&self) -> impl Iterator<Item = (&str, &SessionPool)> {
        self.nodes
            .iter()
            .map(|node| (node.name.as_str(), &node.pool))
    }

    /// Returns for how long a check's answer counts.
    fn max_age(&self) -> Duration {
        // Three intervals, as one check may be lost and the next one late.
        self.check_every.saturating_mul(3).max(MIN_AGE)
    }

    /// Returns the pool for a request, unless it is the primary's, and what its
    /// session has to do with replicas. `writes` is the mode in which it would
    /// write.
    pub(crate) fn route(
        &self,
        parts: &Parts,
        writes: Mode,
    ) -> (Option<SessionPool>, Arc<Replication>) {
        // By requests: a service without any asks nothing, and a timer would
        // need a runtime from the start.
        self.check_if_due();
        let position = self.carrier.load(parts);
        let is_read = self.reads(parts);
        // A service that closes its primary's pool serves nothing more.
        let picks = is_read && !self.primary.pool.is_closed();
        let node = picks.then(|| self.pick(position)).flatten();
        let replica = node.clone().map(|node| node as Arc<dyn Replica>);
        let reads = is_read.then(|| Reads {
            replica,
            demand: Arc::new(ReadDemand {
                // Only the primary has that one, and there nothing is checked.
                at_least: position.filter(|position| *position != Position::PRIMARY),
                wait: self.wait,
                patience: self.acquire_timeout,
            }),
            writes,
        });
        let carrier = self.carrier.clone();
        let store = Arc::new(move |position, head: &mut _| carrier.store(position, head));
        let (primary, room) = (self.primary.pool.clone(), self.room.clone());
        let replication = Replication::new(primary, reads, store, room);
        (node.map(|node| node.pool.clone()), replication)
    }

    fn reads(&self, parts: &Parts) -> bool {
        match &self.reads {
            Some(reads) => reads(parts),
            None => parts.method.is_safe(),
        }
    }

    /// Returns the replica for a client with this position, in turn among those
    /// that are fit.
    fn pick(&self, position: Option<Position>) -> Option<Arc<Node>> {
        let fitness = |node: &Arc<Node>| node.fitness(position, self.max_lag, self.max_age());
        let fit: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|node| Some((fitness(node)?, node)))
            .collect();
        // Those that are known to have the write come first: at the others,
        // BEGIN may have to wait for it.
        let best = fit.iter().map(|(fitness, _)| *fitness).max()?;
        let mut best: Vec<_> = fit.into_iter().filter(|(one, _)| *one == best).collect();
        // Relaxed: two requests on one replica are no fault.
        let next = self.next.fetch_add(1, Ordering::Relaxed) % best.len();
        Some(best.swap_remove(next).1.clone())
    }
}

/// Returns the room for so many sessions.
fn room(max: u32) -> Arc<Semaphore> {
    let permits = usize::try_from(max).unwrap_or(usize::MAX);
    // `new` panics beyond that.
    let room = Semaphore::new(permits.min(Semaphore::MAX_PERMITS));
    if max == 0 {
        // Nothing is to wait for a place that will never be there.
        room.close();
    }
    Arc::new(room)
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicas")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
