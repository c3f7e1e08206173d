//! Clients disconnect in their thousands, at random moments, over real sockets.

use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{join_all, select},
};
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
    site::{Plan, Site, ours},
    support::{
        bouncer::Bouncer,
        database::{self, TestDb},
        site::port_of,
    },
    work::{Kind, slowness},
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
    /// HTTP/1, a statement that runs when its client leaves.
    SlowStatement,
}

impl Http {
    fn name(self) -> &'static str {
        match self {
            Self::One => "HTTP/1",
            Self::Two => "HTTP/2",
            Self::SlowUpload => "slow uploads",
            Self::SlowReader => "slow readers",
            Self::SlowStatement => "slow statements",
        }
    }

    /// How many clients are at it at the same time. Where a statement is to run when they leave, so few that
    /// they have a connection by then.
    fn clients(self) -> u64 {
        if self == Self::SlowStatement { 4 } else { 32 }
    }
}

/// How many requests a client of HTTP/2 makes on one connection, most of which it cancels.
const STREAMS: u64 = 8;

/// How many connections to the server a proxy shares among those of the pool.
const SHARED: u32 = 5;

/// How many clients ask for slow reads during the storm, and stay.
const BYSTANDERS: usize = 2;

/// The latest moment to disconnect.
const LATEST: u64 = 25_000; // microseconds

/// How far around the end of a slow statement.
const AROUND: u64 = 8_000; // microseconds

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
    let all = [
        Http::One,
        Http::Two,
        Http::SlowUpload,
        Http::SlowReader,
        Http::SlowStatement,
    ];
    for (turn, http) in all.into_iter().enumerate() {
        for (lazy, transaction) in [(false, false), (true, true), (false, true), (true, false)] {
            // The short form has one of the modes for each way to disconnect.
            if !is_long() && (lazy, transaction) != (turn % 2 == 1, turn > 1) {
                continue;
            }
            for cancel in [false, true] {
                let chosen = if http == Http::SlowStatement {
                    cancel
                } else {
                    is_long() || cancel == lazy
                };
                if chosen {
                    broken.extend(
                        storm(database, http, lazy, transaction, cancel)
                            .await
                            .finish(),
                    );
                }
            }
        }
    }
    report::conclude(&broken);
}

/// What is cancelled for a client that has gone must not hit whoever has the server's process by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_serves_on_through_a_storm_behind_a_proxy_that_shares_connections() {
    let http = Http::SlowStatement;
    let row = Row::new(
        Group::Storm,
        format!(
            "Postgres behind PgBouncer, {}, eager, transaction, cancelling",
            http.name()
        ),
    );
    let mut bouncer = None;
    let share = |url: String| {
        let bouncer = bouncer.insert(Bouncer::start(port_of(&url), SHARED));
        let url = url.replace(
            &format!(":{}/", port_of(&url)),
            &format!(":{}/", bouncer.port()),
        );
        // PgBouncer knows of prepared statements from 1.21 on; before, a pool must not keep any, and only what
        // is in a transaction is safe.
        format!("{url}?statement-cache-capacity=0")
    };
    let test = TestDb::new(database::Kind::Postgres).await;
    let site = Site::over(test, plan(false, true, true), share, ours).await;
    report::conclude(&storm_on(Arc::new(site), http, row).await.finish());
}

fn plan(lazy: bool, transaction: bool, cancel: bool) -> Plan {
    Plan {
        size: 6,
        lazy,
        transaction,
        cancel,
        release_timeout: Duration::from_secs(5),
        ..Plan::default()
    }
}

async fn storm(
    database: database::Kind,
    http: Http,
    lazy: bool,
    transaction: bool,
    cancel: bool,
) -> Row {
    let mut modes = vec![
        if lazy { "lazy" } else { "eager" },
        if transaction {
            "transaction"
        } else {
            "autocommit"
        },
    ];
    modes.extend(cancel.then_some("cancelling"));
    let row = Row::new(
        Group::Storm,
        format!("{database:?}, {}, {}", http.name(), modes.join(", ")),
    );
    storm_on(
        Arc::new(Site::new(database, plan(lazy, transaction, cancel)).await),
        http,
        row,
    )
    .await
}

async fn storm_on(site: Arc<Site>, http: Http, mut row: Row) -> Row {
    let server = Server::start(site.app.clone()).await;
    let load = Load::start(&site, 4, None);
    let window = Duration::from_millis(if is_long() { 3000 } else { 300 });
    let before = load.goodput(window).await;
    let opened = site.proxy.accepted();
    let storm = rage(&site, http, server.address, disconnects(http));
    let during = load
        .goodput_during(select(pin!(storm), pin!(stand_by(&site))).map(|_| ()))
        .await;
    let reconnects = site.proxy.accepted() - opened;
    row.faults = disconnects(http);
    match site.whole().await {
        Some(after) => row.recovered(after),
        None => row.leaked += 1,
    }
    let after = load.goodput(window).await;
    row.notes.push(format!("{reconnects} reconnects"));
    row.notes.push(format!(
        "good answers per second {before:.0} before, {during:.0} during, {after:.0} after"
    ));
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
        (Http::SlowStatement, false) => 300,
        (_, false) => 100,
    }
}

/// Makes so many requests and leaves them.
async fn rage(site: &Arc<Site>, http: Http, address: SocketAddr, disconnects: u64) {
    let left = Arc::new(AtomicU64::new(disconnects));
    let clients: Vec<JoinHandle<()>> = (0..http.clients())
        .map(|seed| {
            let (site, left, mut dice) = (site.clone(), left.clone(), Dice::new(1000 + seed));
            tokio::spawn(async move {
                let take = || {
                    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                        left.checked_sub(1)
                    })
                    .is_ok()
                };
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

/// Has statements running all the time that nobody leaves: a cancel that goes astray finds them.
async fn stand_by(site: &Site) {
    loop {
        join_all((0..BYSTANDERS).map(|_| site.works(Kind::Slow))).await;
    }
}

/// What a client of the storm asks for, and when it leaves.
fn request(site: &Site, http: Http, dice: &mut Dice) -> (String, Duration) {
    let (path, doomed) = match (http, dice.below(4)) {
        (Http::SlowUpload, _) => ("upload", false),
        (Http::SlowReader, _) => ("download", false),
        (Http::SlowStatement, _) | (_, 0) => (Kind::Slow.path(), false),
        (_, 1) => (Kind::Transaction.path(), false),
        _ => {
            let kind = dice.request().0;
            (kind.path(), kind.is_doomed(200))
        }
    };
    let number = site.court.ledger.open(doomed);
    let leave = if http == Http::SlowStatement && dice.below(2) == 0 {
        // At about the end of its statement, so that the cancel is about to come too late.
        (slowness(number) + Duration::from_micros(dice.below(AROUND)))
            .saturating_sub(Duration::from_micros(AROUND / 2))
    } else {
        Duration::from_micros(dice.below(LATEST))
    };
    (format!("/{path}/{number}/200"), leave)
}

/// Sends a request over HTTP/1, and leaves at a random moment without having heard the answer.
async fn leave_connection(site: &Site, http: Http, address: SocketAddr, dice: &mut Dice) {
    let (uri, leave) = request(site, http, dice);
    let Ok(mut socket) = TcpStream::connect(address).await else {
        return;
    };
    let talk = async {
        let length = if http == Http::SlowUpload { 1000 } else { 0 };
        let head =
            format!("POST {uri} HTTP/1.1\r\nhost: storm\r\ncontent-length: {length}\r\n\r\n");
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
    let Ok(socket) = TcpStream::connect(address).await else {
        return;
    };
    let handshake =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(socket)).await;
    let Ok((mut sender, connection)) = handshake else {
        return;
    };
    let connection = tokio::spawn(connection);
    let requests = (0..streams).map(|_| {
        let (uri, leave) = request(site, Http::Two, dice);
        let request = http::Request::post(format!("http://storm{uri}"));
        let answer = sender.send_request(request.body(Empty::new()).expect("a request"));
        timeout(leave, answer)
    });
    join_all(requests.collect::<Vec<_>>()).await;
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
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free loopback port");
        let address = listener.local_addr().expect("a bound listener");
        let open = Arc::new(AtomicU64::new(0));
        let counted = open.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (service, open) = (TowerToHyperService::new(app.clone()), counted.clone());
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            address,
            accepting: accepting.abort_handle(),
            open,
        }
    }

    /// Waits until its clients have gone.
    async fn end(self) {
        let gone = timeout(HANGS, async {
            while self.open.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(
            gone.await.is_ok(),
            "the server ends what its clients have left"
        );
        self.accepting.abort();
    }
}
