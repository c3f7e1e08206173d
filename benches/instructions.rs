//! How many instructions does a session cost a request?
//!
//! Counted by valgrind's callgrind in the whole process, so that SQLite's thread is part of it: the same
//! binary counts the same whatever else the machine does. Each row runs twice, and the difference of the two
//! is divided by the requests that one had more.
//!
//! ```text
//! cargo bench --bench instructions
//! ```
#![allow(
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark may panic, and has no docs"
)]

use std::{env, process::Command};

use rows::{request, rows};
use tokio::runtime::Builder;

mod rows;

/// Requests of the shorter and of the longer run.
const RUNS: [u32; 2] = [300, 1300];

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().position(|arg| arg == "--row") {
        Some(at) => serve(
            &args[at + 1],
            args[at + 2].parse().expect("a number of requests"),
        ),
        None => table(),
    }
}

/// Sends `count` requests to the service of this name.
fn serve(name: &str, count: u32) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let rows = rows(&runtime, &dir.path().join("items"));
    let (_, mut service) = rows
        .into_iter()
        .find(|(row, _)| *row == name)
        .expect("a row of this name");
    runtime.block_on(async {
        for _ in 0..count {
            request(&mut service).await;
        }
    });
}

fn table() {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let names: Vec<_> = rows(&runtime, &dir.path().join("items"))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    eprintln!("{:<36} {:>12}", "instructions per request", "count");
    for name in names {
        let [short, long] = RUNS.map(|count| instructions(name, count));
        eprintln!(
            "{name:<36} {:>12}",
            long.saturating_sub(short) / u64::from(RUNS[1] - RUNS[0])
        );
    }
}

/// What callgrind counts for `count` requests, the process's start included.
fn instructions(name: &str, count: u32) -> u64 {
    let program = env::current_exe().expect("this program");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--row", name, &count.to_string()])
        .output()
        .expect("valgrind starts; to install it: apt-get update && apt-get install -y valgrind");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    collected
        .and_then(|(_, count)| count.trim().parse().ok())
        .expect("a count from callgrind")
}
