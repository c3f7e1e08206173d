mod property;

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use crate::sql::{
    Change::{self, Beyond, Locks, Session, Transaction},
    classify,
};

fn change(backend: DbBackend, sql: &str) -> Change {
    classify(backend, sql).change
}

/// What stands around a statement and changes nothing.
fn dressed(backend: DbBackend, sql: &str) -> Vec<String> {
    let mut texts = vec![
        sql.to_owned(),
        sql.to_uppercase(),
        format!("  {sql} ; "),
        format!("\r\n\t{sql}\r\n"),
        format!(";;; {sql}"),
        format!("SELECT 1; {sql}; SELECT 2"),
        format!("{sql}; INSERT INTO t VALUES ('it''s')"),
        format!("/* it's */ {sql} -- \" done"),
        format!("INSERT INTO t VALUES ('/*'); {sql}; -- '*/"),
    ];
    if backend == MySql {
        texts.extend([
            format!("/*!50000 {sql} */"),
            format!("/*M! {sql} */; SELECT 1"),
        ]);
    }
    texts
}

fn assert_changes(backend: DbBackend, expected: Change, texts: &[&str]) {
    for sql in texts {
        for text in dressed(backend, sql) {
            assert_eq!(change(backend, &text), expected, "{backend:?}: {text}");
        }
    }
}

#[test]
fn postgres_settings_locks_and_temporary_objects_are_seen() {
    assert_changes(
        Postgres,
        Session,
        &[
            "set search_path = a",
            "set session search_path = a",
            "set role bob",
            "set session authorization bob",
            "set time zone 'UTC'",
            "set session characteristics as transaction read only",
            "reset all",
            "reset role",
            "listen a",
            "unlisten *",
            "do $$ begin end $$",
            "call p()",
            "execute p",
            "discard temp",
            "declare c cursor with hold for select 1",
            "create temp table t (a int)",
            "create temporary view v as select 1",
            "create local temp table t (a int)",
            "create or replace temp view v as select 1",
            "create temp sequence s",
            "create table pg_temp.t (a int)",
            "create function pg_temp.f() returns int language sql as 'select 1'",
            "select 1 as a into temp t",
            "select 1 as a into temporary table t",
            "explain analyze create temp table t as select 1",
            "select pg_advisory_lock(1)",
            "select pg_advisory_lock_shared(1)",
            "update pg_settings set setting = '9216' where name = 'work_mem'",
            "UPDATE pg_catalog.\"pg_settings\" SET setting = 1",
            "select query_to_xml('select 1', true, true, '')",
            "select * from ts_stat('select 1')",
            "select pg_try_advisory_lock(1, 2)",
            "select pg_catalog.pg_try_advisory_lock_shared(1)",
            "select pg_advisory_unlock(1)",
            "select \"pg_advisory_lock\"(1)",
            "with a as (select pg_advisory_lock(1)) select * from a",
            "update t set a = 1 where pg_try_advisory_lock(a)",
            "select set_config('a.b', 'c', false)",
            "select set_config('a.b', 'true', $1)",
            "select set_config('a.b', f(1, true, true), 'f')",
            "insert into t select set_config('a.b', 'c', false)",
            "select set_config('a.b', 'c', true), set_config('a.b', 'c', false)",
            "select U&\"set\\005fconfig\"('a.b', 'c', false)",
            "some unknown statement",
        ],
    );
    assert_changes(
        Postgres,
        Beyond,
        &[
            "prepare p as select 1",
            "deallocate all",
            "discard all",
            "load 'x'",
            "select dblink_connect('a', 'b')",
            "select pg_replication_origin_session_setup('a')",
            "set a = 1; prepare p as select 1",
        ],
    );
    assert_changes(
        Postgres,
        Transaction,
        &[
            "set local search_path = a",
            "select set_config('a.b', $1, true)",
            "select set_config('a.b', coalesce((array[1, 2])[1]::text, 'x'), true)",
            "with a as (select set_config('a.b', 'c', true)) select 1",
        ],
    );
}

#[test]
fn what_leaves_nothing_behind_on_postgres_is_told() {
    assert_changes(
        Postgres,
        Change::None,
        &[
            "select * from item where id = $1",
            "insert into item (name) values ($1) returning id",
            "update item set temperature = 1, config = 2, advisory_note = 3",
            "delete from item where template_id = 1",
            "select 'set_config', 'pg_advisory_lock(1)', $$ set a = 1; listen a $$",
            "select 1 -- set_config\n",
            "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
            "select 1 as \"temp\", 2 as hold",
            "set transaction read only",
            "set constraints all deferred",
            "create table t (a int)",
            "create index concurrently i on t (a)",
            "alter role bob set search_path = a",
            "merge into t using s on true when matched then do nothing",
            "insert into t values (1) on conflict (id) do update set a = 1",
            "truncate t",
            "lock table t",
            "notify a",
            "copy t to stdout",
            "declare c cursor for select 1",
            "explain select 1",
            "show all",
            "values (1)",
            "(select 1)",
            "select nextval('s'), a & b from t",
            "",
        ],
    );
}

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

#[test]
fn sqlite_pragmas_and_temporary_objects_are_seen() {
    assert_changes(
        Sqlite,
        Session,
        &[
            "pragma foreign_keys = off",
            "pragma foreign_keys(off)",
            "pragma main.cache_size = 1",
            "pragma \"foreign_keys\" = 1",
            "explain pragma foreign_keys = off",
            "explain query plan pragma foreign_keys = off",
            "attach 'x' as y",
            "detach y",
            "create temp table t (a)",
            "create temporary view v as select 1",
            "create temp trigger x after insert on t begin select 1; end",
            "create table temp.t (a)",
            "create table \"temp\".t (a)",
            "create table if not exists [temp].t (a)",
            "create table 'temp'.t (a)",
            "create virtual table temp.f using fts5(a)",
            "select load_extension('x')",
        ],
    );
    assert_changes(
        Sqlite,
        Change::None,
        &[
            "select * from item where id = ?",
            "insert into item values (1, 'pragma a = 1', \"attach\")",
            "pragma foreign_keys",
            "pragma table_info(item)",
            "pragma main.index_list('item')",
            "pragma foreign_key_check",
            "create table t (a decimal default 1.5, temp text)",
            "create index temp on t (temp)",
            "drop table t",
            "alter table t rename to temporary",
            "vacuum",
            "explain query plan select 1",
            "replace into t values (1)",
            "",
        ],
    );
}

#[test]
fn what_cannot_be_read_counts_as_changed() {
    for (backend, sql) in [
        (Postgres, "truncate t; select 'a"),
        (Postgres, "analyze /* t"),
        (MySql, "truncate t; select `a"),
        (MySql, "select 1 /*!999999 ' */; -- '"),
        (Sqlite, "drop table [t"),
    ] {
        assert!(change(backend, sql) >= Session, "{backend:?}: {sql}");
    }
}
