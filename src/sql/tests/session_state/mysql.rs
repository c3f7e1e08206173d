use super::*;

#[test]
fn mysql_locks_and_the_rest_are_told_apart() {
    assert_changes(
        MySql,
        Locks,
        &[
            "select get_lock('a', 1)",
            "do get_lock('a', 1)",
            "select `get_lock`('a', 1)",
            "lock tables t write",
            "unlock tables",
            "flush tables with read lock",
            "select 1; lock tables t write",
        ],
    );
    assert_changes(
        MySql,
        Beyond,
        &[
            "set @a = 1",
            "set sql_mode = ''",
            "set names utf8mb4",
            "set session time_zone = '+01:00'",
            "set role r",
            "use other",
            "select @a := 1",
            "update t set a = (@n := @n + 1)",
            "select 1 into @a",
            "select 1, 2 into @a, @b",
            "load data infile 'x' into table t (@a)",
            "create temporary table t (a int)",
            "create or replace temporary table t (a int)",
            "drop temporary table t",
            "drop prepare p",
            "prepare p from 'select 1'",
            "deallocate prepare p",
            "execute p",
            "execute immediate 'set @a = 1'",
            "call p()",
            "handler t open",
            "get diagnostics @a = number",
            "backup stage start",
            "if 1 then set @a = 1; end if",
            "select get_lock('a', 1), @a := 1",
            "lock tables t read; set @a = 1",
        ],
    );
    for text in [
        "create /*!999999 or */ temporary table t (a int)",
        "/*!999999 select */ set @a = 1",
        "set /*! names utf8 */ @a = 1",
    ] {
        assert_eq!(change(MySql, text), Beyond, "{text}");
    }
    assert_changes(
        MySql,
        Change::None,
        &[
            "select * from item where name = ?",
            "select @@version, @a",
            "select sql_no_cache * from t",
            "update t set locked = 1, lock_until = now()",
            "insert into t values ('a := @b', 'get_lock(1)')",
            "replace into t values (1)",
            "set statement max_statement_time = 1 for select 1",
            "create table t (a int)",
            "create user a@b",
            "alter table t add b int",
            "do 1",
            "do release_lock('a')",
            "kill query 1",
            "show variables",
            "load data infile 'x' into table t",
            "select 1 into outfile 'x'",
            "",
        ],
    );
}
