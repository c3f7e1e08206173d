//! Runs the faults of `tests/reliability` on this crate's peers, side by side, on PostgreSQL: how many of the
//! invariants does each keep?
//!
//! The harness itself is included as it is.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "not everything of the harness is in use here"
)]

#[path = "../../reliability/boundaries.rs"]
mod boundaries;
#[path = "../../reliability/faults/mod.rs"]
mod faults;
#[path = "../../reliability/ledger.rs"]
mod ledger;
#[path = "../../reliability/load.rs"]
mod load;
#[path = "../../reliability/report.rs"]
mod report;
mod sea_orm_tx;
mod seaorm;
#[path = "../../reliability/service.rs"]
mod service;
#[path = "../../reliability/site.rs"]
mod site;
#[path = "../../reliability/soak.rs"]
mod soak;
mod sqlx_tx;
#[path = "../../it/support/mod.rs"]
mod support;
#[path = "../../reliability/witness.rs"]
mod witness;
#[path = "../../reliability/work.rs"]
mod work;

use std::{collections::BTreeMap, sync::Arc};

use axum::Router;
use sea_orm::DatabaseConnection;

use self::{
    report::{Group, Row},
    site::{Idle, Plan, Site},
    support::database::{self, TestDb},
    work::{Court, Kind},
};

/// One service: its name, how it is made, and which conversations it can have.
type Subject = (
    &'static str,
    fn(&Plan, DatabaseConnection, Arc<Court>) -> (Router, Idle),
    &'static [Kind],
);

const COMMON: [Kind; 6] = [
    Kind::Read,
    Kind::Write,
    Kind::Transaction,
    Kind::Nested,
    Kind::Stream,
    Kind::Early,
];

const SUBJECTS: [Subject; 4] = [
    ("tower-sea-orm", site::ours, &Kind::CONVERSATIONS),
    ("SeaORM, transactions by hand", seaorm::service, &COMMON),
    (
        "axum-sea-orm-tx 0.1",
        sea_orm_tx::service,
        COMMON.split_last().expect("a list").1,
    ),
    ("axum-sqlx-tx 0.11", sqlx_tx::service, &COMMON),
];

#[tokio::main]
async fn main() {
    for (name, service, conversations) in SUBJECTS {
        let mut row = Row::new(Group::Peers, name);
        for kind in conversations {
            let site = new_site(service, Plan::default()).await;
            boundaries::every_message(&site, *kind, Some(few()), &mut row).await;
            site.judge(&mut row).await;
        }
        let site = Arc::new(
            new_site(
                service,
                Plan {
                    size: 6,
                    ..Plan::default()
                },
            )
            .await,
        );
        soak::soak_on(&site, requests(), &mut row).await;
        site.judge(&mut row).await;
        let (kept, all) = row.kept();
        row.notes = summed_up(&row.notes);
        row.notes.insert(0, format!("keeps {kept} of {all}"));
        let _ = row.finish();
    }
}

async fn new_site(
    service: fn(&Plan, DatabaseConnection, Arc<Court>) -> (Router, Idle),
    plan: Plan,
) -> Site {
    Site::over(
        TestDb::new(database::Kind::Postgres).await,
        plan,
        |url| url,
        service,
    )
    .await
}

/// From which faults it did not recover, and how often; of the other notes, none.
fn summed_up(notes: &[String]) -> Vec<String> {
    let mut faults = BTreeMap::new();
    for note in notes {
        if let Some((fault, _)) = note
            .strip_prefix("did not recover from ")
            .and_then(|note| note.split_once(" at "))
        {
            *faults.entry(fault.to_lowercase()).or_insert(0) += 1;
        }
    }
    faults
        .into_iter()
        .map(|(fault, times)| format!("did not recover from {fault} ({times}×)"))
        .collect()
}

/// How many faults each conversation gets.
fn few() -> usize {
    if is_long() { 200 } else { 28 }
}

/// How many requests each service's soak has.
fn requests() -> u64 {
    if is_long() { 50_000 } else { 2_000 }
}

/// Whether this is the long form.
fn is_long() -> bool {
    std::env::var_os("RELIABILITY").is_some_and(|form| form == "long")
}
