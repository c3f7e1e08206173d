//! The network breaks at every message of a request's conversation with the database.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{
    faults::{Direction, Fault, Place, Point},
    is_long,
    load::HANGS,
    report::{self, Group, Row},
    site::{Plan, Site},
    support::{database, wait::BOUND},
    work::Kind,
};

/// Longer than the site's `release_timeout`.
const STALL: Duration = Duration::from_secs(2);

/// How long a client waits for a service whose database has fallen silent.
const PATIENCE: Duration = Duration::from_millis(60);

const FAULTS: [Fault; 7] = [
    Fault::Cut,
    Fault::Reset,
    Fault::HalfClose,
    Fault::Silence,
    Fault::Stall(STALL),
    Fault::Delay(Duration::from_millis(20)),
    Fault::Drip,
];

/// How many faults a conversation gets in the short form.
const FEW: usize = 28;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_survives_a_network_that_breaks_at_every_message() {
    every_conversation(database::Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_survives_a_network_that_breaks_at_every_message() {
    every_conversation(database::Kind::MySql).await;
}

async fn every_conversation(database: database::Kind) {
    let lanes = Kind::CONVERSATIONS.map(async |kind| {
        let site = Site::new(database, Plan::default()).await;
        let mut row = Row::new(Group::Network, format!("{database:?}, {}", kind.path()));
        every_message(&site, kind, (!is_long()).then_some(FEW), &mut row).await;
        site.judge(&mut row).await;
        row
    });
    let (mut rows, connecting) = tokio::join!(join_all(lanes), while_connecting(database));
    rows.push(connecting);
    let broken: Vec<String> = rows.into_iter().flat_map(Row::finish).collect();
    report::conclude(&broken);
}

/// Breaks one kind's conversation at each of its messages, in each way; or so many times, evenly spread.
pub async fn every_message(site: &Site, kind: Kind, few: Option<usize>, row: &mut Row) {
    let messages = conversation(site, kind).await;
    let points = points(messages);
    row.notes.push(format!(
        "{} messages up, {} down, {} points",
        messages[0],
        messages[1],
        points.len()
    ));
    let all: Vec<(Point, Fault)> = points
        .iter()
        .flat_map(|point| FAULTS.map(|fault| (*point, fault)))
        .collect();
    let step = few.map_or(1, |few| all.len().div_ceil(few) | 1);
    let mut tally = Tally::default();
    for (point, fault) in all.into_iter().step_by(step) {
        if !break_once(site, kind, point, fault, row, &mut tally).await {
            row.leaked += 1;
            row.notes
                .push(format!("did not recover from {fault:?} at {point:?}"));
            break;
        }
    }
    tally.report(row);
}

/// The same while the connection is being made: log-in, settings, statements that are new to it.
async fn while_connecting(database: database::Kind) -> Row {
    let plan = Plan::default();
    let (mut site, mut tally) = (Site::new(database, plan).await, Tally::default());
    let mut row = Row::new(
        Group::Network,
        format!("{database:?}, connecting, then transaction"),
    );
    site.renew(&plan).await;
    let messages = undisturbed(&site, Kind::Transaction).await;
    let points = points(messages);
    row.notes.push(format!(
        "{} messages up, {} down, {} points",
        messages[0],
        messages[1],
        points.len()
    ));
    let all: Vec<(Point, Fault)> = points
        .iter()
        .flat_map(|point| FAULTS.map(|fault| (*point, fault)))
        .collect();
    let step = if is_long() {
        1
    } else {
        all.len().div_ceil(FEW) | 1
    };
    for (point, fault) in all.into_iter().step_by(step) {
        site.renew(&plan).await;
        if !strike(&site, Kind::Transaction, point, fault, &mut row, &mut tally).await {
            row.leaked += 1;
            row.notes
                .push(format!("did not recover from {fault:?} at {point:?}"));
            break;
        }
    }
    tally.report(&mut row);
    site.judge(&mut row).await;
    row
}

#[derive(Default)]
struct Tally {
    /// Requests that failed although the fault was over.
    aftermath: u64,
    /// Faults that did not happen: the conversation was shorter than the time before.
    missed: u64,
    /// The longest time until no session was out.
    slot_free: Duration,
}

impl Tally {
    fn report(&self, row: &mut Row) {
        row.notes.push(format!(
            "slots free within {} ms",
            self.slot_free.as_millis()
        ));
        row.notes.push(format!(
            "{} failed after their fault was over",
            self.aftermath
        ));
        if self.missed > 0 {
            row.notes
                .push(format!("{} points not reached", self.missed));
        }
    }
}

/// How many messages a conversation has on a connection that knows its statements.
async fn conversation(site: &Site, kind: Kind) -> [u64; 2] {
    for _ in 0..2 {
        assert!(
            site.settles(kind).await.is_some(),
            "{kind:?} works as long as nothing is broken"
        );
    }
    undisturbed(site, kind).await
}

/// How many messages the first request has that succeeds.
async fn undisturbed(site: &Site, kind: Kind) -> [u64; 2] {
    for _ in 0..10 {
        site.proxy.arm(None);
        if site.works(kind).await && site.quiet().await {
            return site.proxy.seen().0;
        }
    }
    panic!("{kind:?} works as long as nothing is broken");
}

fn points(messages: [u64; 2]) -> Vec<Point> {
    let mut points = Vec::new();
    for (direction, last) in [Direction::Up, Direction::Down].into_iter().zip(messages) {
        for number in 1..=last {
            points.extend([Place::Before, Place::Middle].map(|place| Point {
                direction,
                number,
                place,
            }));
        }
        points.push(Point {
            direction,
            number: last,
            place: Place::After,
        });
    }
    points
}

/// Whether the service recovers.
async fn break_once(
    site: &Site,
    kind: Kind,
    point: Point,
    fault: Fault,
    row: &mut Row,
    tally: &mut Tally,
) -> bool {
    // On a connection that knows the statements, as the one that was counted on.
    let Some(failed) = site.settles(kind).await else {
        return false;
    };
    tally.aftermath += failed;
    strike(site, kind, point, fault, row, tally).await
}

/// Whether the service recovers.
async fn strike(
    site: &Site,
    kind: Kind,
    point: Point,
    fault: Fault,
    row: &mut Row,
    tally: &mut Tally,
) -> bool {
    site.proxy.arm(Some((point, fault)));
    let patience = if fault == Fault::Silence {
        PATIENCE
    } else {
        HANGS
    };
    let answer = timeout(patience, site.ask(kind, 200)).await;
    if answer.is_err() && fault != Fault::Silence {
        row.hung += 1;
        row.say(format!("hung: {point:?}, {fault:?}"));
    }
    let (_, fired) = site.proxy.seen();
    tally.missed += u64::from(!fired);
    row.faults += u64::from(fired);
    let over = Instant::now();
    let quiet = site.quiet().await;
    tally.slot_free = tally.slot_free.max(over.elapsed());
    site.proxy.arm(None);
    site.proxy.give_up_silent();
    let recovered = quiet && recover(site, row, tally, &format!("{point:?}, {fault:?}")).await;
    row.recovered(over.elapsed());
    if let Ok((number, note)) = answer
        && !site.court.ledger.agrees(&site.view, number).await
    {
        row.say(format!("{note:?} is not true: {point:?}, {fault:?}"));
    }
    recovered
}

/// Asks until as many requests as there are connections succeed at the same time. Those that died idle prevent it
/// once each; a slot that is lost prevents it for ever.
async fn recover(site: &Site, row: &mut Row, tally: &mut Tally, words: &str) -> bool {
    let started = Instant::now();
    while started.elapsed() < BOUND {
        let works = join_all((0..site.size).map(|_| site.works(Kind::Read))).await;
        if works.into_iter().all(|works| works) {
            return true;
        }
        tally.aftermath += 1;
        if std::env::var_os("RELIABILITY_AFTERMATH").is_some() {
            row.say(format!("a request failed after {words}"));
        }
    }
    false
}
