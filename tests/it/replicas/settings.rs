//! What a layer refuses when it is built.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::support::database::Kind;

fn refusal(build: impl FnOnce() -> DbSessionLayer) -> String {
    let panic = catch_unwind(AssertUnwindSafe(build)).expect_err("a refusal");
    panic.downcast_ref::<String>().unwrap().clone()
}

#[tokio::test]
async fn a_layer_refuses_replicas_that_cannot_be_right() {
    let test = TestDb::new(Kind::Postgres).await;
    let (primary, other) = (pool_at(test.url()).await, pool_at(test.url()).await);
    let layer = || DbSessionLayer::new(primary.clone());
    let of = Replicas::of(primary.clone());
    let none = refusal(|| layer().replicas(of.clone()));
    assert!(none.contains("needs a replica"), "{none}");
    let same = refusal(|| layer().replicas(of.clone().replica("r", primary.clone())));
    assert!(same.contains("a pool of its own"), "{same}");
    let foreign = Replicas::of(other.clone()).replica("r", primary.clone());
    let foreign = refusal(|| layer().replicas(foreign));
    assert!(foreign.contains("not the primary's"), "{foreign}");
    let both = of.clone().replica("r", other.clone());
    let both = refusal(|| layer().by(|_| None).replicas(both));
    assert!(both.contains("`by`"), "{both}");
    let sqlite = TestDb::new(Kind::SqliteMemory).await;
    let sqlite = pool_with(&sqlite.connect(1).await, |pool| pool);
    let mixed = refusal(|| layer().replicas(of.clone().replica("r", sqlite.clone())));
    assert!(mixed.contains("PostgreSQL or MariaDB"), "{mixed}");
    let other = TestDb::new(Kind::MySql).await;
    let other = pool_at(other.url()).await;
    let mixed = refusal(|| layer().replicas(of.clone().replica("r", other.clone())));
    assert!(mixed.contains("on all servers"), "{mixed}");
    let of = Replicas::of(sqlite.clone()).replica("r", primary.clone());
    let sqlite = refusal(|| DbSessionLayer::new(sqlite).replicas(of));
    assert!(sqlite.contains("PostgreSQL or MariaDB"), "{sqlite}");
}
