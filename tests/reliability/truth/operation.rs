//! [`Operation`]: statements that fail late, end transactions or change modes.

use crate::support::database::Kind;

/// How many numbers each statement has for its rows.
pub const ROWS: i64 = 32;

/// One statement. Its rows have numbers that no other's have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// One row.
    Plain,
    /// Three rows that it returns.
    Returning,
    /// A constraint is broken by a late row.
    LateCheck,
    /// The same, and the earlier rows are returned.
    LateReturning,
    /// A late row's value cannot be computed.
    LateDivision,
    /// A trigger refuses a late row.
    LateTrigger,
    /// The last row has the first one's number.
    LateDuplicate,
    /// The constraint is checked at COMMIT.
    Deferred,
    /// Two statements in one text, the second of which fails.
    Two,
    /// A lock is not there.
    LockRefused,
    /// It takes too long.
    Timeout,
    /// It waits for a lock that never comes free.
    LockWait,
    /// It wants a row that a request beside may hold: by its place.
    Shared(i64),
    /// It depends on what others have written.
    Skewed,
    /// SQL of this kind of database, by its place in [`special`].
    Special(usize),
}

/// What is known of a statement beforehand.
#[derive(Clone, Debug)]
pub struct Traits {
    pub sql: String,
    /// How many rows it writes.
    pub rows: i64,
    /// It cannot succeed.
    pub must_fail: bool,
    /// It cannot fail where it is alone.
    pub must_work: bool,
    /// It is several statements: when it fails, those before the failure may stand.
    pub several: bool,
    /// It may end the transaction around it.
    pub ends: bool,
    /// The driver cannot prepare it.
    pub unprepared: bool,
    /// It makes sense in a transaction only.
    pub inside: bool,
}

impl Operation {
    /// The usual ones; [`special`] has more.
    pub const USUAL: [Self; 13] = [
        Self::Plain,
        Self::Plain,
        Self::Plain,
        Self::Returning,
        Self::LateCheck,
        Self::LateReturning,
        Self::LateDivision,
        Self::LateTrigger,
        Self::LateDuplicate,
        Self::Deferred,
        Self::Two,
        Self::LockRefused,
        Self::Timeout,
    ];

    /// Those by which two requests come into each other's way.
    pub const CONTENDED: [Self; 6] = [
        Self::Shared(1),
        Self::Shared(2),
        Self::Shared(3),
        Self::Skewed,
        Self::Skewed,
        Self::LockWait,
    ];

    /// What it is with rows from the number `first` on; `None` if this database has no such thing.
    pub fn traits(self, kind: Kind, first: i64) -> Option<Traits> {
        let select = |k: &str, more: &str| {
            let numbers = match kind {
                Kind::MySql => "(SELECT seq AS n FROM seq_0_to_19) AS numbers",
                Kind::Postgres => "generate_series(0, 19) AS numbers (n)",
                _ => {
                    "(WITH RECURSIVE t (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM t WHERE n < 19) SELECT n FROM t)"
                }
            };
            failing(format!(
                "INSERT INTO truth (n, k) SELECT {first} + n, {k} FROM {numbers}{more}"
            ))
        };
        let at_13 = |value: &str| format!("CASE WHEN n = 13 THEN {value} ELSE 0 END");
        Some(match self {
            Self::Plain => working(format!("INSERT INTO truth (n, k) VALUES ({first}, 0)"), 1),
            Self::Returning => {
                let values = format!("({first}, 0), ({first} + 1, 0), ({first} + 2, 0)");
                working(
                    format!("INSERT INTO truth (n, k) VALUES {values} RETURNING n"),
                    3,
                )
            }
            Self::LateCheck => select(&at_13("100"), ""),
            Self::LateReturning => select(&at_13("100"), " RETURNING n"),
            Self::LateDivision => select("7 / (13 - n)", ""),
            Self::LateTrigger => select(&at_13("77"), " RETURNING k"),
            Self::LateDuplicate => {
                let values = format!("({first}, 0), ({first} + 1, 0), ({first}, 0)");
                failing(format!(
                    "INSERT INTO truth (n, k) VALUES {values} RETURNING n"
                ))
            }
            Self::Deferred if kind != Kind::MySql => {
                let insert = format!(
                    "INSERT INTO truth (n, k, parent) VALUES ({first}, 0, -1), ({first} + 1, 0, -1)"
                );
                Traits {
                    must_work: false,
                    ..working(format!("{insert} RETURNING n"), 2)
                }
            }
            Self::Two => {
                let insert =
                    |k: i64| format!("INSERT INTO truth (n, k) VALUES ({}, {k})", first + k);
                let text = format!("{}; {}", insert(0), insert(100));
                Traits {
                    several: kind != Kind::Postgres,
                    unprepared: true,
                    ..failing(text)
                }
            }
            Self::LockRefused if kind != Kind::SqliteFile => {
                failing("SELECT id FROM locked WHERE id = 1 FOR UPDATE NOWAIT".to_owned())
            }
            Self::Timeout if kind == Kind::MySql => failing(format!(
                "SET STATEMENT max_statement_time = 0.02 FOR \
                 INSERT INTO truth (n, k) SELECT {first}, SLEEP(n) FROM (SELECT 0 AS n UNION SELECT 30) AS numbers"
            )),
            Self::Timeout if kind == Kind::Postgres => {
                let insert =
                    format!("INSERT INTO truth (n, k) SELECT {first}, 0 FROM pg_sleep(30)");
                let text = format!("SET LOCAL statement_timeout = 20; {insert}");
                Traits {
                    unprepared: true,
                    inside: true,
                    ..failing(text)
                }
            }
            Self::LockWait if kind == Kind::MySql => failing(format!(
                "SET STATEMENT innodb_lock_wait_timeout = 1 FOR INSERT INTO truth (n, k) VALUES ({first}, 50)"
            )),
            Self::LockWait if kind == Kind::Postgres => {
                let insert =
                    format!("INSERT INTO truth (n, k) VALUES ({first}, 0), ({first} + 1, 50)");
                let text = format!("SET LOCAL lock_timeout = 20; {insert}");
                Traits {
                    unprepared: true,
                    inside: true,
                    ..failing(text)
                }
            }
            Self::Shared(row) => {
                let insert = format!(
                    "INSERT INTO truth (n, k) VALUES ({first}, 0), ({first} + 1, {})",
                    50 + row
                );
                Traits {
                    must_work: false,
                    ..working(insert, 2)
                }
            }
            Self::Skewed => {
                let insert =
                    format!("INSERT INTO truth (n, k) SELECT {first}, 0 * count(*) FROM truth");
                Traits {
                    must_work: false,
                    ..working(insert, 1)
                }
            }
            Self::Special(place) => special(kind, first).into_iter().nth(place)?,
            Self::Deferred | Self::LockRefused | Self::Timeout | Self::LockWait => return None,
        })
    }
}

/// What only this kind of database has.
pub fn special(kind: Kind, first: i64) -> Vec<Traits> {
    let doubtful = |sql: &str| Traits {
        several: true,
        ends: true,
        ..working(sql.to_owned(), 0)
    };
    match kind {
        Kind::MySql => {
            let at_once = |sql: &str| Traits {
                unprepared: true,
                ..doubtful(&format!("EXECUTE IMMEDIATE '{sql}'"))
            };
            let prepared = |sql: &str| {
                let text = format!("PREPARE some FROM '{sql}'; EXECUTE some");
                Traits {
                    unprepared: true,
                    ..doubtful(&text)
                }
            };
            let opening = |sql: &str| Traits {
                must_work: false,
                ..at_once(sql)
            };
            // Alone it fails, and is rolled back.
            let leaving = |sql: String| Traits {
                must_work: false,
                ends: true,
                ..working(sql, 1)
            };
            vec![
                failing("CALL selects_and_fails()".to_owned()),
                Traits {
                    several: true,
                    ..failing(format!("CALL inserts_and_fails({first})"))
                },
                Traits {
                    rows: 2,
                    ..doubtful(&format!("CALL commits({first})"))
                },
                doubtful(&format!("CALL rolls_back({first})")),
                leaving(format!("CALL opens({first})")),
                leaving(format!("CALL keeps({first})")),
                at_once("COMMIT"),
                at_once("ROLLBACK"),
                opening("START TRANSACTION"),
                at_once("SET autocommit = 0"),
                at_once("SET completion_type = 1"),
                at_once("SET completion_type = 2"),
                prepared("COMMIT AND CHAIN"),
                prepared("ROLLBACK"),
                prepared("SET @@session.autocommit = off"),
            ]
            .into_iter()
            .map(|known| {
                if known.sql.contains("CHAIN") {
                    Traits {
                        must_work: false,
                        ..known
                    }
                } else {
                    known
                }
            })
            .collect()
        }
        Kind::Postgres => vec![
            Traits {
                must_work: false,
                rows: 2,
                ..doubtful(&format!("CALL commits({first})"))
            },
            Traits {
                must_work: false,
                ..doubtful(&format!("CALL rolls_back({first})"))
            },
            Traits {
                several: true,
                ..failing(format!("CALL commits_and_fails({first})"))
            },
            Traits {
                must_work: false,
                ..doubtful("DO 'BEGIN COMMIT; END'")
            },
            failing(format!(
                "SELECT inserts_and_fails({first}) FROM generate_series(1, 3)"
            )),
        ],
        _ => {
            let values = format!("({first}, 0), ({first} + 1, 0), ({first}, 0)");
            let full = "INSERT INTO filler VALUES (zeroblob(9000000))";
            let ending = |sql: String| Traits {
                ends: true,
                ..failing(sql)
            };
            vec![
                ending(format!(
                    "INSERT INTO truth (n, k) VALUES ({first}, 0), ({first} + 1, 78)"
                )),
                ending(format!(
                    "INSERT OR ROLLBACK INTO truth (n, k) VALUES {values}"
                )),
                ending(format!(
                    "INSERT INTO truth (n, k) VALUES {values} RETURNING n"
                )),
                ending(format!(
                    "INSERT INTO only_once VALUES ({first}), ({first}) RETURNING n"
                )),
                ending(full.to_owned()),
            ]
        }
    }
}

fn working(sql: String, rows: i64) -> Traits {
    Traits {
        sql,
        rows,
        must_fail: false,
        must_work: true,
        several: false,
        ends: false,
        unprepared: false,
        inside: false,
    }
}

fn failing(sql: String) -> Traits {
    Traits {
        must_fail: true,
        must_work: false,
        ..working(sql, 0)
    }
}

/// What makes the tables and what is stored beside them.
pub fn schema(kind: Kind) -> Vec<&'static str> {
    match kind {
        Kind::MySql => vec![
            "CREATE TABLE truth (n bigint PRIMARY KEY, k integer NOT NULL CHECK (k < 100)) ENGINE=InnoDB",
            "CREATE TABLE locked (id integer PRIMARY KEY) ENGINE=InnoDB",
            "INSERT INTO locked VALUES (1)",
            "CREATE TABLE shared (id integer PRIMARY KEY, hits integer NOT NULL DEFAULT 0) ENGINE=InnoDB",
            "INSERT INTO shared (id) VALUES (1), (2), (3)",
            "CREATE TRIGGER refuses BEFORE INSERT ON truth FOR EACH ROW BEGIN \
             IF NEW.k = 77 THEN SIGNAL SQLSTATE '45000'; END IF; \
             IF NEW.k = 50 THEN UPDATE locked SET id = id; END IF; \
             IF NEW.k BETWEEN 51 AND 53 THEN UPDATE shared SET hits = hits + 1 WHERE id = NEW.k - 50; END IF; END",
            "CREATE PROCEDURE selects_and_fails() BEGIN SELECT 1 UNION SELECT 2; SIGNAL SQLSTATE '45000'; END",
            "CREATE PROCEDURE inserts_and_fails(IN first bigint) \
             BEGIN INSERT INTO truth VALUES (first, 0); SELECT 1; SIGNAL SQLSTATE '45000'; END",
            "CREATE PROCEDURE commits(IN first bigint) \
             BEGIN INSERT INTO truth VALUES (first, 0); COMMIT; INSERT INTO truth VALUES (first + 1, 0); SELECT 1; END",
            "CREATE PROCEDURE rolls_back(IN first bigint) \
             BEGIN SELECT 1; START TRANSACTION; INSERT INTO truth VALUES (first, 0); ROLLBACK; END",
            "CREATE PROCEDURE opens(IN first bigint) BEGIN START TRANSACTION; INSERT INTO truth VALUES (first, 0); END",
            "CREATE PROCEDURE keeps(IN first bigint) BEGIN SET autocommit = 0; INSERT INTO truth VALUES (first, 0); END",
        ],
        Kind::Postgres => vec![
            "CREATE TABLE truth (n bigint PRIMARY KEY, k integer NOT NULL CHECK (k < 100), \
             parent integer REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)",
            "CREATE TABLE locked (id integer PRIMARY KEY)",
            "INSERT INTO locked VALUES (1)",
            "CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN IF NEW.k = 77 THEN RAISE EXCEPTION ''refused''; END IF; \
              IF NEW.k = 50 THEN UPDATE locked SET id = id; END IF; \
              IF NEW.k BETWEEN 51 AND 53 THEN UPDATE shared SET hits = hits + 1 WHERE id = NEW.k - 50; END IF; \
              RETURN NEW; END'",
            "CREATE TABLE shared (id integer PRIMARY KEY, hits integer NOT NULL DEFAULT 0)",
            "INSERT INTO shared (id) VALUES (1), (2), (3)",
            "CREATE TRIGGER refuses BEFORE INSERT ON truth FOR EACH ROW EXECUTE FUNCTION refuses()",
            "CREATE PROCEDURE commits(first bigint) LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO truth VALUES (first, 0); COMMIT; INSERT INTO truth VALUES (first + 1, 0); END'",
            "CREATE PROCEDURE rolls_back(first bigint) LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO truth VALUES (first, 0); ROLLBACK; END'",
            "CREATE PROCEDURE commits_and_fails(first bigint) LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO truth VALUES (first, 0); COMMIT; RAISE EXCEPTION ''failed''; END'",
            "CREATE FUNCTION inserts_and_fails(first bigint) RETURNS bigint LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO truth VALUES (first, 0); IF random() > 2 THEN RETURN 1; END IF; RAISE EXCEPTION ''failed''; END'",
        ],
        _ => vec![
            "CREATE TABLE truth (n integer PRIMARY KEY, k integer NOT NULL CHECK (k < 100), \
             parent integer REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)",
            "CREATE TABLE only_once (n integer UNIQUE ON CONFLICT ROLLBACK)",
            "CREATE TABLE filler (bytes blob)",
            "CREATE TRIGGER refuses BEFORE INSERT ON truth WHEN NEW.k = 77 BEGIN SELECT RAISE(ABORT, 'refused'); END",
            "CREATE TRIGGER ends BEFORE INSERT ON truth WHEN NEW.k = 78 BEGIN SELECT RAISE(ROLLBACK, 'ended'); END",
        ],
    }
}
