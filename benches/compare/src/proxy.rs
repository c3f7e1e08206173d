//! [`Proxy`]: stands in front of PostgreSQL, counts round trips, and can make each one longer.

use std::{
    cell::RefCell,
    io,
    net::{Ipv4Addr, TcpListener as StdListener},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, unix::AsyncFd},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    runtime::Builder,
    task::LocalSet,
};

use crate::Failure;

/// A proxy on a loopback port, on one thread: it shares the processor with what is measured. It lives as
/// long as the process.
#[derive(Debug, Clone)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    delay_micros: AtomicU64,
    trips: AtomicU64,
    held_chunks: AtomicU64,
    held_nanos: AtomicU64,
}

impl Proxy {
    /// Starts a proxy in front of `127.0.0.1:target`.
    pub fn start(target: u16) -> Result<Self, Failure> {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::<Shared>::default();
        let proxy = Self {
            port,
            shared: Arc::clone(&shared),
        };
        let runtime = Builder::new_current_thread().enable_io().build()?;
        thread::spawn(move || {
            LocalSet::new().block_on(&runtime, accept(listener, target, &shared))
        });
        Ok(proxy)
    }

    /// `url`, a URL with a port, with the proxy's port instead.
    pub fn url(&self, url: &str) -> Result<String, Failure> {
        let (before, after) = url.rsplit_once(':').ok_or("a URL without a port")?;
        let rest = after.find('/').map_or("", |at| &after[at..]);
        Ok(format!("{before}:{}{rest}", self.port))
    }

    /// From now on each answer of the server is held for that long.
    pub fn delay(&self, delay: Duration) {
        self.shared
            .delay_micros
            .store(delay.as_micros() as u64, Ordering::SeqCst);
    }

    /// How many round trips there were: bursts from a client that the server had answered before.
    /// Log-ins and goodbyes do not count.
    pub fn trips(&self) -> u64 {
        self.shared.trips.load(Ordering::SeqCst)
    }

    /// For how long answers were held, on average, in microseconds.
    pub fn held_us(&self) -> Option<f64> {
        let chunks = self.shared.held_chunks.load(Ordering::SeqCst);
        let nanos = self.shared.held_nanos.load(Ordering::SeqCst);
        (chunks > 0).then(|| nanos as f64 / chunks as f64 / 1000.0)
    }
}

async fn accept(listener: StdListener, target: u16, shared: &Arc<Shared>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        let shared = Arc::clone(shared);
        tokio::task::spawn_local(async move { serve(client, target, &shared).await });
    }
}

/// Serves one client until either side ends.
async fn serve(mut client: TcpStream, target: u16, shared: &Shared) -> io::Result<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let talk = RefCell::new(Talk::default());
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        ended = upstream(from_client, to_server, shared, &talk) => ended,
        ended = downstream(from_server, to_client, shared, &talk) => ended,
    }
}

async fn upstream(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
    talk: &RefCell<Talk>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if talk.borrow_mut().client_says(&buffer[..read]) {
            shared.trips.fetch_add(1, Ordering::SeqCst);
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn downstream(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
    talk: &RefCell<Talk>,
) -> io::Result<()> {
    let timer = Timer::new()?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let delay = Duration::from_micros(shared.delay_micros.load(Ordering::SeqCst));
        if !delay.is_zero() {
            let arrived = Instant::now();
            timer.sleep(delay).await?;
            shared
                .held_nanos
                .fetch_add(arrived.elapsed().as_nanos() as u64, Ordering::SeqCst);
            shared.held_chunks.fetch_add(1, Ordering::SeqCst);
        }
        talk.borrow_mut().server_says(&buffer[..read]);
        to.write_all(&buffer[..read]).await?;
    }
}

/// A timer of the kernel: one of the runtime has a grain of 1 ms.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    #[allow(
        deprecated,
        reason = "its successor is unsafe code, for the sake of other things than an `OwnedFd`"
    )]
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(AsyncFd::new(timerfd_create(
            TimerfdClockId::Monotonic,
            flags,
        )?)?))
    }

    async fn sleep(&self, time: Duration) -> io::Result<()> {
        let never = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let time = Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: time.subsec_nanos().into(),
        };
        let once = Itimerspec {
            it_interval: never,
            it_value: time,
        };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.0.readable().await?;
            // Eight bytes: how often it has run out.
            if ready
                .try_io(|timer| Ok(rustix::io::read(timer, &mut [0; 8])?))
                .is_ok_and(|read| read.is_ok())
            {
                ready.clear_ready();
                return Ok(());
            }
        }
    }
}

/// Who spoke last on one connection, and whether the log-in is over.
#[derive(Debug, Default)]
struct Talk {
    logged_in: bool,
    client_spoke_last: bool,
}

impl Talk {
    /// Notes what the client sends; true if this begins a round trip.
    fn client_says(&mut self, chunk: &[u8]) -> bool {
        let goodbye = chunk == [b'X', 0, 0, 0, 4];
        if goodbye || !self.logged_in {
            return false;
        }
        !std::mem::replace(&mut self.client_spoke_last, true)
    }

    /// Notes what the server sends.
    fn server_says(&mut self, chunk: &[u8]) {
        self.client_spoke_last = false;
        // ReadyForQuery.
        self.logged_in |= chunk.ends_with(b"Z\0\0\0\x05I");
    }
}

#[cfg(test)]
mod tests {
    use super::Talk;

    #[test]
    fn a_burst_is_one_round_trip_and_a_log_in_is_none() {
        let mut talk = Talk::default();
        assert!(!talk.client_says(b"start-up"));
        talk.server_says(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
        assert!(talk.client_says(b"Parse"));
        assert!(!talk.client_says(b"Sync"));
        talk.server_says(b"T");
        assert!(talk.client_says(b"Bind"));
        talk.server_says(b"Z\0\0\0\x05T");
        assert!(!talk.client_says(b"X\0\0\0\x04"));
    }
}
