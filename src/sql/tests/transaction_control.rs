use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    prop_assert, prop_assert_eq, proptest,
    sample::select,
};
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
fn postgres_control_is_found() {
    assert_control(
        Postgres,
        &[
            (
                Begin,
                &[
                    "begin",
                    "begin work",
                    "start transaction",
                    "begin isolation level serializable",
                ],
            ),
            (Commit, &["commit", "end", "commit work", "end and chain"]),
            (Rollback, &["rollback", "abort", "rollback work and chain"]),
            (
                Savepoint,
                &[
                    "savepoint a",
                    "release a",
                    "release savepoint a",
                    "rollback to a",
                    "rollback work to a",
                ],
            ),
            (
                TwoPhase,
                &[
                    "prepare transaction 'x'",
                    "commit prepared 'x'",
                    "rollback prepared 'x'",
                ],
            ),
        ],
    );
}

#[test]
fn mysql_control_is_found() {
    assert_control(
        MySql,
        &[
            (
                Begin,
                &[
                    "begin",
                    "begin work",
                    "start transaction",
                    "begin not atomic select 1; end",
                ],
            ),
            (
                Begin,
                &["create table t (a int) engine = innodb start transaction"],
            ),
            (
                Begin,
                &["create or replace table t (a int) start transaction comment = 'x'"],
            ),
            (
                Commit,
                &[
                    "commit",
                    "commit work",
                    "commit and chain",
                    "set statement max_statement_time=1 for commit",
                ],
            ),
            (Rollback, &["rollback", "rollback work"]),
            (
                Savepoint,
                &[
                    "savepoint a",
                    "release savepoint a",
                    "rollback to a",
                    "rollback work to savepoint a",
                ],
            ),
            (TwoPhase, &["xa start 'x'", "xa commit 'x'"]),
            (
                SetTransaction,
                &[
                    "set transaction read only",
                    "set autocommit=0",
                    "set @@autocommit = 0",
                    "set session autocommit = 0",
                    "set @@session.autocommit := 1",
                    "set @@session . `autocommit`=1",
                    "set `autocommit`=1",
                    "set a=1, @@autocommit=0",
                    "set @x = concat(1, 2), completion_type=1",
                    "set names utf8mb4, autocommit=0",
                    "set @@transaction_isolation='serializable'",
                    "set statement a=1 for set statement b=substring('x' from 1 for 2) for set autocommit=0",
                ],
            ),
        ],
    );
}

#[test]
fn sqlite_control_is_found() {
    assert_control(
        Sqlite,
        &[
            (Begin, &["begin", "begin immediate", "begin transaction"]),
            (
                Commit,
                &["commit", "end", "end transaction", "commit transaction"],
            ),
            (
                Rollback,
                &["rollback", "rollback transaction", "rollback transaction x"],
            ),
            (
                Savepoint,
                &[
                    "savepoint a",
                    "release a",
                    "rollback to a",
                    "rollback transaction to savepoint a",
                ],
            ),
        ],
    );
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
fn quotes_of_postgres_are_read_as_it_does() {
    assert_all(
        Postgres,
        Effect::None,
        &[
            "SELECT $$; commit; $$; SELECT 1",
            "SELECT $a$ $$; commit; $b$; commit; $a$; SELECT 1",
            "SELECT $a$b$; commit; $a$",
            "SELECT $é$; commit; $é$; SELECT 1",
            "SELECT E'\\'; commit; --'; SELECT 1",
            "SELECT e'a'\n'\\'; commit; --'; SELECT 1",
            "SELECT e'a' -- x\n  '\\'; commit; --'; SELECT 1",
            "SELECT 'a\\'; SELECT '; commit; --'",
            "SELECT \"a\\\"; SELECT \"; commit; --\"",
            "/* /* */ ; commit; */ SELECT 1",
            "SELECT 1 AS $1; SELECT $2",
        ],
    );
    assert_all(
        Postgres,
        Effect::Control(Commit),
        &[
            "SELECT 1 AS a$$; commit; --$$",
            "SELECT 1 AS é$$; commit; --$$",
            "SELECT 'a\\'; commit; --'",
            "SELECT n'a\\'; commit; --'",
            "SELECT namee'\\'; commit; --'",
            "SELECT E'\\\\'; commit; --'",
            "SELECT 'a' -- x\n'\\'; commit; --'",
            "SELECT $1 - $2; commit; SELECT $1",
            "SELECT 1e'\\'' ; commit; --'",
            "SELECT 1$$ ' $$; commit; --'",
            "/* /* */ */ commit",
            "-- x\rcommit",
            "/*! select */ commit",
            "SELECT 1 # 2; commit",
        ],
    );
    assert_all(
        Postgres,
        Unknown,
        &[
            "SELECT 1; SELECT 'a",
            "SELECT $$; commit",
            "SELECT \"; commit",
            "/* commit",
            "SELECT E'\\'; commit",
        ],
    );
}

#[test]
fn quotes_of_mysql_are_read_as_it_does() {
    assert_all(
        MySql,
        Effect::None,
        &[
            "SELECT 'a\\'; commit; --'; SELECT 1",
            "SELECT \"a\\\"; commit; --\"; SELECT 1",
            "SELECT `a``; commit; --`; SELECT 1",
            "SELECT 1 # ; commit",
            "SELECT 1 -- ; commit",
            "SELECT 1 --\t; commit",
            "SELECT 1 /*+ NO_INDEX(t) ; commit */; SELECT 2",
            "SELECT /*!40001 SQL_NO_CACHE */ * FROM t",
            "/*!40101 SET NAMES utf8 */; SELECT 1",
            "SELECT /*m!; commit */ 1; SELECT 1",
        ],
    );
    assert_all(
        MySql,
        Effect::Control(Commit),
        &[
            "SELECT `a\\`; commit; --`",
            "SELECT 'a\\\\'; commit; --'",
            "SELECT 5--4; commit",
            "SELECT 1 --; commit",
            "/* /* */ commit",
            "SELECT $$; commit; --$$",
            "SELECT 1 # x\n; commit",
        ],
    );
    assert_all(
        MySql,
        Unknown,
        &[
            "SELECT 1; SELECT 'a\\'",
            "SELECT 1; SELECT 'a\\",
            "SELECT `; commit",
            "SELECT 1; /*",
        ],
    );
}

#[test]
fn quotes_of_sqlite_are_read_as_it_does() {
    assert_all(
        Sqlite,
        Effect::None,
        &[
            "SELECT 1 AS [a; commit; --]; SELECT 1",
            "SELECT 1 AS `a``; commit; --`; SELECT 1",
            "SELECT 'a\\'; SELECT '; commit; --'",
            "SELECT 1; /* commit",
            "-- x\rcommit",
            "SELECT :a, @b, $c, ?1; SELECT 1",
        ],
    );
    assert_all(
        Sqlite,
        Effect::Control(Commit),
        &[
            "SELECT 'a\\'; commit; --'",
            "SELECT $a('); commit; --'",
            "SELECT @a::b('); commit; --'",
            "\u{feff}SELECT \u{feff}$a('); commit; --'",
            "SELECT $ ' ' ; commit; --'",
            "SELECT [a[]; commit; --]",
            "/* /* */ commit",
            "SELECT 1;\u{feff}commit",
        ],
    );
    assert_all(
        Sqlite,
        Unknown,
        &["SELECT 1; SELECT 'a", "SELECT [; commit"],
    );
}

#[test]
fn executable_comments_are_sql() {
    assert_all(
        MySql,
        Effect::Control(Commit),
        &[
            "/*!commit*/",
            "/*! commit */;",
            "/*!50100 commit */",
            "/*!100100 commit */",
            "/*M!commit*/",
            "/*M!100100 commit */",
            "/*!999999 select */ commit",
            "/*!999999 select */ /*!50000 commit */",
            "/*!*/commit",
            "/*!50100*/commit",
            "/*! /* commit */ commit */",
            "/*M! select /* */ commit; -- */",
            "SELECT 1 /*! ; commit */",
            "SELECT 1 /*M! */; commit",
            "com/**/; /*!commit*/",
        ],
    );
    assert_all(
        MySql,
        Effect::Control(Begin),
        &["/*!50000 start */ transaction", "start /*! transaction */"],
    );
    assert_all(
        MySql,
        Effect::Control(Begin),
        &[
            "create table t (a int) /*!80021 start transaction */",
            "/*! create */ table t (a int) start transaction",
        ],
    );
    assert_all(
        MySql,
        CommitsImplicitly,
        &[
            "create table t (start int, transaction int)",
            "create table t (a int) comment = 'start transaction'",
        ],
    );
    assert_all(
        MySql,
        Effect::Control(SetTransaction),
        &[
            "set /*! transaction */ read only",
            "/*!set autocommit=0*/",
            "/*! set */ autocommit = 0",
        ],
    );
    assert_all(
        MySql,
        Unknown,
        &[
            "SELECT 1 /*!999999 ' */; commit; -- '",
            "SELECT 1; SELECT 1 /*! ",
            "set @a = 1 /*!999999 , @x = */ , b = 0",
        ],
    );
    assert_all(
        MySql,
        CommitsImplicitly,
        &[
            "drop /*!40005 temporary */ table t",
            "/*!50000 create */ temporary table t (a int)",
        ],
    );
}

#[test]
fn statements_of_mysql_that_commit_are_told() {
    assert_all(
        MySql,
        CommitsImplicitly,
        &[
            "CREATE TABLE t (a int)",
            "CREATE OR REPLACE TABLE t (temporary int)",
            "CREATE TEMPORARY SEQUENCE s",
            "CREATE UNIQUE INDEX i ON t (a)",
            "DROP TABLE IF EXISTS t",
            "ALTER TABLE t ADD b int",
            "TRUNCATE t",
            "RENAME TABLE a TO b",
            "GRANT ALL ON *.* TO u",
            "REVOKE r FROM u",
            "LOCK TABLES t READ",
            "UNLOCK TABLES",
            "FLUSH TABLES",
            "ANALYZE LOCAL TABLE t",
            "ANALYZE TABLE t",
            "CHECK TABLE t",
            "OPTIMIZE TABLE t",
            "REPAIR TABLE t",
            "CACHE INDEX t IN c",
            "LOAD INDEX INTO CACHE t",
            "INSTALL PLUGIN p SONAME 'p'",
            "UNINSTALL PLUGIN p",
            "START SLAVE",
            "STOP REPLICA",
            "RESET MASTER",
            "CHANGE MASTER TO MASTER_HOST = 'x'",
            "BACKUP STAGE START",
            "SET PASSWORD = 'x'",
            "SET DEFAULT ROLE NONE",
            "SELECT 1; DROP TABLE t; CALL p()",
            "SET STATEMENT a = 1 FOR DROP TABLE t",
        ],
    );
    assert_all(
        MySql,
        Effect::None,
        &[
            "CREATE TEMPORARY TABLE t (a int)",
            "CREATE OR REPLACE TEMPORARY TABLE t (a int)",
            "DROP TEMPORARY TABLE t",
            "DROP TEMPORARY TABLES a, b",
            "DROP PREPARE p",
            "PREPARE p FROM 'commit'",
            "ANALYZE SELECT 1",
            "ANALYZE FORMAT=JSON SELECT 1",
            "CHECKSUM TABLE t",
            "LOAD DATA INFILE 'x' INTO TABLE t",
            "SET @x = @@autocommit",
            "SET @autocommit = 1, @x = (@@autocommit = 1)",
            "SET SESSION TRANSACTION READ ONLY",
            "SET ROLE NONE",
            "SET STATEMENT a = 1 FOR SELECT 1",
            "TABLE t",
            "DO 1",
        ],
    );
    assert_all(
        MySql,
        Unknown,
        &[
            "CALL p()",
            "EXECUTE p",
            "EXECUTE IMMEDIATE 'commit'",
            "IF 1 THEN COMMIT; END IF",
            "l: SELECT 1",
            "BINLOG ''",
            "x",
        ],
    );
    for backend in [Postgres, Sqlite] {
        assert_all(
            backend,
            Effect::None,
            &["CREATE TABLE t (a int)", "DROP TABLE t", "CALL p()", "x"],
        );
    }
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

fn backend() -> impl Strategy<Value = DbBackend> {
    select(&ALL[..])
}

/// Harmless on each backend, with control words where they control nothing.
fn harmless() -> impl Strategy<Value = String> {
    let literal = "[ a-z;/*!$-]{0,12}";
    let word = select(vec![
        "commit",
        "begin",
        "rollback",
        "end",
        "savepoint a",
        "start transaction",
        "set autocommit=0",
    ]);
    (literal, word, 0..7_usize).prop_map(|(noise, word, form)| {
        let quoted = format!("{noise};{word};{noise}").replace("*/", "");
        match form {
            0 => format!("select '{quoted}'"),
            1 => format!("INSERT INTO t VALUES ('it''s {quoted}', 1)"),
            2 => format!("select 1 as \"{quoted}\""),
            3 => format!("update t set a = 1 -- {quoted}\n"),
            4 => format!(
                "/* {} */ delete from t",
                quoted.replace("/*", "").replace('/', "")
            ),
            5 => "select case when a then 1 end as endings, t.commit from begin_date".to_owned(),
            _ => String::new(),
        }
    })
}

proptest! {
    #[test]
    fn any_text_has_an_effect(backend in backend(), sql in any::<String>()) {
        effect(backend, &sql);
    }

    #[test]
    fn any_pieces_of_sql_have_an_effect(
        backend in backend(),
        pieces in vec(
            select(vec![
                "'", "\"", "`", "[", "]", "$$", "$a$", "$", "\\", "/*", "*/", "/*!", "/*M!50000", "--", "#", "\n", "\r",
                ";", "(", ")", "@", ",", "=", ":", "é", "\u{feff}", "\u{a0}", "\0", " ", "e", "E'", "create", "function",
                "trigger", "begin", "atomic", "end", "case", "if", "set", "statement", "for", "rollback", "to", "1",
            ]),
            0..40,
        ),
    ) {
        effect(backend, &pieces.concat());
        effect(backend, &pieces.join(" "));
    }

    #[test]
    fn control_between_harmless_statements_is_found(
        backend in backend(),
        before in vec(harmless(), 0..4),
        after in vec(harmless(), 0..4),
        word in select(vec!["commit", "BEGIN", "Rollback", "savepoint a", "RELEASE SAVEPOINT a", "rollback to a"]),
        space in select(vec!["", " ", "\r\n", "\t", "/**/", "/* ' */", "-- '\n", "\u{feff}"]),
    ) {
        let statements: Vec<_> = before.into_iter().chain([format!("{space}{word}{space}")]).chain(after).collect();
        let sql = statements.join(";");
        prop_assert!(matches!(effect(backend, &sql), Effect::Control(_)), "{sql}");
    }

    #[test]
    fn harmless_texts_are_let_through(backend in backend(), statements in vec(harmless(), 0..6)) {
        let sql = statements.join(";");
        prop_assert_eq!(effect(backend, &sql), Effect::None, "{}", sql);
    }

    #[test]
    fn quoted_control_is_let_through_on_postgres(
        tag in "[a-z_]{0,3}",
        body in "[a-z ';\"/*-]{0,20}",
        end in prop_oneof![Just(""), Just("; select 2")],
    ) {
        let sql = format!("select ${tag}${body};commit;{body}${tag}${end}");
        prop_assert_eq!(effect(Postgres, &sql), Effect::None, "{}", sql);
    }
}
