mod mysql;
mod mysql_lexer;
mod postgres;
mod property;
mod sqlite;

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use crate::sql::{
    Effect::{self, CommitsImplicitly, Unknown},
    TransactionControl::{self, Begin, Commit, Rollback, Savepoint, SetTransaction, TwoPhase},
    classify,
};

fn effect(backend: DbBackend, sql: &str) -> Effect {
    classify(backend, sql).effect
}

const ALL: [DbBackend; 3] = [MySql, Postgres, Sqlite];

fn assert_all(backend: DbBackend, expected: Effect, texts: &[&str]) {
    for sql in texts {
        assert_eq!(effect(backend, sql), expected, "{backend:?}: {sql}");
    }
}

fn assert_control(backend: DbBackend, table: &[(TransactionControl, &[&str])]) {
    for (control, texts) in table {
        assert_all(backend, Effect::Control(*control), texts);
        for sql in *texts {
            for text in [
                sql.to_uppercase(),
                format!("  {sql} ; "),
                format!("{sql};"),
                format!("\r\n\t\x0c{sql}\r\n"),
                format!("\u{feff}{sql}"),
                format!("\u{a0}\u{3000}{sql}"),
                format!(";;; {sql}"),
                format!("SELECT 1;{sql};SELECT 2"),
                format!("/**/{}/**/", sql.replace(' ', "/**/")),
                format!("-- it's\n{sql} -- \"done"),
                format!("/* it's */ {sql} /* \" */"),
                format!("SELECT 'a'';b', \"c\"\"d\", 1;\n{sql}"),
                format!("INSERT INTO t VALUES ('/*'); {sql}; --'*/"),
            ] {
                let found = effect(backend, &text);
                assert!(
                    matches!(found, Effect::Control(_)),
                    "{backend:?}: {text}: {found:?}"
                );
            }
        }
    }
}

#[test]
fn ordinary_statements_are_let_through() {
    for backend in ALL {
        assert_all(
            backend,
            Effect::None,
            &[
                "",
                " ;; ",
                "-- commit",
                "/* commit */",
                "SELECT 1",
                "select 1;\r\n",
                "(SELECT 1) UNION (SELECT 2)",
                "((select 1));",
                "INSERT INTO t VALUES ('a;b; commit; --')",
                "INSERT INTO t VALUES ('it''s'';commit;--')",
                "SELECT CASE WHEN 1 THEN 2 END; SELECT 1 AS commit",
                "SELECT commits, begin_date FROM \"commit\"; SELECT 2",
                "SELECT 1 /* ; commit */; -- ; commit",
                "UPDATE t SET a = 'begin'; DELETE FROM t",
                "WITH x AS (SELECT 1) SELECT * FROM x; VALUES (1)",
                "EXPLAIN SELECT 1",
            ],
        );
    }
    assert_all(
        Postgres,
        Effect::None,
        &[
            "commits",
            "\"commit\"",
            "begin_date",
            "endx",
            "beginé",
            "SET TRANSACTION READ ONLY",
            "DO $$BEGIN COMMIT; END$$",
        ],
    );
    assert_all(
        Sqlite,
        Effect::None,
        &[
            "commits",
            "[commit]",
            "`commit`",
            "EXPLAIN COMMIT",
            "VACUUM",
            "PRAGMA x=1",
        ],
    );
}

#[test]
fn bodies_are_not_run_now() {
    let trigger = "CREATE TEMP TRIGGER IF NOT EXISTS x AFTER INSERT ON t WHEN CASE 1 WHEN 1 THEN 1 END BEGIN \
                   SELECT CASE WHEN 1 THEN 2 END; UPDATE t SET a = 1; END";
    let atomic = "CREATE OR REPLACE FUNCTION f(begin atomic) RETURNS int BEGIN ATOMIC SELECT 1; \
                  SELECT CASE WHEN true THEN 1 END; END";
    let table: [(DbBackend, Effect, &[&str]); 3] = [
        (
            Sqlite,
            Effect::None,
            &[
                trigger,
                "EXPLAIN CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1 AS begin; SELECT 2 AS end; END",
            ],
        ),
        (
            Postgres,
            Effect::None,
            &[atomic, "CREATE PROCEDURE p() BEGIN ATOMIC END"],
        ),
        (
            MySql,
            CommitsImplicitly,
            &[
                "CREATE PROCEDURE p() BEGIN START TRANSACTION; IF 1 THEN COMMIT; END IF; COMMIT; END",
                "CREATE DEFINER = `a`@`b` TRIGGER x BEFORE INSERT ON t FOR EACH ROW BEGIN SET @a = 1; BEGIN END; SET @b = 2; END",
                "CREATE OR REPLACE DEFINER=CURRENT_USER() FUNCTION f() RETURNS int BEGIN \
                 CASE 1 WHEN 1 THEN COMMIT; END CASE; WHILE 0 DO ROLLBACK; END WHILE; RETURN CASE WHEN 1 THEN 2 END; END",
                "ALTER EVENT e DO BEGIN COMMIT; SET autocommit = 0; END",
                "CREATE PROCEDURE p() BEGIN DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; END; COMMIT; END",
                "CREATE PROCEDURE p() l: LOOP SELECT 1; END LOOP",
                "CREATE PROCEDURE p() COMMIT",
            ],
        ),
    ];
    for (backend, expected, texts) in table {
        assert_all(backend, expected, texts);
        for sql in texts {
            let text = format!("{sql}; COMMIT");
            assert_eq!(
                effect(backend, &text),
                Effect::Control(Commit),
                "{backend:?}: {text}"
            );
            let text = format!("{sql};; SELECT 1;");
            assert_eq!(effect(backend, &text), expected, "{backend:?}: {text}");
        }
    }
    assert_all(
        MySql,
        Effect::Control(Commit),
        &[
            "CREATE PROCEDURE p() BEGIN SELECT 1 AS begin; END; COMMIT",
            "CREATE PROCEDURE p() BEGIN SELECT a.case, t.begin FROM t; END; COMMIT; END",
            "CREATE TABLE begin (a int); COMMIT",
        ],
    );
    let named = [
        "CREATE FUNCTION f(begin atomic) RETURNS int RETURN 1; END",
        "CREATE TABLE t (a int); END",
    ];
    assert_all(Postgres, Effect::Control(Commit), &named);
    assert_all(
        Sqlite,
        Effect::Control(Commit),
        &["CREATE TABLE trigger_end (a); END"],
    );
}

#[test]
fn a_long_text_takes_no_time_and_no_stack() {
    for part in [
        "(",
        "/*",
        "/*!",
        "/*! set ",
        "'",
        "$a",
        "$a$",
        "begin atomic ",
        "case ",
        "create or ",
        "e'a'\n",
        "--",
        "set (",
    ] {
        for head in [
            "",
            "x ",
            "create procedure p() ",
            "set statement ",
            "explain ",
        ] {
            let text = format!("{head}{}", part.repeat(200_000 / part.len()));
            for backend in ALL {
                effect(backend, &text);
            }
        }
    }
}
