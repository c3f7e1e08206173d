//! The tables of `docs/performance.md`.

use std::fmt::Write;

use super::stats::{At, Spread, grouped, server_each, service_each};
use crate::{
    plan::{BESIDE, CROWDS, Endpoint},
    results::{Part, Results, Sample},
    subjects::Subject,
};

const BASE: &str = "seaorm";

/// All endpoints of `part`, one table for each number of clients.
pub fn endpoints(results: &Results, part: Part) -> String {
    let mut out = String::new();
    for endpoint in &Endpoint::ALL {
        for clients in results.clients(part) {
            let at = At {
                part,
                endpoint: endpoint.name,
                clients,
            };
            let rows: String = Subject::ALL
                .iter()
                .filter_map(|subject| row(results, at, *subject))
                .collect();
            if rows.is_empty() {
                continue;
            }
            let _ = write!(
                out,
                "### {}, {clients} clients\n\n\
                 | | requests/s | against SeaORM's defaults | p50, ms | p99, ms | service, µs | server, µs | peak, MiB |\n\
                 |---|--:|--:|--:|--:|--:|--:|--:|\n{rows}\n",
                endpoint.title
            );
        }
    }
    out
}

fn row(results: &Results, at: At<'_>, subject: Subject) -> Option<String> {
    let name = subject.name();
    let spread = |value: fn(&Sample) -> f64| results.spread(at, name, value);
    let rate = spread(Sample::per_second)?;
    let ratio = results.ratio(at, name, BASE, Sample::per_second);
    let ratio = ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
    let p50 = spread(|sample| sample.figures.p50_us)?.times(0.001);
    let p99 = spread(|sample| sample.figures.p99_us)?.times(0.001);
    let (service, server) = (spread(service_each)?, spread(server_each)?);
    let peak = spread(|sample| sample.peak_kib as f64 / 1024.0)?;
    let failed: u64 = results
        .samples(at, name)
        .flat_map(|sample| sample.figures.errors.values())
        .sum();
    let failed = if failed > 0 {
        format!(" ({failed} failed)")
    } else {
        String::new()
    };
    Some(format!(
        "| {}{failed} | {rate:.0} | {ratio} | {p50:.2} | {p99:.2} | {service:.1} | {server:.1} | {} |\n",
        subject.title(),
        grouped(peak.median, 0)
    ))
}

/// Round trips per request.
pub fn trips(results: &Results) -> String {
    let endpoints: Vec<_> = Endpoint::ALL
        .iter()
        .filter(|it| results.trips.iter().any(|trips| trips.endpoint == it.name))
        .collect();
    let mut out = String::from("| |");
    endpoints
        .iter()
        .for_each(|endpoint| out.push_str(&format!(" {} |", endpoint.title)));
    out.push_str("\n|---|");
    endpoints.iter().for_each(|_| out.push_str("--:|"));
    out.push('\n');
    for subject in Subject::ALL {
        let cells: Vec<_> = endpoints
            .iter()
            .map(|it| results.trips_each(it.name, subject.name()))
            .collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        let _ = write!(out, "| {} |", subject.title());
        for cell in cells {
            let _ = write!(
                out,
                " {} |",
                cell.map_or("–".to_owned(), |trips| format!("{trips:.3}"))
            );
        }
        out.push('\n');
    }
    out
}

/// One processor for the service.
pub fn one_core(results: &Results) -> String {
    let mut out = String::from(
        "| | | requests/s | against the guide's app | service, µs | guide's µs / its µs | its processor is busy |\n\
         |---|---|--:|--:|--:|--:|--:|\n",
    );
    for endpoint in &Endpoint::ALL {
        for subject in Subject::ALL {
            let at = At {
                part: Part::OneCore,
                endpoint: endpoint.name,
                clients: 128,
            };
            let name = subject.name();
            let Some(rate) = results.spread(at, name, Sample::per_second) else {
                continue;
            };
            let text = |ratio: Option<Spread>| {
                ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.1}"))
            };
            let ratio = text(results.ratio(at, name, "guide", Sample::per_second));
            let service = results
                .spread(at, name, service_each)
                .map_or("–".to_owned(), |it| format!("{it:.1}"));
            let work = text(results.ratio(at, "guide", name, service_each));
            let busy = results.spread(at, name, |sample| {
                sample.service_us / sample.figures.seconds / 1e4
            });
            let busy = busy.map_or("–".to_owned(), |busy| format!("{:.0} %", busy.median));
            let _ = writeln!(
                out,
                "| {} | {} | {rate:.0} | {ratio} | {service} | {work} | {busy} |",
                endpoint.title,
                subject.title()
            );
        }
    }
    out
}

/// Many more clients than connections.
pub fn overload(results: &Results) -> String {
    let mut out = String::from("| | |");
    CROWDS
        .iter()
        .for_each(|clients| out.push_str(&format!(" {clients} clients, answers/s |")));
    out.push_str(" the last against the best | its p99, ms | refused/s |\n|---|---|");
    CROWDS.iter().for_each(|_| out.push_str("--:|"));
    out.push_str("--:|--:|--:|\n");
    for endpoint in &Endpoint::ALL {
        for subject in Subject::ALL {
            let name = subject.name();
            let at = |clients| At {
                part: Part::Overload,
                endpoint: endpoint.name,
                clients,
            };
            let [.., most] = CROWDS;
            let Some(kept) = results.goodput_kept(endpoint.name, name) else {
                continue;
            };
            let _ = write!(out, "| {} | {} |", endpoint.title, subject.title());
            for clients in CROWDS {
                let rate = results.spread(at(clients), name, Sample::per_second);
                let _ = write!(
                    out,
                    " {} |",
                    rate.map_or("–".to_owned(), |rate| format!("{rate:.0}"))
                );
            }
            let p99 = results.spread(at(most), name, |sample| sample.figures.p99_us / 1000.0);
            let refused = results.spread(at(most), name, |sample| {
                sample.figures.errors.values().sum::<u64>() as f64 / sample.figures.seconds
            });
            let text = |spread: Option<Spread>| {
                spread.map_or("–".to_owned(), |spread| format!("{spread:.0}"))
            };
            let _ = writeln!(out, " {kept:.2} | {} | {} |", text(p99), text(refused));
        }
    }
    out
}

/// Fast endpoints, alone and beside a slow one.
pub fn mixed(results: &Results) -> String {
    let mut out = String::from(
        "| | | alone, requests/s | beside the slow one | share kept | p50, ms | p99, ms |\n|---|---|--:|--:|--:|--:|--:|\n",
    );
    for endpoint in ["one", "five", "slow"] {
        for subject in Subject::ALL {
            let name = subject.name();
            let at = |part| At {
                part,
                endpoint,
                clients: BESIDE,
            };
            let Some(mixed) = results.spread(at(Part::Mixed), name, Sample::per_second) else {
                continue;
            };
            let alone = results.spread(at(Part::Fast), name, Sample::per_second);
            let kept = results.ratio_of(
                (at(Part::Mixed), name),
                (at(Part::Fast), name),
                Sample::per_second,
            );
            let text = |spread: Option<Spread>, digits: usize| {
                spread.map_or("–".to_owned(), |spread| format!("{spread:.digits$}"))
            };
            let p50 = results.spread(at(Part::Mixed), name, |it| it.figures.p50_us / 1000.0);
            let p99 = results.spread(at(Part::Mixed), name, |it| it.figures.p99_us / 1000.0);
            let title = Endpoint::ALL.iter().find(|it| it.name == endpoint);
            let _ = writeln!(
                out,
                "| {} | {} | {} | {mixed:.0} | {} | {} | {} |",
                title.map_or(endpoint, |it| it.title),
                subject.title(),
                text(alone, 0),
                text(kept, 2),
                text(p50, 1),
                text(p99, 1)
            );
        }
    }
    out
}

/// Memory per waiting request.
pub fn memory(results: &Results) -> String {
    let mut out = String::from(
        "| | at rest, MiB | all connected, MiB | all waiting, MiB | per client that waits, KiB | of that for waiting, KiB |\n\
         |---|--:|--:|--:|--:|--:|\n",
    );
    for subject in Subject::ALL {
        let Some(memory) = results
            .memory
            .iter()
            .find(|memory| memory.subject == subject.name())
        else {
            continue;
        };
        let mebi = |kib: u64| kib as f64 / 1024.0;
        let each =
            |base: u64| memory.waiting_kib.saturating_sub(base) as f64 / memory.clients as f64;
        let _ = writeln!(
            out,
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            subject.title(),
            mebi(memory.idle_kib),
            mebi(memory.connected_kib),
            mebi(memory.waiting_kib),
            each(memory.idle_kib),
            each(memory.connected_kib)
        );
    }
    out
}
