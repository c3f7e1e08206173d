//! [`FaultProxy`]: a TCP proxy before a database that knows the messages of its protocol, and breaks the
//! connection at a chosen one.
//!
//! It depends on tokio only, so that other harnesses can include it.

mod frames;
mod line;
mod script;

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

pub use self::{
    frames::{Direction, Wire},
    script::{Fault, Place, Point},
};
use self::{line::Line, script::Script};

/// A proxy on a free loopback port. Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    wire: Wire,
    script: Mutex<Script>,
    accepted: AtomicU64,
    /// How often all connections were ended.
    ended: watch::Sender<(u64, bool)>,
    /// How often silent connections were given up.
    given_up: watch::Sender<u64>,
    /// Nothing passes on any connection.
    held: watch::Sender<bool>,
}

impl FaultProxy {
    /// Starts a proxy before `127.0.0.1:target`.
    pub async fn start(target: u16, wire: Wire) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free loopback port");
        let port = listener.local_addr().expect("a bound listener").port();
        let shared = Arc::new(Shared {
            target,
            wire,
            script: Mutex::default(),
            accepted: AtomicU64::new(0),
            ended: watch::Sender::new((0, false)),
            given_up: watch::Sender::new(0),
            held: watch::Sender::new(false),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Self {
            port,
            shared,
            accepting,
        }
    }

    /// `url` with the proxy's port in place of the server's.
    pub fn url(&self, url: &str) -> String {
        url.replacen(
            &format!(":{}/", self.shared.target),
            &format!(":{}/", self.port),
            1,
        )
    }

    /// Counts messages from here on, and breaks the connection at the point if there is one.
    pub fn arm(&self, armed: Option<(Point, Fault)>) {
        self.shared.script().arm(armed);
    }

    /// How many messages have passed since [`FaultProxy::arm`], up and down, and whether the fault has happened.
    pub fn seen(&self) -> ([u64; 2], bool) {
        self.shared.script().seen()
    }

    /// Ends the connections that have fallen silent.
    pub fn give_up_silent(&self) {
        self.shared.given_up.send_modify(|times| *times += 1);
    }

    /// Closes, or resets, all connections of this moment.
    pub fn end_all(&self, reset: bool) {
        self.shared.ended.send_modify(|(times, with_reset)| {
            *times += 1;
            *with_reset = reset;
        });
    }

    /// Whether nothing passes.
    pub fn hold(&self, held: bool) {
        self.shared.held.send_replace(held);
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.end_all(false);
        self.give_up_silent();
    }
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = shared.clone();
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.target)).await {
                Line::new(&shared).run(client, server).await;
            }
        });
    }
}
