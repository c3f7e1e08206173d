//! One measurement: a load on a service, and what the processes took meanwhile.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    thread,
    time::Duration,
};

use crate::{
    Failure,
    load::Figures,
    plan::{Endpoint, Time},
    process,
    proxy::Proxy,
    results::{Memory, Part, Sample, Trips},
    server::Server,
    service::Service,
};

/// Where and when a sample is taken.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    pub part: Part,
    pub round: usize,
    pub endpoint: &'a Endpoint,
    pub clients: usize,
    /// The one processor of the load.
    pub processor: Option<&'a str>,
}

/// A load process.
struct Load {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Load {
    fn start(arguments: &[String], processor: Option<&str>) -> Result<Self, Failure> {
        let program = env::current_exe()?;
        let mut command =
            process::command(program.to_str().ok_or("a path that is no text")?, processor);
        let mut child = command
            .arg("load")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        Ok(Self {
            child,
            input,
            lines,
        })
    }

    /// Waits for the line `word`; what stands behind it.
    fn expect(&mut self, word: &str) -> Result<String, Failure> {
        for line in self.lines.by_ref() {
            if let Some(rest) = line?.strip_prefix(word) {
                return Ok(rest.trim().to_owned());
            }
        }
        Err(format!("the load ended before {word}").into())
    }

    fn figures(&mut self) -> Result<Figures, Failure> {
        Ok(serde_json::from_str(&self.expect("end")?)?)
    }

    fn go(&mut self) -> Result<(), Failure> {
        Ok(writeln!(self.input, "go")?)
    }

    fn end(mut self) -> Result<(), Failure> {
        drop(self.input);
        match self.child.wait()?.success() {
            true => Ok(()),
            false => Err("the load failed".into()),
        }
    }
}

fn arguments(service: &Service, endpoint: &Endpoint, clients: usize) -> Vec<String> {
    let port = service.port.to_string();
    let clients = clients.to_string();
    let path = format!("/{}/", endpoint.name);
    let pairs = [
        ("--port", port.as_str()),
        ("--method", endpoint.method),
        ("--path", &path),
        ("--clients", &clients),
    ];
    pairs
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value.to_owned()])
        .collect()
}

/// A load for some time.
pub fn sample(
    cell: Cell<'_>,
    time: &Time,
    service: &Service,
    server: &Server,
) -> Result<Sample, Failure> {
    let mut arguments = arguments(service, cell.endpoint, cell.clients);
    let takes_long = cell.endpoint.is_slow() || cell.part == Part::Overload;
    let warm_up = if takes_long {
        time.warm_up.max(1.0)
    } else {
        time.warm_up
    };
    // Requests wait for up to a second in the queue.
    let seconds = if cell.part == Part::Overload {
        time.seconds.max(1.5)
    } else {
        time.seconds
    };
    arguments.extend([
        "--warm-up".to_owned(),
        warm_up.to_string(),
        "--seconds".to_owned(),
        seconds.to_string(),
    ]);
    let mut load = Load::start(&arguments, cell.processor)?;
    load.expect("begin")?;
    process::reset_peak(service.pid())?;
    let before = Snapshot::take(service, server, &load);
    let figures = load.figures()?;
    let after = Snapshot::take(service, server, &load);
    let peak_kib = process::peak_kib(service.pid())?;
    load.end()?;
    Ok(Sample {
        part: cell.part,
        round: cell.round,
        subject: service.subject.name().to_owned(),
        endpoint: cell.endpoint.name.to_owned(),
        clients: cell.clients,
        figures,
        service_us: micros(before.service, after.service),
        server_us: after
            .server
            .iter()
            .map(|(pid, end)| micros(before.server.get(pid).copied().unwrap_or(0), *end))
            .sum(),
        client_us: micros(before.client, after.client),
        peak_kib,
    })
}

/// Loads on several endpoints at the same time. The processor time is that of all of them.
pub fn together(
    part: Part,
    round: usize,
    loads: &[(&Endpoint, usize)],
    seconds: f64,
    service: &Service,
) -> Result<Vec<Sample>, Failure> {
    let ends = loads;
    let mut loads = Vec::new();
    for (endpoint, clients) in ends {
        let mut arguments = arguments(service, endpoint, *clients);
        arguments.extend(["--warm-up", "1.0", "--seconds"].map(str::to_owned));
        arguments.push(seconds.to_string());
        loads.push(Load::start(&arguments, None)?);
    }
    loads
        .iter_mut()
        .try_for_each(|load| load.expect("begin").map(drop))?;
    process::reset_peak(service.pid())?;
    let before = process::cpu_nanos(service.pid());
    let figures: Vec<_> = loads
        .iter_mut()
        .map(Load::figures)
        .collect::<Result<_, _>>()?;
    let service_us = micros(before, process::cpu_nanos(service.pid()));
    let peak_kib = process::peak_kib(service.pid())?;
    loads.into_iter().try_for_each(Load::end)?;
    let sample = |(figures, (endpoint, clients)): (Figures, &(&Endpoint, usize))| Sample {
        part,
        round,
        subject: service.subject.name().to_owned(),
        endpoint: endpoint.name.to_owned(),
        clients: *clients,
        figures,
        service_us,
        server_us: 0.0,
        client_us: 0.0,
        peak_kib,
    };
    Ok(figures.into_iter().zip(ends).map(sample).collect())
}

/// A number of requests through the proxy, as fast as they go or `rate` of them a second.
pub fn trips(
    endpoint: &Endpoint,
    clients: usize,
    rate: Option<u64>,
    requests: u64,
    service: &Service,
    proxy: &Proxy,
) -> Result<Trips, Failure> {
    let mut arguments = arguments(service, endpoint, clients);
    arguments.extend(["--requests".to_owned(), requests.to_string()]);
    if let Some(rate) = rate {
        arguments.extend(["--rate".to_owned(), rate.to_string()]);
    }
    let mut load = Load::start(&arguments, None)?;
    load.expect("ready")?;
    settle();
    let before = proxy.trips();
    load.go()?;
    let figures = load.figures()?;
    settle();
    let trips = proxy.trips() - before;
    load.end()?;
    let failed = figures.errors.values().sum();
    let (subject, endpoint) = (service.subject.name().to_owned(), endpoint.name.to_owned());
    Ok(Trips {
        subject,
        endpoint,
        requests: figures.requests + failed,
        failed,
        trips,
    })
}

/// The service's memory while `clients` requests wait behind a lock on the table.
pub async fn memory(
    clients: u64,
    service: &Service,
    server: &mut Server,
) -> Result<Memory, Failure> {
    let endpoint = Endpoint {
        name: "one",
        title: "",
        method: "GET",
    };
    let idle_kib = process::memory_kib(service.pid())?;
    let mut arguments = arguments(service, &endpoint, clients as usize);
    arguments
        .extend(["--warm-path", "/none/", "--requests", &clients.to_string()].map(str::to_owned));
    let mut load = Load::start(&arguments, None)?;
    load.expect("ready")?;
    let connected_kib = process::memory_kib(service.pid())?;
    process::reset_peak(service.pid())?;
    server.lock().await?;
    load.go()?;
    load.expect("sent")?;
    // All were sent; the service has read them when its memory and its time stand still.
    let mut spent = process::cpu_nanos(service.pid());
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(100));
        let now = process::cpu_nanos(service.pid());
        if now - spent < 1_000_000 {
            break;
        }
        spent = now;
    }
    let waiting_kib = process::peak_kib(service.pid())?;
    server.unlock().await?;
    let figures = load.figures()?;
    load.end()?;
    if !figures.errors.is_empty() {
        return Err(format!(
            "{}: not all waited: {:?}",
            service.subject.name(),
            figures.errors
        )
        .into());
    }
    Ok(Memory {
        subject: service.subject.name().to_owned(),
        clients,
        idle_kib,
        connected_kib,
        waiting_kib,
    })
}

/// What a service does after its last answer, such as giving a connection back.
fn settle() {
    thread::sleep(Duration::from_millis(200));
}

struct Snapshot {
    service: u64,
    server: BTreeMap<u32, u64>,
    client: u64,
}

impl Snapshot {
    fn take(service: &Service, server: &Server, load: &Load) -> Self {
        Self {
            service: process::cpu_nanos(service.pid()),
            server: server
                .processes()
                .into_iter()
                .map(|pid| (pid, process::cpu_nanos(pid)))
                .collect(),
            client: process::cpu_nanos(load.child.id()),
        }
    }
}

fn micros(before: u64, after: u64) -> f64 {
    after.saturating_sub(before) as f64 / 1000.0
}
