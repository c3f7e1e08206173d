//! `compare distance`: servers at a distance, pools of other sizes, and a crowd, written to `docs/distance.md`.

use std::{fmt::Write, fs, path::Path, time::Duration};

use crate::{
    Failure,
    cli::Options,
    measure::{self, Cell},
    plan::{self, Endpoint, Time, say, say_sample, shuffle},
    proxy::Proxy,
    report::{
        fill,
        stats::{Spread, grouped},
    },
    results::{Part, Sample},
    server::Server,
    service::{Service, Start},
    subjects::{POOL, Subject},
};

const TEMPLATE: &str = include_str!("report/distance.md");

/// More for each round trip, in milliseconds.
const DELAYS: [u64; 3] = [1, 5, 20];
const VISIT_DELAYS: [u64; 5] = [0, 1, 5, 20, 100];
const POOLS: [u32; 3] = [3, 10, 50];
/// Requests per second.
const RATES: [u64; 4] = [1, 100, 1000, 5000];
const CLIENTS: usize = 128;
const CROWD: usize = 5000;
/// Users of the plain `DatabaseConnection` beside the sessions.
const PLAIN: usize = 4;

struct Plan {
    rounds: usize,
    /// Seconds of one measurement.
    seconds: f64,
    /// Seconds at a rate.
    rate: f64,
    /// Seconds of the sessions' requests for each cell of the visits.
    visits: f64,
    parts: Vec<String>,
}

impl Plan {
    fn read(options: &Options) -> Result<Self, Failure> {
        options.only(&["quick", "url", "docs", "rounds", "part"])?;
        let quick = options.has("quick");
        let parts = match options.all("part") {
            [] => ["share", "rates", "visits", "crowd"]
                .map(str::to_owned)
                .to_vec(),
            parts => parts.to_vec(),
        };
        Ok(Self {
            rounds: options
                .number("rounds")?
                .unwrap_or(if quick { 1 } else { 3 }),
            seconds: if quick { 0.3 } else { 1.5 },
            rate: if quick { 0.5 } else { 4.0 },
            visits: if quick { 1.0 } else { 20.0 },
            parts,
        })
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|it| it == part)
    }

    fn time(&self) -> Time {
        Time {
            warm_up: 1.0,
            seconds: self.seconds,
        }
    }
}

/// Measures everything in turn and writes the page.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let plan = Plan::read(options)?;
    let mut server = Server::prepare(options.needed("url")?).await?;
    let mut about = plan::machine(&server);
    about.insert("rounds".to_owned(), plan.rounds.to_string());
    let mut tables = Vec::new();
    if plan.has("share") {
        let far = shares(&plan, &mut server).await?;
        tables.push(("share one", share_table(&far, "one")));
        tables.push(("share touch", share_table(&far, "touch")));
        tables.push(("latency", latency_table(&far)));
    }
    if plan.has("rates") {
        tables.push(("rates", rates(&plan, &server)?));
    }
    if plan.has("visits") {
        let cells = visits(&plan, &mut server).await?;
        tables.push(("visits", visits_table(&cells, Visits::in_a_hundred)));
        tables.push(("plain", visits_table(&cells, Visits::plain_text)));
    }
    if plan.has("crowd") {
        tables.push(("crowd", crowd_table(&crowd(&plan, &mut server).await?)));
    }
    let page = fill(TEMPLATE, &tables, &about);
    if options.has("quick") || plan.parts.len() < 4 {
        print!("{page}");
        return Ok(());
    }
    Ok(fs::write(
        Path::new(options.needed("docs")?).join("distance.md"),
        page,
    )?)
}

fn endpoint(name: &str) -> Result<&'static Endpoint, Failure> {
    let found = Endpoint::ALL.iter().find(|it| it.name == name);
    Ok(found.ok_or(format!("no endpoint {name}"))?)
}

// --- Requests per second, as a share of what the connections could carry -------------

/// The samples at one distance.
struct Far {
    delay: u64,
    /// A statement's round trip with nothing else going on.
    round_trip_us: f64,
    samples: Vec<Sample>,
}

async fn shares(plan: &Plan, server: &mut Server) -> Result<Vec<Far>, Failure> {
    let proxy = Proxy::start(server.port)?;
    let url = proxy.url(&server.url)?;
    let start = |subject| Service::start(subject, &url, Start::default());
    let services: Vec<_> = Subject::ALL
        .into_iter()
        .map(start)
        .collect::<Result<_, _>>()?;
    let mut order: Vec<&Service> = services.iter().collect();
    let mut random = 0x9E37_79B9_7F4A_7C15;
    let mut all = Vec::new();
    for delay in DELAYS {
        proxy.delay(Duration::from_millis(delay));
        let mut far = Far {
            delay,
            round_trip_us: Server::round_trip(&url).await?,
            samples: Vec::new(),
        };
        for round in 0..plan.rounds {
            server.tidy_up().await?;
            for name in ["one", "touch"] {
                say(&format!("{delay} ms, round {}: {name}", round + 1));
                shuffle(&mut order, &mut random);
                for service in &order {
                    let sample = measure::sample(
                        cell(round, name, CLIENTS)?,
                        &plan.time(),
                        service,
                        server,
                    )?;
                    say_sample(&sample);
                    far.samples.push(sample);
                }
            }
        }
        all.push(far);
    }
    Ok(all)
}

fn cell(round: usize, name: &str, clients: usize) -> Result<Cell<'static>, Failure> {
    Ok(Cell {
        part: Part::Distance,
        round,
        endpoint: endpoint(name)?,
        clients,
        processor: None,
    })
}

impl Far {
    fn spread(
        &self,
        endpoint: &str,
        subject: Subject,
        value: impl Fn(&Sample) -> f64,
    ) -> Option<Spread> {
        let of = |it: &&Sample| it.endpoint == endpoint && it.subject == subject.name();
        Spread::of(self.samples.iter().filter(of).map(value))
    }

    /// The requests per second with one round trip each and no time in between.
    fn most(&self) -> f64 {
        f64::from(POOL) / self.round_trip_us * 1e6
    }
}

/// Cells side by side, for each subject and distance.
fn far_table(all: &[Far], title: &str, value: impl Fn(&Far, Subject) -> Option<String>) -> String {
    let mut out = String::from("| |");
    for far in all {
        let _ = write!(out, " {} ms: {title} |", far.delay);
    }
    out.push_str("\n|---|");
    all.iter().for_each(|_| out.push_str("--:|"));
    out.push('\n');
    for subject in Subject::ALL {
        let _ = write!(out, "| {} |", subject.title());
        for far in all {
            let _ = write!(out, " {} |", value(far, subject).unwrap_or("–".to_owned()));
        }
        out.push('\n');
    }
    out
}

fn share_table(all: &[Far], endpoint: &str) -> String {
    far_table(all, "requests/s, share", |far, subject| {
        let rate = far.spread(endpoint, subject, Sample::per_second)?;
        Some(format!("{rate:.0}, {:.2}", rate.median / far.most()))
    })
}

fn latency_table(all: &[Far]) -> String {
    far_table(all, "p50, p99, ms", |far, subject| {
        let p50 = far.spread("one", subject, |it| it.figures.p50_us / 1000.0)?;
        let p99 = far.spread("one", subject, |it| it.figures.p99_us / 1000.0)?;
        Some(format!("{:.0}, {:.0}", p50.median, p99.median))
    })
}

// --- Round trips at a rate ------------------------------------------------------------

fn rates(plan: &Plan, server: &Server) -> Result<String, Failure> {
    let proxy = Proxy::start(server.port)?;
    let url = proxy.url(&server.url)?;
    let mut out = String::from("| |");
    RATES
        .iter()
        .for_each(|rate| out.push_str(&format!(" {rate} requests/s |")));
    out.push_str("\n|---|");
    RATES.iter().for_each(|_| out.push_str("--:|"));
    out.push('\n');
    for subject in Subject::ALL {
        let service = Service::start(subject, &url, Start::default())?;
        let _ = write!(out, "| {} |", subject.title());
        for rate in RATES {
            say(&format!("{rate} requests/s: {}", subject.name()));
            let requests = ((plan.rate * rate as f64) as u64).max(10);
            // Whatever the rate, some have to be left.
            let clients = if rate == 1 { 1 } else { CLIENTS };
            let trips = measure::trips(
                endpoint("one")?,
                clients,
                Some(rate),
                requests,
                &service,
                &proxy,
            )?;
            let _ = write!(out, " {:.2} |", trips.each());
        }
        out.push('\n');
    }
    Ok(out)
}

// --- Visits of the driver's pool ---------------------------------------------------

struct Visits {
    pool: u32,
    delay: u64,
    requests: u64,
    trips: u64,
    /// Of the users of the plain `DatabaseConnection`.
    plain: Sample,
}

impl Visits {
    /// Two pings each; the rest of the round trips are the requests' own.
    fn in_a_hundred(&self) -> String {
        let pings = self.trips.saturating_sub(self.requests) as f64;
        format!("{:.2}", pings / 2.0 / self.requests as f64 * 100.0)
    }

    fn plain_text(&self) -> String {
        let figures = &self.plain.figures;
        let failed: u64 = figures.errors.values().sum();
        let failed = if failed > 0 {
            format!(" ({failed} failed)")
        } else {
            String::new()
        };
        format!("{:.0}{failed}", figures.p99_us / 1000.0)
    }
}

async fn visits(plan: &Plan, server: &mut Server) -> Result<Vec<Visits>, Failure> {
    let mut all = Vec::new();
    for pool in POOLS {
        for delay in VISIT_DELAYS {
            server.tidy_up().await?;
            let proxy = Proxy::start(server.port)?;
            let start = Start {
                pool: Some(pool),
                ..Start::default()
            };
            let service = Service::start(Subject::OursLazy, &proxy.url(&server.url)?, start)?;
            proxy.delay(Duration::from_millis(delay));
            let visits = visits_of(plan, (pool, delay), &service, &proxy)?;
            say(&format!(
                "pool of {pool}, {delay} ms: {} of 100 returns in {} requests; plain p99 {} ms of {}",
                visits.in_a_hundred(),
                visits.requests,
                visits.plain_text(),
                visits.plain.figures.requests,
            ));
            all.push(visits);
        }
    }
    Ok(all)
}

fn visits_of(
    plan: &Plan,
    (pool, delay): (u32, u64),
    service: &Service,
    proxy: &Proxy,
) -> Result<Visits, Failure> {
    let one = endpoint("one")?;
    // All connections are wanted by several.
    let clients = 4 * pool as usize;
    let per_second = 1000.0 / (delay.max(1) as f64) * f64::from(pool);
    let requests = (per_second * plan.visits).clamp(500.0, 40_000.0) as u64;
    let trips = measure::trips(one, clients, None, requests, service, proxy)?;
    let plain = Endpoint {
        name: "plain",
        title: "",
        method: "GET",
    };
    let loads = [(one, clients), (&plain, PLAIN)];
    let mut samples = measure::together(Part::Distance, 0, &loads, plan.visits.max(1.5), service)?;
    Ok(Visits {
        pool,
        delay,
        requests: trips.requests,
        trips: trips.trips,
        plain: samples.pop().ok_or("no plain users")?,
    })
}

fn visits_table(cells: &[Visits], value: impl Fn(&Visits) -> String) -> String {
    let mut out = String::from("| |");
    VISIT_DELAYS
        .iter()
        .for_each(|delay| out.push_str(&format!(" + {delay} ms |")));
    out.push_str("\n|---|");
    VISIT_DELAYS.iter().for_each(|_| out.push_str("--:|"));
    out.push('\n');
    for pool in POOLS {
        let _ = write!(out, "| a pool of {pool} |");
        for cell in cells.iter().filter(|it| it.pool == pool) {
            debug_assert!(VISIT_DELAYS.contains(&cell.delay));
            let _ = write!(out, " {} |", value(cell));
        }
        out.push('\n');
    }
    out
}

// --- A crowd ------------------------------------------------------------------------

/// A service of the crowd, and what it is called there.
struct Crowded {
    service: Service,
    title: String,
}

/// This crate, SeaORM, and this crate with a queue as long as SeaORM's.
fn crowded(url: &str) -> Result<Vec<Crowded>, Failure> {
    let queues = Start {
        waiting: Some(CROWD as u32),
        ..Start::default()
    };
    let own = [Subject::OursTransaction, Subject::OursLazy];
    let own = own
        .into_iter()
        .flat_map(|it| [(it, Start::default()), (it, queues)]);
    let others = [Subject::SeaOrm, Subject::SeaOrmIdlePing].map(|it| (it, Start::default()));
    let start = |(subject, start): (Subject, Start<'_>)| {
        let title = match start.waiting {
            Some(waiting) => format!("{}, `max_pending({waiting})`", subject.title()),
            None => subject.title().to_owned(),
        };
        Service::start(subject, url, start).map(|service| Crowded { service, title })
    };
    own.chain(others).map(start).collect()
}

async fn crowd(plan: &Plan, server: &mut Server) -> Result<Vec<Sample>, Failure> {
    let services = crowded(&server.url)?;
    let mut order: Vec<&Crowded> = services.iter().collect();
    let mut random = 0x9E37_79B9_7F4A_7C15;
    let time = Time {
        warm_up: 1.5,
        seconds: plan.seconds.max(2.0),
    };
    let mut all = Vec::new();
    for round in 0..plan.rounds {
        server.tidy_up().await?;
        for name in ["one", "touch"] {
            for clients in [CLIENTS, CROWD] {
                say(&format!("crowd, round {}: {name}, {clients}", round + 1));
                shuffle(&mut order, &mut random);
                for Crowded { service, title } in &order {
                    let cell = cell(round, name, clients)?;
                    let mut sample = measure::sample(cell, &time, service, server)?;
                    sample.subject.clone_from(title);
                    say_sample(&sample);
                    all.push(sample);
                }
            }
        }
    }
    Ok(all)
}

fn crowd_table(samples: &[Sample]) -> String {
    let mut out = format!(
        "| | | {CLIENTS} clients, answers/s | {CROWD} clients, answers/s | p50, ms | p99, ms | refused/s | peak, MiB |\n\
         |---|---|--:|--:|--:|--:|--:|--:|\n"
    );
    let mut titles: Vec<&str> = samples.iter().map(|it| it.subject.as_str()).collect();
    titles.sort_unstable();
    titles.dedup();
    // SeaORM's come first in the alphabet.
    titles.rotate_left(2);
    for name in ["one", "touch"] {
        for title in &titles {
            let spread = |clients, value: fn(&Sample) -> f64| {
                let of = |it: &&Sample| {
                    (it.endpoint.as_str(), it.subject.as_str(), it.clients)
                        == (name, *title, clients)
                };
                Spread::of(samples.iter().filter(of).map(value))
            };
            let what = endpoint(name).map_or(name, |it| it.title);
            let row = || {
                let few = spread(CLIENTS, Sample::per_second)?;
                let many = spread(CROWD, Sample::per_second)?;
                let p50 = spread(CROWD, |it| it.figures.p50_us / 1000.0)?;
                let p99 = spread(CROWD, |it| it.figures.p99_us / 1000.0)?;
                let refused = spread(CROWD, |it| {
                    it.figures.errors.values().sum::<u64>() as f64 / it.figures.seconds
                })?;
                let peak = spread(CROWD, |it| it.peak_kib as f64 / 1024.0)?;
                Some(format!(
                    "| {what} | {title} | {few:.0} | {many:.0} | {} | {} | {} | {} |\n",
                    grouped(p50.median, 0),
                    grouped(p99.median, 0),
                    grouped(refused.median, 0),
                    grouped(peak.median, 0)
                ))
            };
            out.push_str(&row().unwrap_or_default());
        }
    }
    out
}
