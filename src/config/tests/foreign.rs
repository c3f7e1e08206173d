//! Variables that belong to another program.

use super::{PoolConfig, URL, env, json};

/// What a pod has beside a Service called `db` with a port called `http`, and
/// what a container has that is linked to one called `db`.
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
