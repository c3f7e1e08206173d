//! What does a session cost a request?
//!
//! The baseline is a bare service. Each row puts a layer around the same service; the rows that say
//! "one SELECT" run one statement, with the session and with SeaORM's pool used directly. Time comes
//! from criterion, allocations are counted on the request's thread and printed first.
//!
//! ```text
//! cargo bench --bench overhead
//! ```
#![allow(
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark may panic, and criterion's macros have no docs"
)]

use criterion::{Criterion, criterion_group, criterion_main};
use rows::{request, rows};
use tokio::runtime::Builder;

mod rows;

/// Requests before counting, so that pools and caches are filled.
const WARM_UP: u32 = 200;
const COUNTED: u32 = 1000;

fn overhead(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let mut rows = rows(&runtime, &dir.path().join("items"));

    eprintln!(
        "{:<36} {:>12} {:>10}",
        "allocations per request", "count", "bytes"
    );
    for (name, service) in &mut rows {
        let mut run = |requests| {
            runtime.block_on(async {
                for _ in 0..requests {
                    request(service).await;
                }
            });
        };
        run(WARM_UP);
        let counted = allocation_counter::measure(|| run(COUNTED));
        let (count, bytes) = (
            counted.count_total / u64::from(COUNTED),
            counted.bytes_total / u64::from(COUNTED),
        );
        eprintln!("{name:<36} {count:>12} {bytes:>10}");
    }

    let mut group = criterion.benchmark_group("request");
    for (name, service) in rows {
        group.bench_function(name, |bencher| {
            bencher.to_async(&runtime).iter(|| {
                let mut service = service.clone();
                async move { request(&mut service).await }
            });
        });
    }
}

criterion_group!(benches, overhead);
criterion_main!(benches);
