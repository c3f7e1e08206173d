//! `compare run`: everything, in turn.

use std::{
    collections::BTreeMap,
    env, fs,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    Failure,
    cli::Options,
    measure::{self, Cell},
    proxy::Proxy,
    results::{Part, Results},
    server::Server,
    service::{Service, Start},
    subjects::Subject,
};

/// One way in.
#[derive(Debug)]
pub struct Endpoint {
    pub name: &'static str,
    pub title: &'static str,
    pub method: &'static str,
}

impl Endpoint {
    pub const ALL: [Self; 6] = [
        Self {
            name: "none",
            title: "No database",
            method: "GET",
        },
        Self {
            name: "one",
            title: "1 select",
            method: "GET",
        },
        Self {
            name: "five",
            title: "5 selects",
            method: "GET",
        },
        Self {
            name: "touch",
            title: "Select and update in a transaction",
            method: "POST",
        },
        Self {
            name: "slow",
            title: "Select, 50 ms elsewhere, select",
            method: "GET",
        },
        Self {
            name: "slow-release",
            title: "The same with `release()` before the 50 ms",
            method: "GET",
        },
    ];

    /// Its answer takes 50 ms elsewhere.
    pub fn is_slow(&self) -> bool {
        self.name.starts_with("slow")
    }

    /// Only a session can be told to give its connection back.
    fn has(&self, subject: Subject) -> bool {
        self.name != "slow-release" || subject.is_ours()
    }
}

/// The seconds of each measurement.
#[derive(Debug, Clone)]
pub struct Time {
    pub warm_up: f64,
    pub seconds: f64,
}

#[derive(Debug, Clone)]
struct Plan {
    subjects: Vec<Subject>,
    parts: Vec<String>,
    rounds: usize,
    clients: Vec<usize>,
    time: Time,
    quick: bool,
}

const PARTS: [&str; 7] = [
    "direct", "trips", "delayed", "one-core", "overload", "mixed", "memory",
];

/// The clients of each endpoint where several have theirs at once.
pub const BESIDE: usize = 64;

/// As many as can be served at their best, and many more.
pub const CROWDS: [usize; 3] = [32, 128, 1000];
const KNOWN: [&str; 9] = [
    "quick", "only", "part", "rounds", "seconds", "warm-up", "clients", "url", "results",
];

/// The requests that wait at the same time when memory is measured.
const WAITING: u64 = 2000;

impl Plan {
    fn read(options: &Options) -> Result<Self, Failure> {
        options.only(&KNOWN)?;
        let quick = options.has("quick");
        let only = options.all("only");
        let subjects = Subject::ALL.into_iter();
        let subjects = subjects.filter(|it| {
            only.is_empty() || only.iter().any(|name| it.name().contains(name.as_str()))
        });
        let parts = match options.all("part") {
            [] => PARTS.map(str::to_owned).to_vec(),
            parts => parts.to_vec(),
        };
        if let Some(part) = parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
            return Err(format!("no part {part}; there are: {}", PARTS.join(" ")).into());
        }
        let clients = options
            .number("clients")?
            .map_or(vec![32, 128], |clients| vec![clients]);
        let (warm_up, seconds) = if quick { (0.1, 0.3) } else { (0.3, 0.7) };
        Ok(Self {
            subjects: subjects.collect(),
            parts,
            rounds: options
                .number("rounds")?
                .unwrap_or(if quick { 1 } else { 5 }),
            clients,
            time: Time {
                warm_up: options.number("warm-up")?.unwrap_or(warm_up),
                seconds: options.number("seconds")?.unwrap_or(seconds),
            },
            quick,
        })
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|it| it == part)
    }

    fn start(&self, url: &str, start: Start<'_>) -> Result<Vec<Service>, Failure> {
        self.subjects
            .iter()
            .map(|subject| Service::start(*subject, url, start))
            .collect()
    }
}

/// Runs the parts and leaves the results in a file.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let plan = Plan::read(options)?;
    let began = Instant::now();
    let mut server = Server::prepare(options.needed("url")?).await?;
    let mut results = Results {
        about: about(&plan, &server),
        ..Results::default()
    };
    if plan.has("direct") {
        let services = plan.start(&server.url, Start::default())?;
        rounds(&plan, Part::Direct, &services, &mut server, &mut results).await?;
    }
    if plan.has("trips") || plan.has("delayed") {
        behind_proxy(&plan, &mut server, &mut results).await?;
    }
    if plan.has("one-core") {
        one_core(&plan, &mut server, &mut results).await?;
    }
    if plan.has("overload") {
        let crowded = Plan {
            subjects: plan.subjects.iter().copied().filter(is_crowded).collect(),
            ..plan.clone()
        };
        let services = crowded.start(&server.url, Start::default())?;
        rounds(
            &crowded,
            Part::Overload,
            &services,
            &mut server,
            &mut results,
        )
        .await?;
    }
    if plan.has("mixed") {
        mixed(&plan, &mut server, &mut results).await?;
    }
    if plan.has("memory") {
        for subject in &plan.subjects {
            say(&format!("memory: {}", subject.name()));
            let start = Start {
                waiting: Some(2 * WAITING as u32),
                ..Start::default()
            };
            let service = Service::start(*subject, &server.url, start)?;
            results
                .memory
                .push(measure::memory(WAITING, &service, &mut server).await?);
        }
    }
    results.about.insert(
        "took".to_owned(),
        format!("{:.0} min", began.elapsed().as_secs_f64() / 60.0),
    );
    fs::write(
        options.needed("results")?,
        serde_json::to_vec_pretty(&results)?,
    )?;
    Ok(())
}

/// All endpoints of all `services` in turn, round after round.
async fn rounds(
    plan: &Plan,
    part: Part,
    services: &[Service],
    server: &mut Server,
    results: &mut Results,
) -> Result<(), Failure> {
    let (clients, processor): (&[usize], _) = match part {
        Part::OneCore => (&[128], Some("1")),
        Part::Overload => (&CROWDS, None),
        Part::Direct | Part::Delayed | Part::Fast | Part::Mixed | Part::Distance => {
            (&plan.clients, None)
        }
    };
    let mut random = 0x9E37_79B9_7F4A_7C15;
    for round in 0..plan.rounds {
        server.tidy_up().await?;
        for endpoint in Endpoint::ALL
            .iter()
            .filter(|endpoint| belongs(endpoint, part))
        {
            for clients in clients.iter().copied() {
                say(&format!(
                    "{part:?}, round {}: {}, {clients} clients",
                    round + 1,
                    endpoint.title
                ));
                let mut order: Vec<&Service> = services
                    .iter()
                    .filter(|it| endpoint.has(it.subject))
                    .collect();
                shuffle(&mut order, &mut random);
                for service in order {
                    let cell = Cell {
                        part,
                        round,
                        endpoint,
                        clients,
                        processor,
                    };
                    let sample = measure::sample(cell, &plan.time, service, server)?;
                    say_sample(&sample);
                    results.samples.push(sample);
                }
            }
        }
    }
    Ok(())
}

/// Brings `items` into an order that depends on `random` alone: what a subject leaves behind it, in caches
/// and in the server, meets another one each time.
pub fn shuffle<T>(items: &mut [T], random: &mut u64) {
    for end in (1..items.len()).rev() {
        *random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        items.swap(end, (*random >> 33) as usize % (end + 1));
    }
}

/// Whether `endpoint` is measured in `part`.
fn belongs(endpoint: &Endpoint, part: Part) -> bool {
    match part {
        Part::Direct => true,
        Part::Delayed | Part::OneCore => matches!(endpoint.name, "one" | "five" | "touch"),
        Part::Overload => matches!(endpoint.name, "one" | "slow" | "slow-release"),
        // They have a load of their own.
        Part::Fast | Part::Mixed | Part::Distance => false,
    }
}

/// Under more load than there are connections: this crate, and what it is measured against.
fn is_crowded(subject: &Subject) -> bool {
    subject.is_ours() || *subject == Subject::SeaOrm
}

/// Round trips are counted first, then made longer.
async fn behind_proxy(
    plan: &Plan,
    server: &mut Server,
    results: &mut Results,
) -> Result<(), Failure> {
    let proxy = Proxy::start(server.port)?;
    let services = plan.start(&proxy.url(&server.url)?, Start::default())?;
    if plan.has("trips") {
        for endpoint in Endpoint::ALL.iter().filter(|it| it.name != "slow-release") {
            for service in services
                .iter()
                .filter(|service| endpoint.has(service.subject))
            {
                say(&format!(
                    "round trips: {}, {}",
                    endpoint.title,
                    service.subject.name()
                ));
                let requests = match (plan.quick, service.subject) {
                    (true, _) | (_, Subject::Guide) => 1000,
                    // As many as a pinned connection serves in some seconds.
                    _ if endpoint.is_slow() => 1000,
                    (false, _) => 10_000,
                };
                results.trips.push(measure::trips(
                    endpoint, 128, None, requests, service, &proxy,
                )?);
            }
        }
    }
    if plan.has("delayed") {
        let direct = Server::round_trip(&server.url).await?;
        let undelayed = Server::round_trip(&proxy.url(&server.url)?).await?;
        proxy.delay(Duration::from_millis(1));
        let delayed = Server::round_trip(&proxy.url(&server.url)?).await?;
        rounds(plan, Part::Delayed, &services, server, results).await?;
        let held = proxy.held_us().unwrap_or_default();
        let text = format!(
            "a round trip alone takes {direct:.0} µs without the proxy, {undelayed:.0} µs through it, {delayed:.0} µs with \
             the delay; under load an answer was held for {held:.0} µs on average"
        );
        results.about.insert("delay".to_owned(), text);
    }
    Ok(())
}

/// The service on one processor, the server and the load on the other.
async fn one_core(plan: &Plan, server: &mut Server, results: &mut Results) -> Result<(), Failure> {
    server.bind_to("1")?;
    let services = plan.start(
        &server.url,
        Start {
            processor: Some("0"),
            ..Start::default()
        },
    );
    let done = match services {
        Ok(services) => rounds(plan, Part::OneCore, &services, server, results).await,
        Err(error) => Err(error),
    };
    server.bind_to("0-1")?;
    done
}

/// Fast endpoints, alone and beside a slow one.
async fn mixed(plan: &Plan, server: &mut Server, results: &mut Results) -> Result<(), Failure> {
    let is_mixed = |it: &Subject| {
        matches!(
            it,
            Subject::OursLazy | Subject::OursPoolMode | Subject::SeaOrm
        )
    };
    let plan = Plan {
        subjects: plan.subjects.iter().copied().filter(is_mixed).collect(),
        ..plan.clone()
    };
    let services = plan.start(&server.url, Start::default())?;
    let endpoint = |name: &str| Endpoint::ALL.iter().find(|it| it.name == name);
    let all: Vec<_> = ["one", "five", "slow"]
        .into_iter()
        .filter_map(endpoint)
        .collect();
    for round in 0..plan.rounds {
        server.tidy_up().await?;
        for service in &services {
            for (part, endpoints) in [(Part::Fast, &all[..2]), (Part::Mixed, &all[..])] {
                say(&format!("{part:?}, round {}", round + 1));
                let loads: Vec<_> = endpoints.iter().map(|it| (*it, BESIDE)).collect();
                let seconds = plan.time.seconds.max(1.5);
                let samples = measure::together(part, round, &loads, seconds, service)?;
                samples.iter().for_each(say_sample);
                results.samples.extend(samples);
            }
        }
    }
    Ok(())
}

fn about(plan: &Plan, server: &Server) -> BTreeMap<String, String> {
    let mut about = machine(server);
    about.insert("rounds".to_owned(), plan.rounds.to_string());
    about.insert("warm-up".to_owned(), plan.time.warm_up.to_string());
    about.insert("seconds".to_owned(), plan.time.seconds.to_string());
    if plan.quick {
        about.insert("quick".to_owned(), "yes".to_owned());
    }
    about
}

/// What is measured, and on what.
pub fn machine(server: &Server) -> BTreeMap<String, String> {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|it| it.1);
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let pairs = [
        (
            "processor",
            Some(format!("{processors} × {}", model.unwrap_or("unknown"))),
        ),
        ("kernel", output("uname", &["-sr"])),
        ("rustc", output("rustc", &["--version"])),
        (
            "commit",
            output("git", &["describe", "--always", "--dirty"]),
        ),
        ("date", output("date", &["+%Y-%m-%d"])),
        ("postgres", Some(server.version.clone())),
        (
            "python",
            env::var("GUIDE_PYTHON")
                .ok()
                .and_then(|python| output(&python, &["--version"])),
        ),
        (
            "packages",
            env::var("GUIDE_PYTHON")
                .ok()
                .and_then(|python| output(&python, &["-m", "pip", "freeze"])),
        ),
    ];
    pairs
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

pub fn say(line: &str) {
    eprintln!("== {line}");
}

pub fn say_sample(sample: &crate::results::Sample) {
    eprintln!(
        "   {:<20} {:>8.0}/s  p50 {:>7.0} µs  p99 {:>7.0} µs  service {:>6.1} µs  server {:>6.1} µs  client {:>5.1} µs {}",
        sample.subject,
        sample.per_second(),
        sample.figures.p50_us,
        sample.figures.p99_us,
        sample.each(sample.service_us),
        sample.each(sample.server_us),
        sample.each(sample.client_us),
        if sample.figures.errors.is_empty() {
            String::new()
        } else {
            format!("errors {:?}", sample.figures.errors)
        },
    );
}
