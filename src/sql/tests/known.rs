//! A text that is known is judged as one that is read.

use proptest::prelude::*;
use sea_orm::DatabaseBackend::{MySql, Postgres, Sqlite};

use crate::sql::{KnownTexts, classify};

/// Texts of each kind, and ones whose parts differ by little.
const TEXTS: [&str; 12] = [
    "SELECT \"item\".\"id\" FROM \"item\" WHERE \"item\".\"id\" = $1 LIMIT $2",
    "SELECT 1",
    "SELECT 2",
    "UPDATE item SET hits = hits + 1",
    "INSERT INTO item VALUES (1)",
    "DELETE FROM item",
    "SELECT * FROM item FOR UPDATE",
    "SELECT lastval()",
    "SET x = 1",
    "COMMIT",
    "CALL f()",
    "SELECT 1; COMMIT",
];

#[test]
fn each_text_is_judged_alike_at_any_time() {
    for backend in [Postgres, MySql, Sqlite] {
        let known = KnownTexts::new(backend);
        for _ in 0..3 {
            for sql in TEXTS {
                assert_eq!(known.classify(sql).0, classify(backend, sql), "{sql}");
            }
        }
    }
}

#[test]
fn more_texts_than_are_remembered_are_judged_alike() {
    let known = KnownTexts::new(Postgres);
    for round in 0..2 {
        for number in 0..5000 {
            let sql = match number % 3 {
                0 => format!("SELECT {number}"),
                1 => format!("UPDATE item SET hits = {number}"),
                _ => format!("INSERT INTO item VALUES ({number})"),
            };
            assert_eq!(
                known.classify(&sql).0,
                classify(Postgres, &sql),
                "{round}: {sql}"
            );
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_judged_alike_at_the_second_time(sql in "(SELECT|UPDATE|INSERT|SET|COMMIT)[ -~]{0,40}") {
        let known = KnownTexts::new(MySql);
        for _ in 0..2 {
            prop_assert_eq!(known.classify(&sql).0, classify(MySql, &sql));
        }
    }
}
