//! Clients disconnect in their thousands, at random moments, over real sockets.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

use super::{
    is_long,
    load::{Dice, HANGS, Load},
    report::{self, Group, Row},
    site::{Plan, Site},
    support::database,
    work::Kind,
};

/// How clients speak to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Http {
    One,
    Two,
    /// HTTP/1, a body that arrives byte by byte.
    SlowUpload,
    /// HTTP/1, an answer that nobody reads.
    SlowReader,
}

impl Http {
    fn name(self) -> &'static str {
        match self {
            Self::One => "HTTP/1",
            Self::Two => "HTTP/2",
            Self::SlowUpload => "slow uploads",
            Self::SlowReader => "slow readers",
        }
    }
}

/// How many clients are at it at the same time.
const CLIENTS: u64 = 32;

/// How many requests a client of HTTP/2 makes on one connection, most of which it cancels.
const STREAMS: u64 = 8;

/// The latest moment to disconnect.
const LATEST: u64 = 25_000; // microseconds

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_serves_on_through_a_storm_of_disconnecting_clients() {
    every_storm(database::Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_serves_on_through_a_storm_of_disconnecting_clients() {
    every_storm(database::Kind::MySql).await;
}

async fn every_storm(database: database::Kind) {
    let mut broken = Vec::new();
    for (turn, http) in [Http::One, Http::Two, Http::SlowUpload, Http::SlowReader].into_iter().enumerate() {
        for (lazy, transaction) in [(false, false), (true, true), (false, true), (true, false)] {
            // The short form has one of the modes for each way to disconnect.
            if !is_long() && (lazy, transaction) != (turn % 2 == 1, turn > 1) {
                continue;
            }
            for cancel in [false, true] {
                if is_long() || cancel == lazy {
                    broken.extend(storm(database, http, lazy, transaction, cancel).await.finish());
                }
            }
        }
    }
    report::conclude(&broken);
}

async fn storm(database: database::Kind, http: Http, lazy: bool, transaction: bool, cancel: bool) -> Row {
    let mut modes = vec![if lazy { "lazy" } else { "eager" }, if transaction { "transaction" } else { "autocommit" }];
    modes.extend(cancel.then_some("cancelling"));
    let mut row = Row::new(Group::Storm, format!("{database:?}, {}, {}", http.name(), modes.join(", ")));
    let plan = Plan { size: 6, lazy, transaction, cancel, release_timeout: Duration::from_secs(5), ..Plan::default() };
    let site = Arc::new(Site::new(database, plan).await);
    let server = Server::start(site.app.clone()).await;
    let load = Load::start(&site, 4, None);
    let window = Duration::from_millis(if is_long() { 3000 } else { 300 });
    let before = load.goodput(window).await;
    let opened = site.proxy.accepted();
    let storm = rage(&site, http, server.address, disconnects(http));
    let during = load.goodput_during(storm).await;
    let reconnects = site.proxy.accepted() - opened;
    row.faults = disconnects(http);
    match site.whole().await {
        Some(after) => row.recovered(after),
        None => row.leaked += 1,
    }
    let after = load.goodput(window).await;
    row.notes.push(format!("{reconnects} reconnects"));
    row.notes.push(format!("good answers per second {before:.0} before, {during:.0} during, {after:.0} after"));
    row.hung += load.stop().await;
    server.end().await;
    site.judge(&mut row).await;
    row
}

fn disconnects(http: Http) -> u64 {
    match (http, is_long()) {
        (Http::One | Http::Two, true) => 10_000,
        (_, true) => 2_000,
        (Http::One | Http::Two, false) => 500,
        (_, false) => 100,
    }
}

/// Makes so many requests and leaves them.
async fn rage(site: &Arc<Site>, http: Http, address: SocketAddr, disconnects: u64) {
    let left = Arc::new(AtomicU64::new(disconnects));
    let clients: Vec<JoinHandle<()>> = (0..CLIENTS)
        .map(|seed| {
            let (site, left, mut dice) = (site.clone(), left.clone(), Dice::new(1000 + seed));
            tokio::spawn(async move {
                let take = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
                while take() {
                    match http {
                        Http::Two => {
                            let more = (1..STREAMS).take_while(|_| take()).count() as u64;
                            leave_streams(&site, address, &mut dice, 1 + more).await;
                        }
                        _ => leave_connection(&site, http, address, &mut dice).await,
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("the client does not panic");
    }
}

/// What a client of the storm asks for.
fn uri(site: &Site, http: Http, dice: &mut Dice) -> String {
    let (path, doomed) = match (http, dice.below(4)) {
        (Http::SlowUpload, _) => ("upload", false),
        (Http::SlowReader, _) => ("download", false),
        (_, 0) => (Kind::Slow.path(), false),
        (_, 1) => (Kind::Transaction.path(), false),
        _ => {
            let kind = dice.request().0;
            (kind.path(), kind.is_doomed(200))
        }
    };
    format!("/{path}/{}/200", site.court.ledger.open(doomed))
}

/// Sends a request over HTTP/1, and leaves at a random moment without having heard the answer.
async fn leave_connection(site: &Site, http: Http, address: SocketAddr, dice: &mut Dice) {
    let uri = uri(site, http, dice);
    let Ok(mut socket) = TcpStream::connect(address).await else { return };
    let leave = Duration::from_micros(dice.below(LATEST));
    let talk = async {
        let length = if http == Http::SlowUpload { 1000 } else { 0 };
        let head = format!("POST {uri} HTTP/1.1\r\nhost: storm\r\ncontent-length: {length}\r\n\r\n");
        socket.write_all(head.as_bytes()).await?;
        if http == Http::SlowUpload {
            for _ in 0..length {
                socket.write_all(b"-").await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        if http != Http::SlowReader {
            // Until the time is over: an answer changes nothing.
            while socket.read(&mut [0; 1024]).await? > 0 {}
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let _ = timeout(leave, talk).await;
    if dice.below(2) == 0 {
        #[allow(deprecated)]
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

/// Sends requests over one connection of HTTP/2, and cancels each at a random moment.
async fn leave_streams(site: &Site, address: SocketAddr, dice: &mut Dice, streams: u64) {
    let Ok(socket) = TcpStream::connect(address).await else { return };
    let handshake = http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(socket)).await;
    let Ok((mut sender, connection)) = handshake else { return };
    let connection = tokio::spawn(connection);
    let requests = (0..streams).map(|_| {
        let request = http::Request::post(format!("http://storm{}", uri(site, Http::Two, dice)));
        let answer = sender.send_request(request.body(Empty::new()).expect("a request"));
        timeout(Duration::from_micros(dice.below(LATEST)), answer)
    });
    futures_util::future::join_all(requests.collect::<Vec<_>>()).await;
    connection.abort();
}

/// The service, listening.
struct Server {
    address: SocketAddr,
    accepting: AbortHandle,
    open: Arc<AtomicU64>,
}

impl Server {
    async fn start(app: Router) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free loopback port");
        let address = listener.local_addr().expect("a bound listener");
        let open = Arc::new(AtomicU64::new(0));
        let counted = open.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (service, open) = (TowerToHyperService::new(app.clone()), counted.clone());
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, accepting: accepting.abort_handle(), open }
    }

    /// Waits until its clients have gone.
    async fn end(self) {
        let gone = timeout(HANGS, async {
            while self.open.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(gone.await.is_ok(), "the server ends what its clients have left");
        self.accepting.abort();
    }
}
