//! A TCP proxy in front of a database server: to make the network slow,
//! silent or broken, and to count round trips.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Returns how many round trips the driver's pool may have added to those of a warm connection since `since`: it sees
/// the connection every ten seconds, or when nobody used it for one, and pings it then. None within the first
/// five seconds, which is all the time that a machine with nothing else to do needs.
pub fn visits(since: Instant) -> u64 {
    3 * (since.elapsed().as_secs() / 5)
}

/// What a text has in it that commits and begins the next transaction: on PostgreSQL, and on MySQL.
pub const CHAINED: [&str; 2] = ["COMMIT; ", "COMMIT AND CHAIN"];

/// A TCP proxy on a free loopback port in front of a server's port.
///
/// Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// The state that the proxy's handle and its connections share.
#[derive(Debug)]
struct Shared {
    target_port: AtomicU16,
    /// The last byte of the loopback address from which the server sees the clients.
    source: AtomicU8,
    delay_micros: AtomicU64,
    connect_delay_micros: AtomicU64,
    refuse: AtomicBool,
    mute: AtomicBool,
    requests: AtomicU64,
    /// How often a client has begun the next transaction with a COMMIT.
    chained: AtomicU64,
    connections: AtomicU64,
    accepted: AtomicU64,
    frozen: watch::Sender<bool>,
    /// The bytes by which a chunk is held back on its way to the server.
    held_back: watch::Sender<Option<Vec<u8>>>,
    held: AtomicU64,
    /// Whether those that have something held back are closed for their clients.
    forsaken: watch::Sender<bool>,
    /// How often the connections of that time were made silent for good.
    silenced: watch::Sender<u64>,
    /// How often the connections were cut.
    cuts: watch::Sender<u64>,
}

impl Proxy {
    /// Starts a proxy in front of `127.0.0.1:target_port`.
    pub async fn start(target_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        Self::at(listener.expect("a free loopback port"), target_port)
    }

    /// Starts a proxy whose clients cannot send more than some kilobytes ahead of what it reads, as over a real network:
    /// the system sizes a socket's buffers by the segments that fit the way.
    pub fn narrow(target_port: u16) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(1).expect("a small buffer");
        setsockopt(&socket, sockopt::TcpMaxSeg, &536).expect("small segments");
        let free = (Ipv4Addr::LOCALHOST, 0).into();
        socket.bind(free).expect("a free loopback port");
        Self::at(socket.listen(64).expect("a listener"), target_port)
    }

    fn at(listener: TcpListener, target_port: u16) -> Self {
        let port = listener.local_addr().expect("a bound listener").port();
        let shared = Arc::new(Shared {
            target_port: AtomicU16::new(target_port),
            source: AtomicU8::new(1),
            delay_micros: AtomicU64::new(0),
            connect_delay_micros: AtomicU64::new(0),
            refuse: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            chained: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            frozen: watch::Sender::new(false),
            held_back: watch::Sender::new(None),
            held: AtomicU64::new(0),
            forsaken: watch::Sender::new(false),
            silenced: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self {
            port,
            shared,
            accepting,
        }
    }

    /// From now on, new connections go to `127.0.0.1:target_port`, as by a name that leads elsewhere. Those that are
    /// there stay where they are.
    pub fn lead_to(&self, target_port: u16) {
        self.shared.target_port.store(target_port, Ordering::SeqCst);
    }

    /// From now on, the server sees new connections come from `127.0.0.{source}`, as behind a gateway with several
    /// addresses.
    pub fn connect_from(&self, source: u8) {
        self.shared.source.store(source, Ordering::SeqCst);
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `db_url` with its host and port replaced by the proxy's.
    pub fn url(&self, db_url: &str) -> String {
        let (scheme, rest) = db_url.split_once("://").expect("a URL with ://");
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let user = match authority.rsplit_once('@') {
            Some((user, _)) => format!("{user}@"),
            None => String::new(),
        };
        format!("{scheme}://{user}127.0.0.1:{}{path}", self.port)
    }

    /// From now on, holds each chunk from server to client back for `delay`.
    pub fn delay_replies(&self, delay: Duration) {
        store(&self.shared.delay_micros, delay);
    }

    /// From now on, new connections reach the server after `delay`.
    pub fn delay_connects(&self, delay: Duration) {
        store(&self.shared.connect_delay_micros, delay);
    }

    /// Stops forwarding both ways, without closing anything.
    pub fn freeze(&self) {
        self.shared.frozen.send_replace(true);
    }

    /// Forwards again, first of all what was held back.
    pub fn thaw(&self) {
        self.shared.frozen.send_replace(false);
    }

    /// From now on, holds back what a client sends that has `what` in it. Other connections go on.
    pub fn hold_back(&self, what: &str) {
        self.shared
            .held_back
            .send_replace(Some(what.as_bytes().to_vec()));
    }

    /// Forwards what was held back.
    pub fn let_go(&self) {
        self.shared.held_back.send_replace(None);
    }

    /// Closes the connections that have something held back, for their clients alone: it arrives all the
    /// same once it is let go.
    pub fn forsake(&self) {
        self.shared.forsaken.send_replace(true);
    }

    /// Returns how many connections have something held back.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Closes all current connections, to the clients and to the server.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Swallows everything on the current connections from now on, as a firewall that has forgotten them.
    pub fn silence(&self) {
        self.shared.silenced.send_modify(|silenced| *silenced += 1);
    }

    /// Sets whether new connections are closed at once.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::SeqCst);
    }

    /// Sets whether new connections are accepted and never answered, while the others go on.
    pub fn mute(&self, mute: bool) {
        self.shared.mute.store(mute, Ordering::SeqCst);
    }

    /// Returns how many bursts went from clients to the server: the number of round
    /// trips.
    ///
    /// Log-ins and goodbyes are not counted; the statements that a driver
    /// sends to set a new connection up are: see [`Proxy::reset_count`].
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Sets [`Proxy::requests`] back to 0, after a warm-up.
    pub fn reset_count(&self) {
        self.shared.requests.store(0, Ordering::SeqCst);
    }

    /// Returns how often a client has begun the next transaction in the same text as COMMIT.
    pub fn chained(&self) -> u64 {
        self.shared.chained.load(Ordering::SeqCst)
    }

    /// Returns how many connections there were, those that are open included.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Returns how many connections are open now.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Accepts clients until aborted.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if shared.refuse.load(Ordering::SeqCst) {
            continue;
        }
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&shared);
        let is_mute = shared.mute.load(Ordering::SeqCst);
        let (mut cuts, mut silenced) = (shared.cuts.subscribe(), shared.silenced.subscribe());
        tokio::spawn(async move {
            shared.connections.fetch_add(1, Ordering::SeqCst);
            // Not polled any more, it keeps its sockets open.
            let mut serving = std::pin::pin!(async {
                if is_mute {
                    listen(client).await
                } else {
                    serve(client, &shared).await
                }
            });
            tokio::select! {
                _ = cuts.changed() => {}
                _ = silenced.changed() => drop(cuts.changed().await),
                _ = &mut serving => {}
            }
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn store(micros: &AtomicU64, delay: Duration) {
    micros.store(
        u64::try_from(delay.as_micros()).expect("a delay that fits"),
        Ordering::SeqCst,
    );
}

/// Waits for as long as a delay lasts that [`store`] has set.
async fn wait_out(micros: &AtomicU64) {
    let micros = micros.load(Ordering::SeqCst);
    if micros > 0 {
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}

/// Reads what one client says until its end, and says nothing.
async fn listen(mut client: TcpStream) -> io::Result<()> {
    tokio::io::copy(&mut client, &mut tokio::io::sink())
        .await
        .map(drop)
}

/// Serves one client until the server's side ends.
async fn serve(client: TcpStream, shared: &Shared) -> io::Result<()> {
    wait_out(&shared.connect_delay_micros).await;
    let socket = TcpSocket::new_v4()?;
    let source = shared.source.load(Ordering::SeqCst);
    socket.bind((Ipv4Addr::new(127, 0, 0, source), 0).into())?;
    let target = shared.target_port.load(Ordering::SeqCst);
    let server = socket.connect((Ipv4Addr::LOCALHOST, target).into()).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let talk = Mutex::new(Talk::default());
    let up = async {
        let _ = upstream(from_client, to_server, shared, &talk).await;
        // The client's end is no reason to lose the server's last words.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = up => Ok(()),
        down = downstream(from_server, to_client, shared, &talk) => down,
    }
}

/// Forwards from client to server.
async fn upstream(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    talk: &Mutex<Talk>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        thawed(shared).await;
        if read == 0 {
            return to.shutdown().await;
        }
        let chunk = &buffer[..read];
        if lock(talk).client_says(chunk) {
            shared.requests.fetch_add(1, Ordering::SeqCst);
        }
        if CHAINED.iter().any(|chained| has(chunk, chained.as_bytes())) {
            shared.chained.fetch_add(1, Ordering::SeqCst);
        }
        let_go(shared, chunk, talk).await;
        to.write_all(chunk).await?;
    }
}

/// Forwards from server to client.
async fn downstream(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    talk: &Mutex<Talk>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut forsaken = shared.forsaken.subscribe();
    loop {
        let is_forsaken = async {
            drop(
                forsaken
                    .wait_for(|forsaken| *forsaken && lock(talk).is_held)
                    .await,
            )
        };
        let read = tokio::select! {
            read = from.read(&mut buffer) => Some(read?),
            () = is_forsaken => None,
        };
        let Some(read) = read else {
            let _ = to.shutdown().await;
            // Its last words are for nobody.
            return tokio::io::copy(&mut from, &mut tokio::io::sink())
                .await
                .map(drop);
        };
        wait_out(&shared.delay_micros).await;
        thawed(shared).await;
        if read == 0 {
            return Ok(());
        }
        let chunk = &buffer[..read];
        lock(talk).server_says(chunk);
        to.write_all(chunk).await?;
    }
}

fn has(chunk: &[u8], what: &[u8]) -> bool {
    chunk.windows(what.len()).any(|window| window == what)
}

/// Waits until the proxy is not frozen.
async fn thawed(shared: &Shared) {
    let mut frozen = shared.frozen.subscribe();
    let _ = frozen.wait_for(|frozen| !frozen).await;
}

/// Waits until `chunk` is not held back.
async fn let_go(shared: &Shared, chunk: &[u8], talk: &Mutex<Talk>) {
    let mut held_back = shared.held_back.subscribe();
    let passes = |what: &Option<Vec<u8>>| !what.as_ref().is_some_and(|what| has(chunk, what));
    if passes(&held_back.borrow_and_update()) {
        return;
    }
    lock(talk).is_held = true;
    shared.held.fetch_add(1, Ordering::SeqCst);
    let _ = held_back.wait_for(passes).await;
    shared.held.fetch_sub(1, Ordering::SeqCst);
    lock(talk).is_held = false;
}

/// Locks `talk`, which no panic leaves half-changed.
fn lock(talk: &Mutex<Talk>) -> std::sync::MutexGuard<'_, Talk> {
    talk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The side that spoke last on a connection, and whether the log-in is over.
#[derive(Debug, Default)]
struct Talk {
    client_spoke_last: bool,
    /// The client's last message is held back.
    is_held: bool,
    log_in: LogIn,
}

/// The progress of the log-in, by the protocol that the first chunk reveals:
/// only MySQL's server speaks first.
#[derive(Debug, Default)]
enum LogIn {
    #[default]
    NotBegun,
    Postgres,
    MySql,
    Over,
}

impl Talk {
    /// Notes what the client sends; true if this begins a burst that counts.
    fn client_says(&mut self, chunk: &[u8]) -> bool {
        if matches!(self.log_in, LogIn::NotBegun) {
            self.log_in = LogIn::Postgres;
        }
        // PostgreSQL's Terminate and MySQL's COM_QUIT.
        let goodbye = matches!(chunk, [b'X', 0, 0, 0, 4] | [1, 0, 0, 0, 1]);
        if goodbye || !matches!(self.log_in, LogIn::Over) {
            return false;
        }
        !std::mem::replace(&mut self.client_spoke_last, true)
    }

    /// Notes what the server sends.
    fn server_says(&mut self, chunk: &[u8]) {
        self.client_spoke_last = false;
        match self.log_in {
            LogIn::NotBegun => self.log_in = LogIn::MySql,
            // ReadyForQuery.
            LogIn::Postgres if chunk.ends_with(b"Z\0\0\0\x05I") => self.log_in = LogIn::Over,
            // An OK packet that answers the client's log-in.
            LogIn::MySql if matches!(chunk, [_, _, _, number, 0, ..] if *number >= 2) => {
                self.log_in = LogIn::Over;
            }
            _ => {}
        }
    }
}
