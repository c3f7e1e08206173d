//! The list of OpenTelemetry's conventions, and what of it is measured here.

use std::collections::BTreeSet;

/// Metrics of the conventions that cannot be known here.
const LEFT_OUT: [&str; 4] = [
    "db.client.connection.create_time",
    "db.client.connection.idle.max",
    "db.client.connection.idle.min",
    "db.client.response.returned_rows",
];

/// A metric of the conventions.
pub struct Convention {
    pub name: &'static str,
    pub instrument: &'static str,
    pub unit: &'static str,
    pub required: BTreeSet<&'static str>,
    pub allowed: BTreeSet<&'static str>,
    pub boundaries: Vec<f64>,
}

impl Convention {
    /// The name that it has in Prometheus
    /// (<https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>).
    pub fn prometheus_name(&self) -> String {
        let suffix = match (self.unit, self.instrument) {
            ("s", _) => "_seconds",
            (_, "counter") => "_total",
            _ => "",
        };
        self.name.replace('.', "_") + suffix
    }
}

/// Those that are measured here.
pub fn measured() -> Vec<Convention> {
    let lines = include_str!("conventions.txt").lines();
    let lines = lines.filter(|line| !line.starts_with('#'));
    let all: Vec<_> = lines.map(parse).collect();
    for name in LEFT_OUT {
        assert!(all.iter().any(|one| one.name == name), "{name}");
    }
    let measured = |one: &Convention| !LEFT_OUT.contains(&one.name);
    all.into_iter().filter(measured).collect()
}

fn parse(line: &'static str) -> Convention {
    let columns: Vec<_> = line.split('|').map(str::trim).collect();
    let [name, instrument, unit, required, other, boundaries] = columns[..] else {
        panic!("not six columns: {line}")
    };
    let required: BTreeSet<_> = required.split_whitespace().collect();
    let others = other.split_whitespace();
    Convention {
        name,
        instrument,
        unit,
        allowed: required.iter().copied().chain(others).collect(),
        required,
        boundaries: boundaries
            .split_whitespace()
            .map(|one| one.parse().unwrap())
            .collect(),
    }
}
