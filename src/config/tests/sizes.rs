//! How many connections: SQLAlchemy's names, SeaORM's, and both.

use super::{env, json};

fn sizes(settings: &[(&str, &str)]) -> Result<(Option<u32>, Option<u32>), String> {
    let options = env(settings.iter().copied())
        .map_err(|error| error.to_string())?
        .connect_options();
    Ok((options.get_min_connections(), options.get_max_connections()))
}

#[test]
fn pool_size_and_max_overflow_are_the_least_and_the_most_connections() {
    for (settings, min, max) in [
        (&[] as &[_], None, None),
        (
            &[("pool_size", "10"), ("max_overflow", "5")],
            Some(10),
            Some(15),
        ),
        (
            &[("max_overflow", "5"), ("pool_size", "10")],
            Some(10),
            Some(15),
        ),
        (
            &[("pool_size", "7"), ("max_overflow", "0")],
            Some(7),
            Some(7),
        ),
        (&[("pool_size", "7")], Some(7), Some(17)),
        (&[("max_overflow", "2")], Some(5), Some(7)),
        (
            &[("pool_size", "7"), ("max_connections", "9")],
            Some(7),
            Some(9),
        ),
        (
            &[("min_connections", "3"), ("max_overflow", "2")],
            Some(3),
            Some(5),
        ),
        (
            &[
                ("pool_size", "7"),
                ("max_overflow", "2"),
                ("max_connections", "9"),
            ],
            Some(7),
            Some(9),
        ),
        (
            &[
                ("pool_size", "7"),
                ("min_connections", "7"),
                ("max_connections", "7"),
            ],
            Some(7),
            Some(7),
        ),
        (&[("min_connections", "0")], Some(0), None),
        (&[("max_connections", "3")], None, Some(3)),
        (
            &[("min_connections", "1"), ("max_connections", "3")],
            Some(1),
            Some(3),
        ),
    ] {
        assert_eq!(sizes(settings), Ok((min, max)), "{settings:?}");
    }
    assert_eq!(
        json("\"pool_size\": 3, \"max_overflow\": 1").unwrap(),
        env([("pool_size", "3"), ("max_overflow", "1")]).unwrap()
    );
}

#[test]
fn sizes_that_cannot_be_are_refused_with_the_key_and_what_is_allowed() {
    for (settings, key, part) in [
        (
            &[("pool_size", "0")] as &[_],
            "POOL_SIZE",
            "\"0\" is refused: no limit in SQLAlchemy",
        ),
        (
            &[("max_overflow", "-1")],
            "MAX_OVERFLOW",
            "\"-1\" is refused: no limit in SQLAlchemy",
        ),
        (&[("max_overflow", "-2")], "MAX_OVERFLOW", "0 or more"),
        (&[("max_connections", "0")], "MAX_CONNECTIONS", "1 or more"),
        (
            &[("pool_size", "ten")],
            "POOL_SIZE",
            "\"ten\" is refused: write a whole number, 1 or more",
        ),
        (&[("pool_size", "2.5")], "POOL_SIZE", "\"2.5\""),
        (
            &[("pool_size", "4294967296")],
            "POOL_SIZE",
            "\"4294967296\"",
        ),
        (&[("pool_size", "4294967295")], "POOL_SIZE", "too many"),
        (
            &[("pool_size", "postgres://u:hunter2@h/d")],
            "POOL_SIZE",
            "this value is refused",
        ),
        (
            &[("min_connections", "4"), ("max_connections", "3")],
            "MIN_CONNECTIONS",
            "4 is more than `max_connections`, 3",
        ),
        (
            &[("pool_size", "4"), ("max_connections", "3")],
            "POOL_SIZE",
            "4 is more than `max_connections`, 3",
        ),
        (
            &[("min_connections", "11")],
            "MIN_CONNECTIONS",
            "(the default)",
        ),
        (
            &[("pool_size", "7"), ("min_connections", "6")],
            "MIN_CONNECTIONS",
            "`DB_POOL_SIZE` is another name",
        ),
        (
            &[
                ("pool_size", "7"),
                ("max_overflow", "2"),
                ("max_connections", "10"),
            ],
            "MAX_OVERFLOW",
            "7 plus 2 is 9, but `DB_MAX_CONNECTIONS` has another value",
        ),
        (
            &[("reserved_connections", "3"), ("max_connections", "3")],
            "RESERVED_CONNECTIONS",
            "leaves no connection",
        ),
        (
            &[("reserved_connections", "10")],
            "RESERVED_CONNECTIONS",
            "(the default)",
        ),
        (
            &[("reserved_connections", "-1")],
            "RESERVED_CONNECTIONS",
            "0 or more",
        ),
    ] {
        let error = sizes(settings).unwrap_err();
        assert!(
            error.starts_with(&format!("`DB_{key}`: ")),
            "{settings:?}: {error}"
        );
        assert!(error.contains(part), "{settings:?}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// The limits are checked against the drivers' own defaults where none is
/// given.
#[cfg(feature = "sqlx-postgres")]
#[test]
fn the_defaults_are_still_those_of_the_drivers() {
    use sea_orm::sqlx::{Postgres, pool::PoolOptions};
    assert_eq!(PoolOptions::<Postgres>::new().get_max_connections(), 10);
    assert_eq!(
        PoolOptions::<Postgres>::new()
            .get_acquire_timeout()
            .as_secs(),
        30
    );
}
