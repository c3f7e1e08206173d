use super::*;

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
