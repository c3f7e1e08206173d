//! [`Load`]: clients that keep asking, each request of a random kind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::timeout};

use super::{ledger::Note, service, site::Site, work::Kind};

/// How long an answer may take until it hangs.
pub const HANGS: Duration = Duration::from_secs(120);

/// Random numbers that are the same in each run.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end.max(1)
    }

    /// A request, and the status that its handler answers with.
    pub fn request(&mut self) -> (Kind, u16) {
        let kind = match self.below(100) {
            0..25 => Kind::Read,
            25..42 => Kind::Write,
            42..58 => Kind::Transaction,
            58..65 => Kind::Nested,
            65..73 => Kind::Stream,
            73..80 => Kind::Early,
            80..86 => Kind::Held,
            86..89 => Kind::Swallow,
            89..92 => Kind::Stray,
            92..94 => Kind::Clash,
            94..96 => Kind::Late,
            96..98 => Kind::Timeout,
            _ => Kind::Panic,
        };
        let status = if kind.is_transaction() && self.below(4) == 0 {
            409
        } else {
            200
        };
        (kind, status)
    }
}

/// So many clients at work until they are told to stop.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    site: Arc<Site>,
    stopped: AtomicBool,
    /// Requests that may still be made.
    left: AtomicI64,
    done: AtomicU64,
    good: AtomicU64,
    hung: AtomicU64,
}

impl Load {
    /// `clients` that make `requests` in all, or as many as they can.
    pub fn start(site: &Arc<Site>, clients: u64, requests: Option<u64>) -> Self {
        let shared = Arc::new(Shared {
            site: site.clone(),
            stopped: AtomicBool::new(false),
            left: AtomicI64::new(requests.map_or(i64::MAX, |requests| requests as i64)),
            done: AtomicU64::new(0),
            good: AtomicU64::new(0),
            hung: AtomicU64::new(0),
        });
        let clients = (0..clients)
            .map(|seed| tokio::spawn(ask_on(shared.clone(), Dice::new(seed + 1))))
            .collect();
        Self { shared, clients }
    }

    /// How many requests were answered, or left.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.clients.iter().all(JoinHandle::is_finished)
    }

    /// Good answers per second, over a while from now on.
    pub async fn goodput(&self, time: Duration) -> f64 {
        self.goodput_during(tokio::time::sleep(time)).await
    }

    /// Good answers per second, until something else is done.
    pub async fn goodput_during(&self, else_done: impl Future<Output = ()>) -> f64 {
        let (started, before) = (Instant::now(), self.shared.good.load(Ordering::Relaxed));
        else_done.await;
        (self.shared.good.load(Ordering::Relaxed) - before) as f64 / started.elapsed().as_secs_f64()
    }

    /// Tells the clients to stop; how many of their requests hung.
    ///
    /// # Panics
    ///
    /// If a client has panicked.
    pub async fn stop(self) -> u64 {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("the client does not panic");
        }
        self.shared.hung.load(Ordering::Relaxed)
    }
}

async fn ask_on(shared: Arc<Shared>, mut dice: Dice) {
    while !shared.stopped.load(Ordering::Relaxed) && shared.left.fetch_sub(1, Ordering::Relaxed) > 0
    {
        let (kind, status) = dice.request();
        // One in twenty goes away.
        let patience = if dice.below(20) == 0 {
            Duration::from_micros(dice.below(20_000))
        } else {
            HANGS
        };
        let number = shared.site.court.ledger.open(kind.is_doomed(status));
        match timeout(patience, shared.site.send(kind, number, status)).await {
            Ok(response) => {
                let note = service::meaning(kind, &response);
                shared.site.court.ledger.note(number, note);
                let good = response.status().as_u16() < 400
                    || matches!(note, Note::RolledBack) && status == 409;
                shared.good.fetch_add(u64::from(good), Ordering::Relaxed);
            }
            Err(_) => {
                shared
                    .hung
                    .fetch_add(u64::from(patience == HANGS), Ordering::Relaxed);
            }
        }
        shared.done.fetch_add(1, Ordering::Relaxed);
    }
}
