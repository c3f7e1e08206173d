//! Many requests of all kinds, and faults of all kinds all the time.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{ConnectionTrait, Statement};

use super::{
    faults::{Direction, Fault, Place, Point},
    is_long,
    load::{Dice, Load},
    report::{self, Group, Row},
    site::{Plan, Site},
    support::database,
};

/// Between two faults.
const PAUSE: Duration = Duration::from_millis(150);

/// MiB by which memory may grow in the second half: that of an allocator and of a pool in a bad moment.
const GROWTH: f64 = 8.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_survives_a_soak_of_requests_and_faults() {
    soak(database::Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_survives_a_soak_of_requests_and_faults() {
    soak(database::Kind::MySql).await;
}

async fn soak(database: database::Kind) {
    let mut row = Row::new(Group::Soak, format!("{database:?}"));
    let requests = requests();
    let plan = Plan {
        size: 6,
        requests: 2 * requests as usize,
        cancel: true,
        // Shorter than some stalls.
        release_timeout: Duration::from_millis(150),
        ..Plan::default()
    };
    let site = Arc::new(Site::new(database, plan).await);
    soak_on(&site, requests, &mut row).await;
    site.judge(&mut row).await;
    let broken = row.finish();
    report::conclude(&broken);
}

/// Makes so many requests, with faults all the time.
pub async fn soak_on(site: &Arc<Site>, requests: u64, row: &mut Row) {
    let (started, mut memory) = (Instant::now(), Memory::default());
    let load = Load::start(site, 12, Some(requests));
    let mut dice = Dice::new(7);
    while !load.is_over() {
        strike(site, &mut dice).await;
        row.faults += 1;
        tokio::time::sleep(PAUSE).await;
        memory.sample(load.done());
    }
    let rate = load.done() as f64 / started.elapsed().as_secs_f64();
    row.hung += load.stop().await;
    site.proxy.arm(None);
    site.proxy.give_up_silent();
    let over = Instant::now();
    let back = site.quiet().await && site.whole().await.is_some();
    row.leaked += u64::from(!back);
    row.recovered(over.elapsed());
    let (mean, slope, grown) = memory.growth();
    row.grown += if grown > GROWTH { grown as u64 } else { 0 };
    row.notes.push(format!(
        "{rate:.0} requests per second; {mean:.1} MiB, {slope:+.2} bytes per request in the second half"
    ));
}

/// How many requests a soak makes.
fn requests() -> u64 {
    let asked = std::env::var("RELIABILITY_REQUESTS")
        .ok()
        .and_then(|asked| asked.parse().ok());
    asked.unwrap_or(if is_long() { 600_000 } else { 1_500 })
}

/// One fault, of a random kind.
async fn strike(site: &Site, dice: &mut Dice) {
    let point = Point {
        direction: if dice.below(2) == 0 {
            Direction::Up
        } else {
            Direction::Down
        },
        number: 1 + dice.below(60),
        place: [Place::Before, Place::Middle, Place::After][dice.below(3) as usize],
    };
    // What fell silent the time before has had its time.
    site.proxy.give_up_silent();
    match dice.below(12) {
        0 => site.proxy.end_all(false),
        1 => site.proxy.end_all(true),
        2 => {
            site.proxy.hold(true);
            tokio::time::sleep(Duration::from_millis(dice.below(300))).await;
            site.proxy.hold(false);
        }
        3 | 4 => end_a_session(site, dice).await,
        5 => site.proxy.arm(Some((point, Fault::Cut))),
        6 => site.proxy.arm(Some((point, Fault::Reset))),
        7 => site.proxy.arm(Some((point, Fault::HalfClose))),
        8 => site.proxy.arm(Some((point, Fault::Silence))),
        9 => site.proxy.arm(Some((
            point,
            Fault::Stall(Duration::from_millis(dice.below(400))),
        ))),
        10 => site.proxy.arm(Some((
            point,
            Fault::Delay(Duration::from_millis(dice.below(100))),
        ))),
        _ => site.proxy.arm(Some((point, Fault::Drip))),
    }
}

/// An administrator ends one of the service's sessions.
async fn end_a_session(site: &Site, dice: &mut Dice) {
    let backend = site.view.get_database_backend();
    let (list, end) = match backend {
        sea_orm::DbBackend::Postgres => (
            "SELECT pid::bigint FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
             AND application_name = '' AND query NOT LIKE '%pg_stat_activity%'",
            "SELECT pg_terminate_backend($)",
        ),
        _ => (
            "SELECT CAST(id AS SIGNED) FROM information_schema.processlist \
             WHERE db = database() AND id <> connection_id() AND info IS NULL",
            "KILL CONNECTION $",
        ),
    };
    let sessions = site
        .view
        .query_all_raw(Statement::from_string(backend, list))
        .await
        .expect("the sessions");
    if sessions.is_empty() {
        return;
    }
    let victim = &sessions[dice.below(sessions.len() as u64) as usize];
    let victim: i64 = victim.try_get_by_index(0).expect("a number");
    // It may have gone by itself.
    let _ = site
        .view
        .execute_unprepared(&end.replace('$', &victim.to_string()))
        .await;
}

/// What the process takes of the machine's memory, over its requests.
#[derive(Default)]
struct Memory {
    /// Requests, and bytes.
    samples: Vec<(f64, f64)>,
}

impl Memory {
    fn sample(&mut self, requests: u64) {
        let pages = fs::read_to_string("/proc/self/statm").ok();
        let pages = pages.and_then(|pages| pages.split_whitespace().nth(1)?.parse::<f64>().ok());
        self.samples
            .extend(pages.map(|pages| (requests as f64, pages * 4096.0)));
    }

    /// Of the second half, when everything there is has been used once: MiB on average, bytes per request
    /// by the slope, and MiB in all by the same.
    fn growth(&self) -> (f64, f64, f64) {
        let late = &self.samples[self.samples.len() / 2..];
        let count = late.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| late.iter().map(of).sum::<f64>() / count;
        let (requests, bytes) = (mean(|sample| sample.0), mean(|sample| sample.1));
        let along: f64 = late
            .iter()
            .map(|sample| (sample.0 - requests) * (sample.1 - bytes))
            .sum();
        let spread: f64 = late
            .iter()
            .map(|sample| (sample.0 - requests).powi(2))
            .sum();
        let slope = if spread > 0.0 { along / spread } else { 0.0 };
        let all =
            late.last().map_or(0.0, |last| last.0) - late.first().map_or(0.0, |first| first.0);
        let mib = f64::from(1 << 20);
        (bytes / mib, slope, slope * all / mib)
    }
}
