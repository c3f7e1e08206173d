//! Times, switches, levels, and where they go.

use std::time::Duration;

use log::LevelFilter;

use super::{env, json};

#[test]
fn a_time_is_in_seconds_or_has_a_unit() {
    for (text, millis) in [
        ("30", 30_000),
        ("0.5", 500),
        (" 30 ", 30_000),
        ("30s", 30_000),
        ("30 sec", 30_000),
        ("250ms", 250),
        ("1ms", 1),
        ("5min", 300_000),
        ("5m", 300_000),
        ("1.5h", 5_400_000),
        ("2 Days", 172_800_000),
        ("3650d", 315_360_000_000),
    ] {
        let options = env([("pool_timeout", text)]).unwrap().connect_options();
        assert_eq!(
            options.get_acquire_timeout(),
            Some(Duration::from_millis(millis)),
            "{text}"
        );
    }
    let numbers =
        json("\"pool_timeout\": 0.25, \"pool_recycle\": 1800, \"idle_timeout\": \"never\"")
            .unwrap();
    let options = numbers.connect_options();
    assert_eq!(
        options.get_acquire_timeout(),
        Some(Duration::from_millis(250))
    );
    assert_eq!(
        options.get_max_lifetime(),
        Some(Some(Duration::from_secs(1800)))
    );
    assert_eq!(options.get_idle_timeout(), Some(None));
}

#[test]
fn minus_one_and_never_are_no_limit_where_sqlalchemy_has_it() {
    for name in ["pool_recycle", "max_lifetime", "idle_timeout"] {
        for text in ["-1", "never"] {
            let options = env([(name, text)]).unwrap().connect_options();
            let set = if name == "idle_timeout" {
                options.get_idle_timeout()
            } else {
                options.get_max_lifetime()
            };
            assert_eq!(set, Some(None), "{name}={text}");
        }
    }
    assert_eq!(
        json("\"pool_recycle\": -1").unwrap(),
        env([("max_lifetime", "never")]).unwrap()
    );
}

#[test]
fn what_is_no_value_is_refused_with_the_key_and_what_is_allowed() {
    for (name, text, part) in [
        ("pool_timeout", "-1", "cannot be negative"),
        ("pool_timeout", "0", "1ms"),
        ("pool_timeout", "0.0001", "too short"),
        ("pool_timeout", "soon", "\"soon\" is refused: not a time"),
        ("pool_timeout", "5 parsecs", "not a time"),
        ("pool_timeout", "1e3", "not a time"),
        ("pool_timeout", "inf", "not a time"),
        ("pool_timeout", "nan", "not a time"),
        ("pool_timeout", "99999999999999999999999", "not a time"),
        ("pool_timeout", "4000d", "3650d"),
        ("pool_recycle", "-2", "cannot be negative"),
        ("pool_recycle", "0", "1ms"),
        ("idle_timeout", "0", "1ms"),
        ("release_timeout", "0s", "1ms"),
        ("connect_timeout", "-0.5", "cannot be negative"),
        ("statement_timeout", "0", "1ms"),
        ("startup_timeout", "-5s", "cannot be negative"),
        ("echo", "maybe", "write `true` or `false`"),
        ("echo", "debug", "rows are never logged here"),
        ("direct_handoff", "debug", "write `true` or `false`"),
        ("cancel_running", "5s", "write `true` or `false`"),
        ("pool_mode", "statement", "`transaction`"),
        ("reset", "everything", "`session_state_always`"),
        ("pool_reset_on_return", "commit", "never committed here"),
        ("pool_reset_on_return", "session_state", "see `reset`"),
        ("hold_slow_threshold", "0", "1ms"),
        ("hold_timeout", "off", "not a time"),
        ("sqlx_logging_level", "loud", "`warn`"),
        ("sqlx_slow_statements_logging_level", "7", "`warn`"),
        (
            "sqlx_logging_level",
            "a secret: hunter2@home",
            "this value is refused",
        ),
    ] {
        let error = env([(name, text)]).unwrap_err();
        assert_eq!(error.key(), format!("DB_{}", name.to_uppercase()));
        assert!(error.to_string().contains(part), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let error = json(&format!("\"{name}\": \"{text}\""))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("`{name}`: ")) && error.contains(part),
            "{error}"
        );
    }
    for nested in ["[1]", "{\"secs\": 3}"] {
        let error = json(&format!("\"pool_timeout\": {nested}"))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("`pool_timeout`: write text"), "{error}");
    }
}

#[test]
fn every_setting_arrives_in_seaorms_options() {
    let config = json(
        r#""min_connections": 2, "max_connections": 4, "acquire_timeout": 3, "connect_timeout": 4, "idle_timeout": 5,
        "max_lifetime": 6, "test_before_acquire": false, "connect_lazy": true, "sqlx_logging": false,
        "sqlx_logging_level": "trace", "sqlx_slow_statements_logging_threshold": "7s", "statement_timeout": 8,
        "schema_search_path": "shop", "application_name": "shopd""#,
    );
    let config = config.unwrap();
    for options in [
        config.connect_options(),
        config.with_settings(config.url.guarded_options()),
    ] {
        assert_eq!(
            (options.get_min_connections(), options.get_max_connections()),
            (Some(2), Some(4))
        );
        assert_eq!(options.get_acquire_timeout(), Some(Duration::from_secs(3)));
        assert_eq!(options.get_connect_timeout(), Some(Duration::from_secs(4)));
        assert_eq!(
            options.get_idle_timeout(),
            Some(Some(Duration::from_secs(5)))
        );
        assert_eq!(
            options.get_max_lifetime(),
            Some(Some(Duration::from_secs(6)))
        );
        assert_eq!(
            options.get_statement_timeout(),
            Some(Duration::from_secs(8))
        );
        assert!(
            !options.get_test_before_acquire()
                && options.get_connect_lazy()
                && !options.get_sqlx_logging()
        );
        assert_eq!(options.get_sqlx_logging_level(), LevelFilter::Trace);
        let slow = (LevelFilter::Warn, Duration::from_secs(7));
        assert_eq!(options.get_sqlx_slow_statements_logging_settings(), slow);
        let debug = format!("{options:?}");
        assert!(
            debug.contains("Some(\"shop\")") && debug.contains("Some(\"shopd\")"),
            "{debug}"
        );
    }
}

#[test]
fn what_is_not_given_stays_as_seaorm_has_it() {
    let ours = env([]).unwrap().connect_options();
    let seaorms = sea_orm::ConnectOptions::new(ours.get_url());
    assert_eq!(format!("{ours:?}"), format!("{seaorms:?}"));
}
