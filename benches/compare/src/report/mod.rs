//! `compare report`: results as `performance.md` and pictures beside it.

mod plot;
mod plots;
pub mod stats;
mod tables;

use std::{collections::BTreeMap, fs, path::Path};

use self::stats::At;
use crate::{
    Failure,
    cli::Options,
    results::{Part, Results, Sample},
    subjects::Subject,
};

const TEMPLATE: &str = include_str!("performance.md");
const LOCK: &str = include_str!("../../Cargo.lock");

/// Writes the report of a results file into a directory.
pub fn run(options: &Options) -> Result<(), Failure> {
    options.only(&["results", "docs"])?;
    let results: Results = serde_json::from_slice(&fs::read(options.needed("results")?)?)?;
    let docs = Path::new(options.needed("docs")?);
    let pictures = docs.join("performance");
    fs::create_dir_all(&pictures)?;
    for (name, picture) in plots::all(&results) {
        fs::write(pictures.join(name), picture)?;
    }
    Ok(fs::write(docs.join("performance.md"), text(&results))?)
}

fn text(results: &Results) -> String {
    let delay = results.about.get("delay").cloned();
    let tables = [
        ("trips", tables::trips(results)),
        ("direct", tables::endpoints(results, Part::Direct)),
        ("delayed", tables::endpoints(results, Part::Delayed)),
        ("one-core", tables::one_core(results)),
        ("overload", tables::overload(results)),
        ("mixed", tables::mixed(results)),
        ("memory", tables::memory(results)),
        ("pinning", pinning(results)),
        ("client", client(results)),
        ("delay", delay.unwrap_or_else(|| "–".to_owned())),
    ];
    let text = fill(TEMPLATE, &tables, &results.about);
    if results.about.contains_key("quick") {
        return text.replacen('\n', "\n\n**A quick run: these figures mean little.**\n", 1);
    }
    text
}

/// A page with its tables, versions and what is known about the run.
pub fn fill(template: &str, tables: &[(&str, String)], about: &BTreeMap<String, String>) -> String {
    let mut text = template.to_owned();
    for (name, value) in tables {
        text = text.replace(&format!("{{{{{name}}}}}"), value.trim_end());
    }
    for (name, value) in about {
        text = text.replace(&format!("{{{{about {name}}}}}"), value);
    }
    for name in [
        "tower-sea-orm",
        "sea-orm",
        "sqlx",
        "axum",
        "axum-sqlx-tx",
        "axum-sea-orm-tx",
        "hyper",
        "tokio",
    ] {
        text = text.replace(&format!("{{{{crate {name}}}}}"), locked(name));
    }
    for line in about.get("packages").map_or("", String::as_str).lines() {
        let Some((name, version)) = line.split_once("==") else {
            continue;
        };
        text = text.replace(&format!("{{{{package {}}}}}", name.to_lowercase()), version);
    }
    text
}

/// The version of a crate in the lock file.
fn locked(name: &str) -> &'static str {
    let begin = format!("name = \"{name}\"\nversion = \"");
    LOCK.split_once(&begin)
        .and_then(|(_, after)| after.split('"').next())
        .unwrap_or("–")
}

/// By how much a pinned connection loses around a slow call.
fn pinning(results: &Results) -> String {
    let mut out = String::new();
    for clients in results.clients(Part::Direct) {
        let at = |endpoint| At {
            part: Part::Direct,
            endpoint,
            clients,
        };
        let lazy = Subject::OursLazy.name();
        let rate = |endpoint, subject: Subject| {
            results.spread(at(endpoint), subject.name(), Sample::per_second)
        };
        let loss = results.ratio(at("slow"), Subject::SeaOrm.name(), lazy, Sample::per_second);
        let (pinned, released) = (
            rate("slow", Subject::OursLazy),
            rate("slow-release", Subject::OursLazy),
        );
        let kept = results.ratio_of(
            (at("slow-release"), lazy),
            (at("slow"), Subject::SeaOrm.name()),
            Sample::per_second,
        );
        let (Some(pinned), Some(released), Some(loss), Some(kept)) = (pinned, released, loss, kept)
        else {
            continue;
        };
        out.push_str(&format!(
            "- {clients} clients: {:.0} requests/s with the connection kept, {:.1} times fewer than with SeaORM's pool; \
             with `release()` {:.0} requests/s, {:.2} times SeaORM's.\n",
            pinned.median, loss.median, released.median, kept.median
        ));
    }
    out
}

/// What the load itself takes.
fn client(results: &Results) -> String {
    let at = At {
        part: Part::Direct,
        endpoint: "one",
        clients: *results.clients(Part::Direct).last().unwrap_or(&0),
    };
    let each = results.spread(at, Subject::OursLazy.name(), |sample| {
        sample.each(sample.client_us)
    });
    each.map_or("–".to_owned(), |each| format!("{each:.1}"))
}
