//! G7, G13: random SQL, sent to real servers. What the crate lets through leaves the transaction alone, and what
//! it takes for harmless leaves nothing behind.
//!
//! `PROPTEST_CASES=20000` makes it a long run.

use proptest::{
    collection::vec,
    prelude::{Strategy, prop_oneof},
    sample::{Index, select},
    test_runner::{Config, TestCaseError, TestRunner},
};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement, TransactionTrait};
use tokio::{runtime::Runtime, time::timeout};
use tower_sea_orm::{Error, Reset, SessionPool};

use crate::support::{
    cases,
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    pool::{assert_whole, pool_with},
    site::BOUND,
    wait::eventually,
};

/// Complete statements, some harmless, some not; and texts that can be around and inside them.
fn pieces(kind: Kind) -> Vec<&'static str> {
    let mut pieces = vec![
        "select 1",
        "select 'a'",
        "select 'it''s'",
        "select 'a;commit;'",
        "select 1 as \"x;commit\"",
        "select 1 as \"a\"\"b\"",
        "select 1 as begin_date",
        "select '\\'",
        "select '\\\\'",
        "select ''",
        "update item set hits = 1 where id = -1",
        "insert into item (name) select 'x' where false",
        "values (1)",
        "(select 1)",
        "with a as (select 1) select * from a",
        "commit",
        "COMMIT",
        "begin",
        "rollback",
        "end",
        "savepoint a",
        "release a",
        "rollback to a",
        "start transaction",
        "abort",
        "commit and chain",
        "/* x */",
        "/* ' */",
        "/* \" */",
        "/* ; */",
        "/* /* */",
        "*/",
        "-- x\n",
        "--\n",
        "-- '\n",
        "--x\n",
        "\n",
        "\t",
        "\r",
        "\u{c}",
        "'",
        "\"",
        "\\",
        "$",
        "(",
        ")",
        ";;",
        ",",
        "1",
        "é",
        "\u{a0}",
        "explain select 1",
        "union select 2",
    ];
    pieces.extend(match kind {
        Kind::Postgres => vec![
            "$$",
            "$a$",
            "$$;commit;$$",
            "select $$a$$",
            "select $a$ $$ ; commit; $a$",
            "select E'\\''",
            "select E'a\\\\'",
            "E'",
            "select e'\\'; commit; --'",
            "select U&'\\0041'",
            "select B'1'",
            "select N'a'",
            "do $$ begin end $$",
            "do $x$ begin null; end $x$",
            "set app.x = 'y'",
            "set local app.x = 'y'",
            "select set_config('app.x', 'y', false)",
            "select set_config('app.x', 'y', true)",
            "select pg_advisory_lock(7)",
            "select pg_try_advisory_xact_lock(7)",
            "create temp table mine (a int)",
            "listen mine",
            "declare c cursor with hold for select 1",
            "declare c cursor for select 1",
            "set transaction read only",
            "reset all",
            "set role pg_monitor",
            "discard temp",
            "prepare p as select 1",
            "deallocate all",
            "execute p",
            "select 1 into temp mine",
            "create function pg_temp.f() returns int begin atomic select 1; end",
            "prepare transaction 'x'",
            "select 1e'\\''",
            "# 2",
            "select \"set_config\"('app.x', 'y', false)",
            "select U&\"set\\005fconfig\"('app.x', 'y', false)",
        ],
        Kind::MySql => vec![
            "/*!",
            "/*M!",
            "/*!50000 commit */",
            "/*!999999 commit */",
            "/*! select 1 */",
            "/*M!100000 begin */",
            "#",
            "# x\n",
            "`",
            "select `name` from item",
            "select 1 as `a;commit`",
            "select \"a\\\"\"",
            "select 'a\\''",
            "set autocommit = 0",
            "set autocommit = 1",
            "set @@session.autocommit = 1",
            "set @x = 'y'",
            "set @@autocommit = 0",
            "set session autocommit = 0",
            "select @x := 'y'",
            "select 'y' into @x",
            "do get_lock('l', 0)",
            "do 1",
            "set statement max_statement_time = 1 for select 1",
            "set statement max_statement_time = 1 for commit",
            "use mysql",
            "set time_zone = '+09:00'",
            "create temporary table mine (a int)",
            "drop temporary table mine",
            "prepare p from 'commit'",
            "execute p",
            "execute immediate 'commit'",
            "execute immediate 'set @x = 1'",
            "begin not atomic commit; end",
            "begin not atomic select 1; end",
            "if 1 then commit; end if",
            "lock tables item write",
            "unlock tables",
            "set transaction read only",
            "call commits()",
            "call sets()",
            "analyze select 1",
            "select 5--4",
            "5--4",
            "create table made (a int)",
        ],
        _ => vec![
            "[",
            "]",
            "select 1 as [a;commit]",
            "`",
            "select 1 as `a``b`",
            "$a(",
            "select $a('x')",
            "@x",
            ":x",
            "?1",
            "select :a::b",
            "#x",
            "create temp table mine (a)",
            "create table temp.mine (a)",
            "create temp trigger tr after insert on main.item begin select 1; end",
            "pragma case_sensitive_like = on",
            "pragma user_version",
            "pragma table_info(item)",
            "explain query plan select 1",
            "explain commit",
            "commit transaction",
            "end transaction",
            "begin immediate",
            "replace into item (id) select 1 where 0",
            "rollback transaction to savepoint a",
            "explain pragma case_sensitive_like = on",
            "pragma read_uncommitted = 1",
        ],
    });
    pieces
}

const CONTROL: [&str; 4] = ["commit", "COMMIT", "rollback", "end"];

/// Quotes and comments, most of them with an end missing.
fn traps(kind: Kind) -> Vec<&'static str> {
    let mut traps = vec![
        "select '",
        "select ''",
        "select '\\'",
        "select '\\\\'",
        "select \"a\"",
        "select 1 as \"",
        "select 1 as \"a\\\"",
        "-- '",
        "-- \"",
        "--'\n",
        "--'",
        "-- \n",
        "/*",
        "*/",
        "/* ' */",
        "/* /* */",
        "/* */ */",
        "select 1 /*",
        "select 1 --",
        "",
        "select 1",
        "'",
        "\"",
        "\n",
    ];
    traps.extend(match kind {
        Kind::Postgres => vec![
            "select $$",
            "$$",
            "select $a$",
            "$a$",
            "select E'\\'",
            "select e'a'\n'\\'",
            "select 1 as a$$",
            "--$$",
            "select 1e'\\'",
        ],
        Kind::MySql => vec![
            "select `",
            "`",
            "select 'a\\'",
            "select \"a\\\"",
            "#",
            "# '",
            "/*!",
            "/*!999999 ",
            "/*M!",
            "select 5--4",
            "-- `",
            "set @a = 1",
        ],
        _ => vec![
            "select [",
            "]",
            "select `",
            "`",
            "select $a('",
            ")",
            "select @a::b('",
            "-- )",
            "--]",
            "explain select 1",
        ],
    });
    traps
}

/// Pieces in a row, with `;` between some, then changed in a few places.
fn text(kind: Kind) -> impl Strategy<Value = String> {
    let pieces = pieces(kind);
    let joint = select(vec![";", ";", ";", "; ", " ", " ", "", "\n"]);
    let row = vec((select(pieces.clone()), joint), 1..6);
    // Control between two pieces that may be the begin and the end of something that hides it, or not.
    let hidden = (
        select(traps(kind)),
        select(CONTROL.to_vec()),
        select(traps(kind)),
    );
    let hidden = hidden
        .prop_map(|(before, control, after)| vec![(before, ";"), (control, ";"), (after, "")]);
    let row = prop_oneof![row, hidden];
    let added = vec((proptest::prelude::any::<Index>(), select(pieces)), 0..3);
    let removed = vec(proptest::prelude::any::<Index>(), 0..2);
    (row, added, removed).prop_map(|(row, added, removed)| {
        let mut text: Vec<char> = row
            .iter()
            .flat_map(|(piece, joint)| piece.chars().chain(joint.chars()))
            .collect();
        for (at, piece) in added {
            let at = at.index(text.len() + 1);
            text.splice(at..at, piece.chars());
        }
        for at in removed {
            if !text.is_empty() {
                text.remove(at.index(text.len()));
            }
        }
        text.into_iter().collect()
    })
}

struct Stage {
    runtime: Runtime,
    kind: Kind,
    test: TestDb,
    db: DatabaseConnection,
    observer: DatabaseConnection,
}

impl Stage {
    fn new(kind: Kind) -> Self {
        let runtime = Runtime::new().unwrap();
        let (test, db, observer) = runtime.block_on(async {
            let test = TestDb::new(kind).await;
            let (db, observer) = (test.connect(2).await, test.observer().await.unwrap());
            if kind == Kind::MySql {
                db.execute_unprepared("CREATE PROCEDURE commits() COMMIT")
                    .await
                    .unwrap();
                db.execute_unprepared("CREATE PROCEDURE sets() SET @x = 'y'")
                    .await
                    .unwrap();
            }
            (test, db, observer)
        });
        Self {
            runtime,
            kind,
            test,
            db,
            observer,
        }
    }

    fn run(
        self,
        default: u32,
        check: impl AsyncFn(&Self, &SessionPool, String) -> Result<(), String>,
    ) {
        let config = Config {
            cases: cases(default),
            failure_persistence: None,
            max_shrink_iters: 400,
            ..Config::default()
        };
        let pool = pool_with(&self.db, |pool| pool.reset(Reset::SessionState));
        let result = TestRunner::new(config).run(&text(self.kind), |text| {
            self.runtime.block_on(async {
                let told = format!("{:?}: {text:?}", self.kind);
                let checked = timeout(BOUND, check(&self, &pool, text)).await;
                let result = checked.unwrap_or_else(|_| Err("it hangs".to_owned()));
                eventually("the connections are back", async || pool.status().used == 0).await;
                result.map_err(|error| TestCaseError::fail(format!("{error}: {told}")))
            })
        });
        result.unwrap();
        self.runtime.block_on(assert_whole(&self.test, &self.db, 2));
    }
}

/// Runs `sql` in a managed transaction: it is refused, or the transaction is still the same, or the
/// session has found out that it is not.
async fn leaves_the_transaction_alone(
    stage: &Stage,
    pool: &SessionPool,
    sql: String,
) -> Result<(), String> {
    let (observer, name) = (&stage.observer, unique_name());
    let session = pool.session().await.unwrap();
    let tx = session.begin().await.unwrap();
    insert_item(&tx, &name).await;
    let result = tx.execute_unprepared(&sql).await;
    let refused = result
        .as_ref()
        .is_err_and(|error| Error::of(error).is_some_and(|error| error.is_forbidden_statement()));
    let outside = count_items(observer, &name).await;
    let count = format!("SELECT count(*) FROM item WHERE name = '{name}'");
    let inside = tx
        .query_one_raw(Statement::from_string(tx.backend(), count))
        .await;
    let inside = inside.map(|row| row.unwrap().try_get_by_index::<i64>(0).unwrap());
    let told = inside.is_err();
    if refused && (outside, &inside) != (0, &Ok(1)) {
        return Err(format!(
            "refused, and yet {outside} outside, {inside:?} inside"
        ));
    }
    // By an error of the server's, PostgreSQL aborts it.
    if outside != 0 && !told || inside == Ok(0) {
        return Err(format!("{outside} outside, {inside:?} inside"));
    }
    let rolled_back = tx.rollback().await;
    if count_items(observer, &name).await != 0 && !told {
        return Err(format!("it was not rolled back: {rolled_back:?}"));
    }
    Ok(())
}

/// Returns the settings of a connection.
async fn likeness(kind: Kind, db: &impl ConnectionTrait) -> String {
    let sql = match kind {
        Kind::Postgres => {
            "SELECT concat_ws('|', (SELECT string_agg(name || '=' || setting, ',' ORDER BY name) FROM pg_settings \
             WHERE source = 'session' AND name NOT LIKE 'transaction%'), current_user, session_user, \
             (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
             (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_cursors WHERE is_holdable), \
             (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()), \
             (SELECT count(*) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()), \
             nullif(current_setting('app.x', true), ''), (SELECT count(*) FROM pg_prepared_statements WHERE from_sql))"
        }
        Kind::MySql => {
            "SELECT CAST(concat_ws('|', @@sql_mode, @@time_zone, @@autocommit, coalesce(@x, '-'), database(), \
             coalesce(is_used_lock('l') = connection_id(), 0)) AS CHAR)"
        }
        _ => {
            "SELECT (SELECT count(*) FROM sqlite_temp_master) || (SELECT group_concat(name) FROM pragma_database_list \
             WHERE name <> 'temp') || ('a' LIKE 'A') || (SELECT read_uncommitted FROM pragma_read_uncommitted)"
        }
    };
    let row = db
        .query_one_raw(Statement::from_string(db.get_database_backend(), sql))
        .await
        .unwrap();
    let mut likeness: String = row.unwrap().try_get_by_index(0).unwrap();
    if kind == Kind::MySql {
        for sql in ["SELECT count(*) FROM mine", "EXECUTE p"] {
            let found = db.execute_unprepared(sql).await.is_ok();
            likeness.push_str(if found { "|there" } else { "|-" });
        }
    }
    likeness
}

async fn leaves_nothing_behind(
    stage: &Stage,
    pool: &SessionPool,
    sql: String,
) -> Result<(), String> {
    let kind = stage.kind;
    let clean = likeness(kind, &stage.observer).await;
    let session = pool.session().await.unwrap();
    let _ = session.execute_unprepared(&sql).await;
    drop(session);
    eventually("the connection is back", async || pool.status().used == 0).await;
    for session in [pool.session().await.unwrap(), pool.session().await.unwrap()] {
        let found = likeness(kind, &*session).await;
        if found != clean {
            return Err(format!("{found} instead of {clean}"));
        }
    }
    Ok(())
}

#[test]
fn sql_that_is_allowed_leaves_the_transaction_alone_on_postgres() {
    Stage::new(Kind::Postgres).run(400, leaves_the_transaction_alone);
}

#[test]
fn sql_that_is_allowed_leaves_the_transaction_alone_on_mysql() {
    Stage::new(Kind::MySql).run(400, leaves_the_transaction_alone);
}

#[test]
fn sql_that_is_allowed_leaves_the_transaction_alone_on_sqlite() {
    Stage::new(Kind::SqliteFile).run(400, leaves_the_transaction_alone);
}

#[test]
fn g13_sql_that_counts_as_harmless_leaves_nothing_behind_on_postgres() {
    Stage::new(Kind::Postgres).run(300, leaves_nothing_behind);
}

#[test]
fn g13_sql_that_counts_as_harmless_leaves_nothing_behind_on_mysql() {
    Stage::new(Kind::MySql).run(300, leaves_nothing_behind);
}

#[test]
fn g13_sql_that_counts_as_harmless_leaves_nothing_behind_on_sqlite() {
    Stage::new(Kind::SqliteFile).run(300, leaves_nothing_behind);
}
