//! [`Clients`]: they write one row after the other, each on an HTTP connection of its own, and keep every answer.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1::SendRequest, header::RETRY_AFTER};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use super::{
    site::Site,
    support::wait::{BOUND, eventually},
};

/// How many write at a time.
pub const CLIENTS: usize = 32;

/// Between an answer and the next request.
const PAUSE: Duration = Duration::from_millis(20);

/// What a client knows of one request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub number: i64,
    pub sent: Instant,
    pub came: Instant,
    /// `None` if the HTTP connection broke, or nothing came within [`BOUND`].
    pub status: Option<u16>,
    pub retry_after: bool,
    pub body: String,
}

impl Answer {
    pub fn is_acknowledged(&self) -> bool {
        self.status == Some(200)
    }

    pub fn took(&self) -> Duration {
        self.came - self.sent
    }
}

pub struct Clients {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    next: AtomicI64,
    stopped: AtomicBool,
    answers: Mutex<Vec<Answer>>,
}

impl Clients {
    pub fn start(site: &Site) -> Self {
        Self::start_at(site.address)
    }

    pub fn start_at(address: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            address,
            next: AtomicI64::new(1),
            stopped: AtomicBool::new(false),
            answers: Mutex::default(),
        });
        let tasks = (0..CLIENTS)
            .map(|_| tokio::spawn(write_on(shared.clone())))
            .collect();
        Self { shared, tasks }
    }

    /// How many requests that were sent since then are answered with a success.
    pub fn acknowledged_since(&self, since: Instant) -> usize {
        let answers = self.shared.lock();
        let acknowledged = answers
            .iter()
            .rev()
            .take_while(|answer| answer.came >= since);
        acknowledged
            .filter(|answer| answer.sent >= since && answer.is_acknowledged())
            .count()
    }

    pub fn answered(&self) -> usize {
        self.shared.lock().len()
    }

    /// How many were answered with a server error.
    pub fn failed(&self) -> usize {
        let answers = self.shared.lock();
        answers
            .iter()
            .filter(|answer| answer.status.is_some_and(|status| status >= 500))
            .count()
    }

    /// Waits until so many further requests were answered with a success.
    pub async fn acknowledge(&self, count: usize) {
        let since = Instant::now();
        eventually("the service acknowledges writes", async || {
            self.acknowledged_since(since) >= count
        })
        .await;
    }

    /// Ends when all their requests are answered.
    pub async fn stop(self) -> Vec<Answer> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a client does not panic");
        }
        std::mem::take(&mut *self.shared.lock())
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_on(shared: Arc<Shared>) {
    let mut connection = None;
    while !shared.stopped.load(Ordering::Relaxed) {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let mut answer = Answer {
            number,
            sent: Instant::now(),
            came: Instant::now(),
            status: None,
            retry_after: false,
            body: String::new(),
        };
        match timeout(BOUND, ask(shared.address, &mut connection, &mut answer)).await {
            Ok(Some(())) => {}
            Ok(None) | Err(_) => connection = None,
        }
        answer.came = Instant::now();
        shared.lock().push(answer);
        tokio::time::sleep(PAUSE).await;
    }
}

type Connection = SendRequest<Empty<Bytes>>;

async fn ask(
    address: SocketAddr,
    connection: &mut Option<Connection>,
    answer: &mut Answer,
) -> Option<()> {
    let sender = match connection {
        Some(open) => open,
        None => connection.insert(connect(address).await?),
    };
    sender.ready().await.ok()?;
    let request = Request::post(format!("/{}", answer.number)).header("host", "service");
    let request = request.body(Empty::new()).ok()?;
    let response = sender.send_request(request).await.ok()?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    answer.retry_after = head.headers.contains_key(RETRY_AFTER);
    answer.body = String::from_utf8_lossy(&body).into_owned();
    answer.status = Some(head.status.as_u16());
    Some(())
}

async fn connect(address: SocketAddr) -> Option<Connection> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .ok()?;
    tokio::spawn(connection);
    Some(sender)
}
