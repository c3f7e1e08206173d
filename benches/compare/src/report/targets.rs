//! What was aimed at, and whether it was hit.

use std::fmt::Write;

use super::stats::{At, service_each};
use crate::{
    plan::Endpoint,
    results::{Part, Results, Sample},
    subjects::Subject,
};

/// The variants whose statements commit by themselves.
const AUTOCOMMIT: [Subject; 2] = [Subject::OursAutocommit, Subject::OursLazy];

/// One line of the table.
#[derive(Clone)]
struct Line {
    what: String,
    target: String,
    measured: String,
    hit: bool,
}

/// The table of all targets that were measured.
pub fn table(results: &Results) -> String {
    let lines = [
        trips(results),
        rates(results),
        guide(results),
        overload(results),
        processor(results),
        peers(results),
    ]
    .concat();
    let hits = lines.iter().filter(|line| line.hit).count();
    let mut out = format!(
        "{hits} of {} are met.\n\n| | target | measured | |\n|---|--:|--:|---|\n",
        lines.len()
    );
    for line in lines {
        let verdict = if line.hit { "met" } else { "**missed**" };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {verdict} |",
            line.what, line.target, line.measured
        );
    }
    out
}

fn trips(results: &Results) -> Vec<Line> {
    let ours = |subjects: &[Subject], endpoint: &str, target: f64| -> Vec<Line> {
        let line = |subject: &Subject| {
            let each = results.trips_each(endpoint, subject.name())?;
            Some(Line {
                what: format!("round trips: {}, {}", title(endpoint), subject.title()),
                target: format!("{target:.0}, + 0.05 at most"),
                measured: format!("{each:.3}"),
                hit: each <= target + 0.05,
            })
        };
        subjects.iter().filter_map(line).collect()
    };
    let all = [
        Subject::OursAutocommit,
        Subject::OursLazy,
        Subject::OursTransaction,
    ];
    [
        ours(&AUTOCOMMIT, "one", 1.0),
        ours(&AUTOCOMMIT, "five", 5.0),
        ours(&all, "touch", 4.0),
    ]
    .concat()
}

/// Requests per second against SeaORM's defaults.
fn rates(results: &Results) -> Vec<Line> {
    let targets = [
        (Part::Direct, "", "one", 1.6),
        (Part::Direct, "", "five", 2.0),
        (Part::Delayed, ", 1 ms round trips", "one", 2.7),
        (Part::Delayed, ", 1 ms round trips", "five", 2.7),
    ];
    let mut lines = Vec::new();
    for (part, where_, endpoint, target) in targets {
        for clients in results.clients(part) {
            for subject in AUTOCOMMIT {
                let at = At {
                    part,
                    endpoint,
                    clients,
                };
                let ratio = results.ratio(
                    at,
                    subject.name(),
                    Subject::SeaOrm.name(),
                    Sample::per_second,
                );
                lines.extend(ratio.map(|ratio| Line {
                    what: format!(
                        "requests/s against SeaORM's defaults: {}{where_}, {clients} clients, {}",
                        title(endpoint),
                        subject.title()
                    ),
                    target: format!("{target:.1} at least"),
                    measured: format!("{ratio:.2}"),
                    hit: ratio.median >= target,
                }));
            }
        }
    }
    lines
}

fn guide(results: &Results) -> Vec<Line> {
    let mut lines = Vec::new();
    for endpoint in ["one", "five", "touch"] {
        for subject in AUTOCOMMIT {
            let at = At {
                part: Part::OneCore,
                endpoint,
                clients: 128,
            };
            let ratio = results.ratio(
                at,
                subject.name(),
                Subject::Guide.name(),
                Sample::per_second,
            );
            lines.extend(ratio.map(|ratio| Line {
                what: format!(
                    "requests/s on one core against the guide's app: {}, {}",
                    title(endpoint),
                    subject.title()
                ),
                target: "25 at least".to_owned(),
                measured: format!("{ratio:.1}"),
                hit: ratio.median >= 25.0,
            }));
        }
    }
    lines
}

/// What is left of the best where there are many more clients than connections.
fn overload(results: &Results) -> Vec<Line> {
    let mut lines = Vec::new();
    for endpoint in ["one", "slow", "slow-release"] {
        for subject in AUTOCOMMIT {
            let kept = results.goodput_kept(endpoint, subject.name());
            lines.extend(kept.map(|kept| Line {
                what: format!(
                    "answers/s to 1000 clients against the best: {}, {}",
                    title(endpoint),
                    subject.title()
                ),
                target: "0.90 at least".to_owned(),
                measured: format!("{kept:.2}"),
                hit: kept.median >= 0.9,
            }));
        }
    }
    lines
}

/// The service's processor time against SeaORM's own way: the pool, or a transaction made by hand.
fn processor(results: &Results) -> Vec<Line> {
    let mut lines = Vec::new();
    for endpoint in Endpoint::ALL
        .iter()
        .filter(|endpoint| endpoint.name != "slow-release")
    {
        for clients in results.clients(Part::Direct) {
            for (subject, base) in [
                (Subject::OursAutocommit, Subject::SeaOrm),
                (Subject::OursLazy, Subject::SeaOrm),
                (Subject::OursTransaction, Subject::SeaOrmTransaction),
            ] {
                let at = At {
                    part: Part::Direct,
                    endpoint: endpoint.name,
                    clients,
                };
                let ratio = results.ratio(at, subject.name(), base.name(), service_each);
                lines.extend(ratio.map(|ratio| Line {
                    what: format!(
                        "service's processor time: {}, {clients} clients, {} against {}",
                        endpoint.title,
                        subject.title(),
                        base.title()
                    ),
                    target: "1.00 at most".to_owned(),
                    measured: format!("{ratio:.2}"),
                    hit: ratio.median < 1.005,
                }));
            }
        }
    }
    lines
}

/// The best of ours against the best of the peers.
fn peers(results: &Results) -> Vec<Line> {
    let peers = [
        Subject::SqlxTx,
        Subject::SeaOrmTx,
        Subject::Naive,
        Subject::Guide,
    ];
    let mut lines = Vec::new();
    for endpoint in Endpoint::ALL
        .iter()
        .filter(|endpoint| endpoint.name != "slow-release")
    {
        for clients in results.clients(Part::Direct) {
            let at = At {
                part: Part::Direct,
                endpoint: endpoint.name,
                clients,
            };
            // Where a connection should be given back meanwhile, ours is.
            let ours = At {
                endpoint: if endpoint.is_slow() {
                    "slow-release"
                } else {
                    endpoint.name
                },
                ..at
            };
            let nearest = peers.iter().filter_map(|peer| {
                let base = (at, peer.name());
                let ratio =
                    results.ratio_of((ours, Subject::OursLazy.name()), base, Sample::per_second)?;
                Some((*peer, ratio))
            });
            let nearest = nearest.min_by(|one, other| one.1.median.total_cmp(&other.1.median));
            lines.extend(nearest.map(|(peer, ratio)| Line {
                what: format!(
                    "requests/s, `.lazy()` against its nearest peer: {}, {clients} clients, {}",
                    endpoint.title,
                    peer.title()
                ),
                target: "above 1".to_owned(),
                measured: format!("{ratio:.2}"),
                hit: ratio.median > 1.0,
            }));
        }
    }
    lines
}

fn title(endpoint: &str) -> &'static str {
    Endpoint::ALL
        .iter()
        .find(|it| it.name == endpoint)
        .map_or("", |it| it.title)
}
