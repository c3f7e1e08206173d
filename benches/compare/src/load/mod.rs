//! `compare load`: clients in a closed loop, HTTP/1.1 with keep-alive, on one thread.
//!
//! It talks to its parent in lines: `begin` when the time that counts begins, `end` and the figures
//! as JSON when it is over. With `--requests` it counts requests instead of time: `ready` when the warm-up
//! is over and nothing is in flight, then it waits for a line of input; `sent` when the last of the
//! requests has left. With `--rate`, so many of them begin each second, whether or not others have been answered, as long
//! as there are clients left.

mod client;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io::{Write, stdin, stdout},
    rc::Rc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Builder,
    task::{JoinHandle, LocalSet},
    time::{sleep, sleep_until, timeout},
};

use self::client::Client;
use crate::{Failure, cli::Options};

/// What all clients of a run share.
struct Shared {
    /// How many requests may still begin.
    left: Cell<u64>,
    counts: Cell<bool>,
    unsent: Cell<u64>,
    tally: RefCell<Tally>,
}

struct Tally {
    times: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

/// A run's figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    pub requests: u64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// By status, or by what went wrong with the connection.
    pub errors: BTreeMap<String, u64>,
}

struct Load {
    port: u16,
    target: Rc<Target>,
    warm_up_target: Rc<Target>,
    clients: usize,
    warm_up: Duration,
    seconds: f64,
    requests: Option<u64>,
    /// The time between two requests of one client.
    pause: Duration,
}

/// Method and path; a random id follows.
struct Target {
    method: String,
    path: String,
}

/// Runs to the end of the load.
pub fn run(options: &Options) -> Result<(), Failure> {
    options.only(&[
        "port",
        "method",
        "path",
        "warm-path",
        "clients",
        "warm-up",
        "seconds",
        "requests",
        "rate",
    ])?;
    let target = |method: &str, path: &str| {
        Rc::new(Target {
            method: method.to_owned(),
            path: path.to_owned(),
        })
    };
    let main = target(
        options.text("method").unwrap_or("GET"),
        options.needed("path")?,
    );
    let load = Load {
        port: options.number("port")?.ok_or("--port is missing")?,
        warm_up_target: options
            .text("warm-path")
            .map_or_else(|| Rc::clone(&main), |path| target("GET", path)),
        target: main,
        clients: options.number("clients")?.unwrap_or(32),
        warm_up: Duration::from_secs_f64(options.number("warm-up")?.unwrap_or(0.5)),
        seconds: options.number("seconds")?.unwrap_or(1.5),
        requests: options.number("requests")?,
        pause: Duration::ZERO,
    };
    let rate = options.number::<f64>("rate")?;
    let pause = rate.map(|rate| Duration::from_secs_f64(load.clients as f64 / rate));
    let load = Load {
        pause: pause.unwrap_or_default(),
        ..load
    };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, load.run())
}

impl Load {
    async fn run(self) -> Result<(), Failure> {
        let mut clients = Vec::new();
        for number in 0..self.clients {
            clients.push(Client::connect(self.port, number as u64).await?);
        }
        let shared = Shared::endless()?;
        let driven = drive(clients, &self.warm_up_target, &shared, Duration::ZERO);
        sleep(self.warm_up).await;
        match self.requests {
            None => self.timed(driven, &shared).await,
            Some(requests) => {
                shared.left.set(0);
                self.counted(requests, joined(driven).await?).await
            }
        }
    }

    /// Counts what is answered while the time runs. The load never pauses.
    async fn timed(self, driven: Vec<JoinHandle<Client>>, shared: &Shared) -> Result<(), Failure> {
        say("begin")?;
        shared.counts.set(true);
        let began = Instant::now();
        sleep(Duration::from_secs_f64(self.seconds)).await;
        shared.counts.set(false);
        let figures = shared.figures(began.elapsed());
        say(&format!("end {}", serde_json::to_string(&figures)?))?;
        shared.left.set(0);
        // The next run finds the service at rest.
        let _ = timeout(Duration::from_secs(20), joined(driven)).await;
        Ok(())
    }

    /// Makes exactly so many requests. Nothing is in flight before and after.
    async fn counted(self, requests: u64, clients: Vec<Client>) -> Result<(), Failure> {
        say("ready")?;
        stdin().read_line(&mut String::new())?;
        let shared = Shared::endless()?;
        shared.counts.set(true);
        shared.left.set(requests);
        shared.unsent.set(requests);
        let began = Instant::now();
        joined(drive(clients, &self.target, &shared, self.pause)).await?;
        let figures = shared.figures(began.elapsed());
        say(&format!("end {}", serde_json::to_string(&figures)?))
    }
}

impl Shared {
    fn endless() -> Result<Rc<Self>, Failure> {
        Ok(Rc::new(Self {
            left: Cell::new(u64::MAX),
            counts: Cell::new(false),
            unsent: Cell::new(u64::MAX),
            tally: RefCell::new(Tally {
                times: Histogram::new_with_bounds(1000, 120_000_000_000, 3)?,
                errors: BTreeMap::new(),
            }),
        }))
    }

    /// Whether another request may begin.
    fn next(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    fn sent(&self) {
        self.unsent.set(self.unsent.get() - 1);
        if self.unsent.get() == 0 {
            let _ = say("sent");
        }
    }

    fn answered(&self, status: Result<u16, std::io::Error>, took: Duration) {
        if !self.counts.get() {
            return;
        }
        let mut tally = self.tally.borrow_mut();
        match status {
            Ok(200) => tally.times.saturating_record(took.as_nanos() as u64),
            Ok(status) => *tally.errors.entry(status.to_string()).or_default() += 1,
            Err(error) => *tally.errors.entry(error.kind().to_string()).or_default() += 1,
        }
    }

    fn figures(&self, took: Duration) -> Figures {
        let tally = self.tally.borrow();
        let micros = |quantile| tally.times.value_at_quantile(quantile) as f64 / 1000.0;
        Figures {
            requests: tally.times.len(),
            seconds: took.as_secs_f64(),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            errors: tally.errors.clone(),
        }
    }
}

fn drive(
    clients: Vec<Client>,
    target: &Rc<Target>,
    shared: &Rc<Shared>,
    pause: Duration,
) -> Vec<JoinHandle<Client>> {
    let (start, share) = (
        tokio::time::Instant::now(),
        pause / clients.len().max(1) as u32,
    );
    let drive = |(number, mut client): (usize, Client)| {
        let (target, shared) = (Rc::clone(target), Rc::clone(shared));
        let mut turn = start + share * number as u32;
        tokio::task::spawn_local(async move {
            loop {
                if !pause.is_zero() {
                    sleep_until(turn).await;
                    turn += pause;
                }
                if !shared.next() {
                    break;
                }
                let began = Instant::now();
                let status = client
                    .request(&target.method, &target.path, || shared.sent())
                    .await;
                shared.answered(status, began.elapsed());
            }
            client
        })
    };
    clients.into_iter().enumerate().map(drive).collect()
}

async fn joined(driven: Vec<JoinHandle<Client>>) -> Result<Vec<Client>, Failure> {
    let mut clients = Vec::new();
    for client in driven {
        clients.push(client.await?);
    }
    Ok(clients)
}

fn say(line: &str) -> Result<(), Failure> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
