//! The pictures of `docs/performance.md`.

use super::{
    plot::{Bar, Panel, picture},
    stats::{At, server_each, service_each},
};
use crate::{
    plan::Endpoint,
    results::{Part, Results, Sample},
    subjects::Subject,
};

type Value = fn(&Sample) -> f64;

/// Name and content of each picture that there are samples for.
pub fn all(results: &Results) -> Vec<(&'static str, String)> {
    let pictures: [(&str, Part, &str, &str, &[Value]); 4] = [
        (
            "requests.svg",
            Part::Direct,
            "Requests per second",
            "more is better",
            &[Sample::per_second],
        ),
        (
            "requests-1ms.svg",
            Part::Delayed,
            "Requests per second, 1 ms more per round trip",
            "more is better",
            &[Sample::per_second],
        ),
        (
            "processor.svg",
            Part::Direct,
            "Processor time per request: service, then server",
            "µs, less is better",
            &[service_each, server_each],
        ),
        (
            "latency.svg",
            Part::Direct,
            "p99",
            "ms, less is better",
            &[|sample| sample.figures.p99_us / 1000.0],
        ),
    ];
    let drawn = pictures
        .into_iter()
        .filter_map(|(name, part, title, unit, values)| {
            let clients = *results.clients(part).last()?;
            let panels: Vec<_> = Endpoint::ALL
                .iter()
                .filter_map(|endpoint| panel(results, part, endpoint, values))
                .collect();
            Some((
                name,
                picture(&format!("{title} ({clients} clients)"), unit, &panels),
            ))
        });
    drawn.collect()
}

fn panel(results: &Results, part: Part, endpoint: &Endpoint, values: &[Value]) -> Option<Panel> {
    let at = At {
        part,
        endpoint: endpoint.name,
        clients: *results.clients(part).last()?,
    };
    let bars: Vec<_> = Subject::ALL
        .iter()
        .filter_map(|subject| bar(results, at, *subject, values))
        .collect();
    (!bars.is_empty()).then(|| Panel {
        title: endpoint.title.to_owned(),
        bars,
    })
}

fn bar(results: &Results, at: At<'_>, subject: Subject, values: &[Value]) -> Option<Bar> {
    let parts = values
        .iter()
        .map(|value| Some(results.spread(at, subject.name(), value)?.median));
    let whole = results.spread(at, subject.name(), |sample| {
        values.iter().map(|value| value(sample)).sum()
    })?;
    Some(Bar {
        label: subject.title().to_owned(),
        ours: subject.is_ours(),
        parts: parts.collect::<Option<_>>()?,
        whole,
    })
}
