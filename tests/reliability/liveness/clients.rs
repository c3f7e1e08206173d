//! [`Clients`] that ask at a steady pace, and the [`Course`] of what they were answered.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use futures_util::future::join_all;
use http::Request;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tower::ServiceExt;

use super::super::support::wait::BOUND;

/// How long a client waits for its answer.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Clients {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    began: Instant,
    /// Until then requests count as sent under the condition.
    closed: Instant,
    over: Instant,
}

struct Shared {
    app: Router,
    pace: Duration,
    mode: watch::Sender<Mode>,
    answers: Mutex<Vec<Answer>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Ask,
    Pause,
    Stop,
}

#[derive(Clone, Copy)]
struct Answer {
    sent: Instant,
    came: Instant,
    good: bool,
    /// The client did not wait for it any longer.
    left: bool,
}

/// What became of the requests.
#[derive(Debug)]
pub struct Course {
    /// Of those that were sent or waiting under the condition.
    pub answers: usize,
    pub good: usize,
    /// Of those that came since it began.
    pub longest: Duration,
    pub left: usize,
    /// From its end until the last answer that was not good.
    pub good_again: Option<Duration>,
}

impl Course {
    pub fn share(&self) -> f64 {
        self.good as f64 / self.answers.max(1) as f64
    }
}

impl Clients {
    pub fn new(app: Router, pace: Duration) -> Self {
        let shared = Shared {
            app,
            pace,
            mode: watch::Sender::new(Mode::Ask),
            answers: Mutex::default(),
        };
        let now = Instant::now();
        Self {
            shared: Arc::new(shared),
            tasks: Vec::new(),
            began: now,
            closed: now,
            over: now,
        }
    }

    /// Has so many clients ask.
    pub fn ask(&mut self, clients: usize) {
        self.shared.mode.send_replace(Mode::Ask);
        while self.tasks.len() < clients {
            self.tasks.push(tokio::spawn(ask_on(self.shared.clone())));
        }
    }

    /// Has them send no further request.
    pub fn pause(&self) {
        self.shared.mode.send_replace(Mode::Pause);
    }

    pub fn fault_begins(&mut self) {
        self.began = Instant::now();
    }

    /// The requests that are sent from now on are not those under the condition. If it has no end, then
    /// it was over as soon as it had begun.
    pub fn fault_is_over(&mut self, has_end: bool) {
        self.closed = Instant::now();
        self.over = if has_end { self.closed } else { self.began };
    }

    /// Waits until all answers have been good for a while, and for the last ones.
    ///
    /// # Panics
    ///
    /// If a client has panicked.
    pub async fn settle(mut self, quiet: Duration) -> Course {
        let settled = timeout(BOUND, async {
            while self.last_bad().max(self.closed).elapsed() < quiet {
                tokio::time::sleep(quiet / 10).await;
            }
        });
        let settled = settled.await.is_ok();
        self.shared.mode.send_replace(Mode::Stop);
        for ended in join_all(std::mem::take(&mut self.tasks)).await {
            ended.expect("the client does not panic");
        }
        let answers = self.shared.answers();
        let since = answers.iter().filter(|answer| answer.came >= self.began);
        let under: Vec<&Answer> = since
            .clone()
            .filter(|answer| answer.sent < self.closed)
            .collect();
        Course {
            answers: under.len(),
            good: under.iter().filter(|answer| answer.good).count(),
            longest: since
                .clone()
                .map(|answer| answer.came - answer.sent)
                .max()
                .unwrap_or_default(),
            left: since.filter(|answer| answer.left).count(),
            good_again: settled.then(|| {
                last_bad(&answers).map_or(Duration::ZERO, |bad| {
                    bad.saturating_duration_since(self.over)
                })
            }),
        }
    }

    fn last_bad(&self) -> Instant {
        last_bad(&self.shared.answers()).unwrap_or(self.began)
    }
}

impl Shared {
    fn answers(&self) -> std::sync::MutexGuard<'_, Vec<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask_on(shared: Arc<Shared>) {
    let mut mode = shared.mode.subscribe();
    while mode
        .wait_for(|mode| *mode != Mode::Pause)
        .await
        .is_ok_and(|mode| *mode == Mode::Ask)
    {
        let sent = Instant::now();
        let answer = timeout(
            PATIENCE,
            shared.app.clone().oneshot(Request::new(Body::empty())),
        )
        .await;
        let good = matches!(&answer, Ok(Ok(answer)) if answer.status().is_success());
        shared.answers().push(Answer {
            sent,
            came: Instant::now(),
            good,
            left: answer.is_err(),
        });
        tokio::time::sleep(shared.pace.saturating_sub(sent.elapsed())).await;
    }
}

/// When the last answer came that was not good.
fn last_bad(answers: &[Answer]) -> Option<Instant> {
    answers
        .iter()
        .filter(|answer| !answer.good)
        .map(|answer| answer.came)
        .max()
}
