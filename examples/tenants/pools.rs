//! [`Tenants`]: the tenants' pools, within a budget of connections for each server.

use std::{
    collections::HashMap,
    error::Error,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use sea_orm::{ConnectOptions, Database, DbErr, sqlx::postgres::PgConnectOptions};
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tower_sea_orm::SessionPool;

/// How often a request that waits for a place looks whether a pool is idle. Most of them are when a lease ends; one whose client
/// has left, or whose response still streams, is a while later.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Connections that the tenants of one server have together, at most.
    pub(crate) budget: usize,
    /// Connections of each tenant's pool.
    pub(crate) connections: u32,
    /// How long a request waits until its tenant's pool has a place, and then again for a connection.
    pub(crate) wait: Duration,
}

impl Limits {
    /// How many pools are open at a time.
    pub(crate) fn pools(self) -> usize {
        // One to find out whether the server is down or full, and one to ask it about a statement whose answer does not come.
        self.budget / (self.connections as usize + 2)
    }
}

/// All tenants, by name, and their servers.
#[derive(Clone)]
pub(crate) struct Tenants {
    tenants: Arc<HashMap<String, Tenant>>,
    servers: Vec<Arc<Server>>,
}

struct Tenant {
    options: ConnectOptions,
    server: Arc<Server>,
}

impl Tenants {
    /// Names the tenants and the URLs of their databases. Nothing is connected to.
    pub(crate) fn new(
        urls: impl IntoIterator<Item = (String, String)>,
        limits: Limits,
    ) -> Result<Self, Box<dyn Error>> {
        let mut servers = HashMap::new();
        let mut tenants = HashMap::new();
        for (name, url) in urls {
            let place: PgConnectOptions = url.parse()?;
            let address = (place.get_host().to_owned(), place.get_port());
            let server = servers.entry(address);
            let server = server.or_insert_with(|| Arc::new(Server::new(limits)));
            let mut options = ConnectOptions::new(url);
            options
                .connect_lazy(true)
                .max_connections(limits.connections)
                .acquire_timeout(limits.wait)
                .sqlx_logging(false);
            let server = server.clone();
            tenants.insert(name, Tenant { options, server });
        }
        Ok(Self {
            tenants: Arc::new(tenants),
            servers: servers.into_values().collect(),
        })
    }

    /// Returns the tenant's pool, which stays open as long as the lease; `None` if there is no such tenant.
    pub(crate) async fn lease(&self, name: &str) -> Result<Option<Lease>, Refused> {
        let Some(tenant) = self.tenants.get(name) else {
            return Ok(None);
        };
        let lease = Lease::new(&tenant.server, name);
        // With the lease dropped, also by a client that leaves, what it has begun is another request's to end.
        let open = lease
            .place
            .get_or_try_init(|| tenant.server.open(&tenant.options));
        match timeout(tenant.server.limits.wait, open).await {
            Ok(Ok(_)) => Ok(Some(lease)),
            Ok(Err(refused)) => Err(refused),
            Err(_) => Err(Refused::Full),
        }
    }

    /// Closes the pools that were not used for so long.
    pub(crate) fn close_idle(&self, unused: Duration) {
        for server in &self.servers {
            server.close_idle(unused);
        }
    }

    /// Closes all pools; requests in progress may take so long.
    pub(crate) async fn close(&self, within: Duration) {
        let closing = self.servers.iter().map(|server| server.close(within));
        join_all(closing).await;
    }

    /// How many pools are open, and how many were opened since the start.
    pub(crate) fn pools(&self) -> (usize, usize) {
        let counts = self.servers.iter().map(|server| {
            let state = server.state();
            (state.pools.len(), state.opened)
        });
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

/// Why a tenant has no pool now.
#[derive(Debug)]
pub(crate) enum Refused {
    /// All places are taken by tenants with requests, or the service is stopping.
    Full,
    /// The tenant's URL is of no use.
    Unusable(DbErr),
}

/// A database server, and the pools of its tenants.
struct Server {
    limits: Limits,
    /// A pool has one of these for as long as it may have connections.
    places: Arc<Semaphore>,
    state: Mutex<ServerState>,
}

#[derive(Default)]
struct ServerState {
    pools: HashMap<String, Entry>,
    opened: usize,
    /// Requests that wait for a place.
    waiting: usize,
    /// Pools whose place is about to be free.
    closing: usize,
}

struct Entry {
    /// Empty until the first request has opened it; the others wait for that.
    place: Arc<OnceCell<Place>>,
    leases: usize,
    used: Instant,
}

struct Place {
    pool: SessionPool,
    _permit: OwnedSemaphorePermit,
}

impl Server {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            places: Arc::new(Semaphore::new(limits.pools())),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a pool when there is a place for it. It connects with its first session.
    async fn open(self: &Arc<Self>, options: &ConnectOptions) -> Result<Place, Refused> {
        let permit = match self.places.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::new(self);
                // In the order in which they came.
                let mut acquiring = pin!(self.places.clone().acquire_owned());
                let permit = loop {
                    self.make_room();
                    if let Ok(permit) = timeout(LOOK, &mut acquiring).await {
                        break permit;
                    }
                };
                permit.map_err(|_| Refused::Full)?
            }
        };
        let database = Database::connect(options.clone()).await;
        let database = database.map_err(Refused::Unusable)?;
        self.state().opened += 1;
        Ok(Place {
            pool: SessionPool::new(database),
            _permit: permit,
        })
    }

    /// Closes the pools that have been idle for longest, as many as there are requests that wait for a place.
    fn make_room(self: &Arc<Self>) {
        let mut state = self.state();
        while state.closing < state.waiting {
            let idle = state.pools.iter().filter(|(_, entry)| entry.is_idle());
            let oldest = idle.min_by_key(|(_, entry)| entry.used);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else {
                return;
            };
            self.close_one(&mut state, &name);
        }
    }

    fn close_idle(self: &Arc<Self>, unused: Duration) {
        let mut state = self.state();
        let entries = state.pools.iter();
        let idle = entries.filter(|(_, entry)| entry.is_idle() && entry.used.elapsed() >= unused);
        for name in idle.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.close_one(&mut state, &name);
        }
    }

    /// Closes a pool, and frees its place when its connections are closed.
    fn close_one(self: &Arc<Self>, state: &mut ServerState, name: &str) {
        let Some(entry) = state.pools.remove(name) else {
            return;
        };
        state.closing += 1;
        let server = self.clone();
        tokio::spawn(async move {
            if let Some(place) = entry.place.get() {
                place.pool.close(Duration::ZERO).await;
            }
            drop(entry);
            server.state().closing -= 1;
        });
    }

    async fn close(&self, within: Duration) {
        self.places.close();
        let entries: Vec<_> = self.state().pools.drain().collect();
        let places = entries.iter().filter_map(|(_, entry)| entry.place.get());
        join_all(places.map(|place| place.pool.close(within))).await;
    }
}

impl Entry {
    /// A response's body may use its session for longer than the lease.
    fn is_idle(&self) -> bool {
        let status = self.place.get().map(|place| place.pool.status());
        self.leases == 0 && status.is_some_and(|status| status.used == 0 && status.pending == 0)
    }
}

/// Counts a request that waits for a place, until it is dropped.
struct Waiting<'s>(&'s Server);

impl<'s> Waiting<'s> {
    fn new(server: &'s Server) -> Self {
        server.state().waiting += 1;
        Self(server)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// Keeps a tenant's pool open until it is dropped; jobs need one as requests do.
pub(crate) struct Lease {
    server: Arc<Server>,
    name: String,
    place: Arc<OnceCell<Place>>,
}

impl Lease {
    fn new(server: &Arc<Server>, name: &str) -> Self {
        let mut state = server.state();
        let entry = state.pools.entry(name.to_owned()).or_insert_with(|| Entry {
            place: Arc::default(),
            leases: 0,
            used: Instant::now(),
        });
        entry.leases += 1;
        Self {
            place: entry.place.clone(),
            server: server.clone(),
            name: name.to_owned(),
        }
    }

    pub(crate) fn pool(&self) -> Option<SessionPool> {
        self.place.get().map(|place| place.pool.clone())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.server.state();
        if let Some(entry) = state.pools.get_mut(&self.name) {
            entry.leases -= 1;
            entry.used = Instant::now();
            if entry.leases == 0 && !entry.place.initialized() {
                state.pools.remove(&self.name);
            }
        }
        drop(state);
        self.server.make_room();
    }
}
