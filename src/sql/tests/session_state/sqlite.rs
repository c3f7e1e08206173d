use super::*;

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
