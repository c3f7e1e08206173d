//! Names: all of them, wrong ones, and two of one setting.

use super::{super::names::names, PoolConfig, URL, env, json};

fn example(name: &str) -> &'static str {
    match name {
        "url" => URL,
        "reserved_connections" => "0",
        "reset" => "session_state",
        "pool_reset_on_return" => "rollback",
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
    for name in names() {
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

/// What a pod has beside a Service called `db` with a port called `http`, and what a container has that is
/// linked to one called `db`.
const INJECTED: [&str; 22] = [
    "SERVICE_HOST",
    "SERVICE_PORT",
    "SERVICE_PORT_HTTP",
    "SERVICE_PORT_MAX_WAIT",
    "PORT",
    "PORT_5432_TCP",
    "PORT_5432_TCP_ADDR",
    "PORT_5432_TCP_PORT",
    "PORT_5432_TCP_PROTO",
    "POOL_SERVICE_HOST",
    "POOL_SIZE_PORT",
    "URL_PORT",
    "WARM_PORT_80_TCP",
    "NAME",
    "ENV_POSTGRES_PASSWORD",
    "ENV_ECHO",
    "ENV_MAX_CONNECTIONS",
    "ENV_POOL_SIZE",
    "1_NAME",
    "1_PORT_3306_UDP",
    "1_ENV_MAX_CONNECTIONS",
    "1_PORT",
];

#[test]
fn the_variables_of_kubernetes_and_docker_are_passed_over_and_a_misspelt_one_beside_them_is_not() {
    for prefix in ["DB_", "DATABASE_", "STOCK_DB_", "APP"] {
        let injected = || {
            INJECTED
                .iter()
                .map(move |name| (format!("{prefix}{name}"), "tcp://10.0.0.1:5432".to_owned()))
        };
        let with = |vars: &[(&str, &str)]| {
            let vars = vars
                .iter()
                .map(|(name, value)| (format!("{prefix}{name}"), (*value).to_owned()));
            PoolConfig::from_prefixed_vars(prefix, injected().chain(vars))
        };
        let config =
            with(&[("URL", URL), ("POOL_SIZE", "3")]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.connect_options().get_min_connections(), Some(3));
        let error = with(&[("URL", URL), ("POOL_SZIE", "3")]).unwrap_err();
        assert_eq!(error.key(), format!("{prefix}POOL_SZIE"));
        assert_eq!(with(&[]).unwrap_err().key(), format!("{prefix}URL"));
        let env = injected().chain([("DATABASE_URL".to_owned(), URL.to_owned())]);
        PoolConfig::from_vars(env).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_word_of_another_program_is_no_misspelt_setting() {
    for name in [
        "TEST", "UID", "USE", "SSL", "SET", "WAL", "COLOUR", "LOG", "CHARSET", "SERVER", "SERVICE",
        "PREFIX",
    ] {
        env([(name, "x")]).unwrap_or_else(|error| panic!("{error}"));
    }
    for (name, meant) in [
        ("URI", "DB_URL"),
        ("ECH", "DB_ECHO"),
        ("RSET", "DB_RESET"),
        ("POOLSIZE", "DB_POOL_SIZE"),
    ] {
        let error = env([(name, "x")]).unwrap_err().to_string();
        assert!(
            error.contains(&format!("did you mean `{meant}`?")),
            "{error}"
        );
    }
}

#[test]
fn what_others_call_the_parts_of_a_url_is_left_alone_unless_the_prefix_is_ours() {
    env([
        ("HOST", "db"),
        ("USER", "app"),
        ("PASSWORD", "hunter2"),
        ("NAME", "shop"),
    ])
    .unwrap();
    let without_url = [("DB_HOST", "db"), ("DB_PASSWORD", "hunter2")];
    let error = PoolConfig::from_vars(without_url).unwrap_err();
    assert_eq!(error.key(), "DATABASE_URL");
    assert!(
        error
            .to_string()
            .contains("`DB_HOST`, `DB_PASSWORD` are ignored"),
        "{error}"
    );
    assert!(!error.to_string().contains("hunter2"), "{error}");

    let error = PoolConfig::from_prefixed_vars("STOCK_", [("STOCK_HOST", "db")]).unwrap_err();
    assert!(error.to_string().contains("`STOCK_URL`"), "{error}");
    assert!(
        json("\"password\": \"hunter2\"")
            .unwrap_err()
            .to_string()
            .contains("put it into `url`")
    );
}

#[test]
fn a_prefix_of_its_own_reads_nothing_else() {
    let vars = [
        ("STOCK_DB_URL", URL),
        ("STOCK_DB_ECHO", "no"),
        ("DB_ECHO", "what"),
        ("DATABASE_URL", "what"),
    ];
    assert_eq!(
        PoolConfig::from_prefixed_vars("STOCK_DB_", vars),
        env([("ECHO", "no")])
    );
    let error = PoolConfig::from_prefixed_vars("STOCK_DB_", [("DATABASE_URL", URL)]).unwrap_err();
    assert_eq!(error.key(), "STOCK_DB_URL");
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
