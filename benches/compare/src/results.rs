//! [`Results`]: all figures of a run, as they are kept in a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::load::Figures;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Results {
    /// What was run, and on what.
    pub about: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
    pub trips: Vec<Trips>,
    pub memory: Vec<Memory>,
}

/// The table that a sample belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Service and server on one machine.
    Direct,
    /// 1 ms more for each round trip.
    Delayed,
    /// One processor for the service.
    OneCore,
    /// Many more clients than connections.
    Overload,
    /// Several endpoints at once: the fast ones.
    Fast,
    /// The same beside a slow one.
    Mixed,
    /// A server at some distance; 5000 clients.
    Distance,
}

/// One subject, one endpoint, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    pub part: Part,
    pub round: usize,
    pub subject: String,
    pub endpoint: String,
    pub clients: usize,
    pub figures: Figures,
    /// Processor time in the measured time, in microseconds.
    pub service_us: f64,
    pub server_us: f64,
    pub client_us: f64,
    pub peak_kib: u64,
}

impl Sample {
    pub fn per_second(&self) -> f64 {
        self.figures.requests as f64 / self.figures.seconds
    }

    /// Of a total, what falls to each request.
    pub fn each(&self, total: f64) -> f64 {
        total / self.figures.requests as f64
    }
}

/// Round trips of a number of requests, with nothing in flight before and after.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trips {
    pub subject: String,
    pub endpoint: String,
    pub requests: u64,
    pub failed: u64,
    pub trips: u64,
}

impl Trips {
    pub fn each(&self) -> f64 {
        self.trips as f64 / self.requests as f64
    }
}

/// The service's memory while requests wait for a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Memory {
    pub subject: String,
    pub clients: u64,
    /// Before any client.
    pub idle_kib: u64,
    /// All connected, each answered once without the database.
    pub connected_kib: u64,
    /// The most while all wait.
    pub waiting_kib: u64,
}
