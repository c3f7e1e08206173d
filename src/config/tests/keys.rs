//! Names: all of them, wrong ones, and two of one setting.

use super::{super::settings::NAMES, PoolConfig, URL, env, json};

fn example(name: &str) -> &'static str {
    match name {
        "url" => URL,
        "reserved_connections" => "0",
        "reset" => "session_state",
        "pool_reset_on_return" => "rollback",
        "pool_mode" => "transaction",
        "hold_timeout" => "1min",
        "body_timeout" => "20s",
        name if name.starts_with("max_")
            || name.ends_with("_connections")
            || name == "pool_size" =>
        {
            "5"
        }
        name if name.ends_with("_level") => "debug",
        "test_before_acquire"
        | "pool_pre_ping"
        | "connect_lazy"
        | "sqlx_logging"
        | "echo"
        | "direct_handoff"
        | "cancel_running" => "false",
        _ => "30",
    }
}

#[test]
fn every_name_is_known_to_the_environment_and_to_files_and_stands_in_the_documentation() {
    let documentation = include_str!("../mod.rs");
    for name in NAMES.iter().copied() {
        let value = example(name);
        env([(name, value)]).unwrap_or_else(|error| panic!("{error}"));
        if name != "url" {
            let file =
                json(&format!("\"{name}\": \"{value}\"")).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(file, env([(name, value)]).unwrap(), "{name}");
        }
        assert!(documentation.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn an_unknown_name_is_refused_with_the_nearest_one() {
    for (wrong, meant) in [
        ("POOL_SZIE", "`DB_POOL_SIZE`"),
        ("POOLSIZE", "`DB_POOL_SIZE`"),
        ("MAX_CONECTION", "`DB_MAX_CONNECTIONS`"),
        ("POOL_RECYLCE", "`DB_POOL_RECYCLE`"),
        ("ECHOO", "`DB_ECHO`"),
        (
            "SQLX_SLOW_STATEMENT_LOGGING_TRESHOLD",
            "`DB_SQLX_SLOW_STATEMENTS_LOGGING_THRESHOLD`",
        ),
    ] {
        let error = env([(wrong, "secret")]).unwrap_err();
        assert_eq!(error.key(), format!("DB_{wrong}"));
        assert!(
            error
                .to_string()
                .contains(&format!("did you mean {meant}?")),
            "{error}"
        );
        assert!(error.to_string().contains("from_prefixed_vars"), "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
    }
    let error = json("\"pool-size\": 3").unwrap_err().to_string();
    assert!(
        error.starts_with("`pool-size`: no such setting: did you mean `pool_size`?"),
        "{error}"
    );
    assert!(!error.contains("from_prefixed_vars"), "{error}");
    let error = json("\"colour\": \"red\"").unwrap_err().to_string();
    assert!(
        error.contains("the settings are url, max_connections, "),
        "{error}"
    );
}

#[test]
fn a_name_that_differs_in_case_or_separators_is_refused_with_the_right_one() {
    for (wrong, meant) in [
        ("db_pool_size", "DB_POOL_SIZE"),
        ("Db_Pool_Size", "DB_POOL_SIZE"),
        ("DB_POOLSIZE", "DB_POOL_SIZE"),
        ("DBPOOLSIZE", "DB_POOL_SIZE"),
        ("DB-POOL-SIZE", "DB_POOL_SIZE"),
        ("DB.pool.size", "DB_POOL_SIZE"),
        ("DB__POOL__SIZE", "DB_POOL_SIZE"),
        ("DB_E_C_H_O", "DB_ECHO"),
        ("DB_MAX_OVERFLOW ", "DB_MAX_OVERFLOW"),
        (" DB_MAX_OVERFLOW", "DB_MAX_OVERFLOW"),
        ("DB_ECHO\n", "DB_ECHO"),
        ("database_url", "DATABASE_URL"),
        ("Database_Url", "DATABASE_URL"),
        ("DATABASE-URL", "DATABASE_URL"),
        ("DATABASEURL", "DATABASE_URL"),
        ("DATABASE_URL ", "DATABASE_URL"),
        ("db_url", "DATABASE_URL"),
    ] {
        let vars = |right: &'static str| [(right, URL), (wrong, "hunter2")];
        for error in [
            PoolConfig::from_vars(vars("DATABASE_URL")),
            PoolConfig::from_vars(vars("LANG")),
        ] {
            let error = error.expect_err(wrong);
            assert_eq!(error.key(), wrong);
            assert!(
                error
                    .to_string()
                    .contains(&format!("did you mean `{meant}`?")),
                "{error}"
            );
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
    for (wrong, meant) in [
        ("stock_db_echo", "STOCK_DB_ECHO"),
        ("STOCKDB_URL", "STOCK_DB_URL"),
    ] {
        let error =
            PoolConfig::from_prefixed_vars("STOCK_DB_", [("STOCK_DB_URL", URL), (wrong, "no")])
                .unwrap_err();
        assert_eq!(error.key(), wrong);
        assert!(
            error
                .to_string()
                .contains(&format!("did you mean `{meant}`?")),
            "{error}"
        );
    }
    // Another program's, or another prefix's.
    for name in [
        "POOL_SIZE",
        "pool_size",
        "URL",
        "MY_DB_URL",
        "DATABASE",
        "db",
        "db_host",
        "DB",
        "TEST_DATABASE_URL",
    ] {
        PoolConfig::from_vars([("DATABASE_URL", URL), (name, "x")])
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn two_names_of_one_setting_have_to_say_the_same() {
    for (one, other, same, different) in [
        (
            "pool_timeout",
            "acquire_timeout",
            ("30", "30s"),
            ("30", "31"),
        ),
        (
            "pool_recycle",
            "max_lifetime",
            ("-1", "never"),
            ("-1", "1h"),
        ),
        (
            "pool_pre_ping",
            "test_before_acquire",
            ("true", "1"),
            ("true", "0"),
        ),
        ("echo", "sqlx_logging", ("off", "false"), ("on", "false")),
        (
            "pool_reset_on_return",
            "reset",
            ("rollback", "rollback_only"),
            ("rollback", "session_state"),
        ),
        ("url", "url", (URL, URL), (URL, "sqlite://other")),
    ] {
        env([(one, same.0), (other, same.1)]).unwrap();
        let error = env([(one, different.0), (other, different.1)])
            .unwrap_err()
            .to_string();
        if one != "url" {
            let first = format!("`DB_{}`", one.to_uppercase());
            assert!(
                error.starts_with(&format!(
                    "`DB_{}`: {first} is another name",
                    other.to_uppercase()
                )),
                "{error}"
            );
            assert!(
                json(&format!(
                    "\"{one}\": \"{}\", \"{other}\": \"{}\"",
                    different.0, different.1
                ))
                .is_err()
            );
        }
    }
}

#[test]
fn an_empty_variable_is_not_set() {
    assert_eq!(env([("POOL_SIZE", ""), ("ECHO", " ")]), env([]));
    assert!(env([("POOL_SZIE", "")]).is_err());
    assert_eq!(
        PoolConfig::from_vars([("DATABASE_URL", "")])
            .unwrap_err()
            .key(),
        "DATABASE_URL"
    );
    assert_eq!(json("\"pool_size\": null").unwrap(), json("").unwrap());
}
