//! The parameters of a URL: those that sqlx reads, and those that it would pass
//! over.

use super::PoolConfig;

fn refused(url: &str) -> String {
    let error = PoolConfig::from_vars([("DATABASE_URL", url)]).expect_err(url);
    assert_eq!(error.key(), "DATABASE_URL");
    error.to_string()
}

fn assert_refused(base: &str, cases: &[(&str, &str)]) {
    for (query, part) in cases {
        let error = refused(&format!("{base}?{query}"));
        assert!(error.contains(part), "{query}: {error}");
        assert!(!error.contains("hunter2"), "{query}: {error}");
    }
}

fn assert_accepted(base: &str, queries: &[&str]) {
    for query in queries {
        let config = PoolConfig::from_vars([("DATABASE_URL", format!("{base}?{query}"))]);
        let config = config.unwrap_or_else(|error| panic!("{query}: {error}"));
        assert_eq!(
            config.connect_options().get_url(),
            format!("{base}?{query}")
        );
    }
}

#[cfg(feature = "sqlx-postgres")]
#[test]
fn postgresql_refuses_what_sqlx_would_pass_over_and_names_the_right_one() {
    assert_refused(
        "postgres://app:hunter2@h/shop",
        &[
            ("ssl=true", "`sslmode=verify-full`"),
            ("useSSL=hunter2", "`sslmode=verify-full`"),
            ("sslMode=require", "write `sslmode=…`"),
            ("SSLMODE=require", "write `sslmode=…`"),
            ("ssl_mode=require", "write `sslmode=…`"),
            ("sslmdoe=require", "did you mean `sslmode`?"),
            ("sslRootCert=/ca.pem", "write `sslrootcert=…`"),
            ("schema=a", "`options[search_path]=…`"),
            ("currentSchema=a", "`options[search_path]=…`"),
            ("search_path=a", "`options[search_path]=…`"),
            (
                "target_session_attrs=read-write",
                "sqlx does not support it",
            ),
            ("targetServerType=primary", "sqlx does not support it"),
            ("load_balance_hosts=random", "sqlx does not support it"),
            ("channel_binding=require", "no channel binding"),
            ("gssencmode=disable", "sqlx does not support it"),
            ("connect_timeout=10", "write the setting `connect_timeout`"),
            ("statement_timeout=10", "`options[statement_timeout]=…`"),
            ("lock_timeout=10", "`options[lock_timeout]=…`"),
            ("TimeZone=UTC", "`options[timezone]=…`"),
            ("client_encoding=utf8", "leave it out"),
            ("pgbouncer=true", "`statement-cache-capacity=0`"),
            ("connection_limit=5", "`max_connections`"),
            ("pool_timeout=5", "`pool_timeout`"),
            ("pool_size=5", "`pool_size`"),
            ("ApplicationName=a", "`application_name=…`"),
            ("statement_cache_capacity=5", "`statement-cache-capacity=…`"),
            (
                "prepared_statement_cache_size=5",
                "`statement-cache-capacity=…`",
            ),
            ("passfile=hunter2", "`PGPASSFILE`"),
            (
                "frobnicate=hunter2",
                "its parameter `frobnicate`: the known ones are `sslmode`",
            ),
            (
                "hunter2",
                "one of its parameters; the known ones are `sslmode`",
            ),
            (
                "options[search_path=a",
                "its parameter `options[search_path`",
            ),
            ("options[]=a", "does not know its parameter"),
        ],
    );
}

#[cfg(feature = "sqlx-postgres")]
#[test]
fn postgresql_refuses_values_that_sqlx_would_and_parameters_that_disagree() {
    assert_refused(
        "postgres://app:hunter2@h/shop",
        &[
            ("sslmode=hunter2", "`sslmode` must be one of `disable`"),
            ("sslmode=required", "`require`"),
            ("sslmode=", "`require`"),
            ("sslmode=require&sslmode=disable", "disagree"),
            (
                "sslmode=verify-full&ssl-mode=prefer",
                "`sslmode` and `ssl-mode` disagree",
            ),
            ("statement-cache-capacity=hunter2", "is not a number"),
            ("port=hunter2", "is not a port"),
            ("port=70000", "is not a port"),
            ("host=a,b", "connects to one"),
            ("host=[::1]", "no brackets"),
            ("hostaddr=[::1]", "not an IP address"),
            ("hostaddr=localhost", "not an IP address"),
            ("sslrootcert=/ca.pem", "`sslmode=verify-full`"),
            (
                "sslrootcert=/ca.pem&sslmode=require",
                "`sslmode=verify-full`",
            ),
            ("ssl-ca=/ca.pem&sslmode=prefer", "`ssl-ca` does nothing"),
        ],
    );
    assert_accepted(
        "postgres://app:hunter2@h/shop",
        &[
            "sslmode=Require",
            "ssl-mode=verify-ca&sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pem",
            "sslmode=require&ssl-mode=require",
            "statement-cache-capacity=0&application_name=a&port=1&dbname=b&user=c",
            "host=/run/postgresql",
            "host=fe80::1%25eth0",
            "hostaddr=::1",
            "options=-c%20a.b=c&options=-c%20d.e=f&options[search_path]=a&options[app.tenant]=b",
        ],
    );
}

#[cfg(feature = "sqlx-mysql")]
#[test]
fn mysql_refuses_what_sqlx_would_pass_over_and_names_the_right_one() {
    assert_refused(
        "mysql://app:hunter2@h/shop",
        &[
            ("ssl=true", "`ssl-mode=VERIFY_IDENTITY`"),
            ("useSSL=true", "`ssl-mode=VERIFY_IDENTITY`"),
            ("requireSSL=true", "`ssl-mode=VERIFY_IDENTITY`"),
            ("tls=skip-verify", "`ssl-mode=VERIFY_IDENTITY`"),
            ("sslMode=REQUIRED", "write `ssl-mode=…`"),
            ("ssl_mode=REQUIRED", "write `ssl-mode=…`"),
            ("ssl-mode=require", "must be one of `disabled`"),
            ("ssl-mode=verify-ca", "`verify_ca`"),
            ("ssl_ca=/ca.pem", "write `ssl-ca=…`"),
            ("sslrootcert=/ca.pem", "write `ssl-ca=…`"),
            ("ssl-ca=/ca.pem", "`ssl-mode=VERIFY_IDENTITY`"),
            ("ssl-ca=/ca.pem&sslmode=required", "`ssl-ca` does nothing"),
            ("autocommit=0", "`DbTx`"),
            ("serverTimezone=UTC", "leave it out"),
            ("parseTime=true", "leave it out"),
            ("time_zone=UTC", "write `timezone=…`"),
            ("unix_socket=/s", "`socket=…`"),
            ("characterEncoding=utf8", "`charset=…`"),
            ("allowPublicKeyRetrieval=true", "`mysql-rsa`"),
            ("sql_mode=ANSI", "`after_connect`"),
            ("user=hunter2", "before the path"),
            ("port=1", "before the path"),
            ("database=a", "path"),
            ("connectTimeout=1", "`connect_timeout`"),
            ("max_connections=1", "`max_connections`"),
            ("chraset=utf8", "did you mean `charset`?"),
            ("frobnicate=hunter2", "its parameter `frobnicate`"),
            ("ssl-mode=REQUIRED&sslmode=DISABLED", "disagree"),
        ],
    );
    assert_accepted(
        "mysql://app:hunter2@h/shop",
        &[
            "ssl-mode=VERIFY_IDENTITY&ssl-ca=/ca.pem&ssl-cert=/c.pem&ssl-key=/k.pem",
            "sslmode=disabled&charset=utf8mb4&collation=utf8mb4_bin&statement-cache-capacity=500",
            "socket=/run/mysqld/mysqld.sock&timezone=%2B02:00",
        ],
    );
}

#[cfg(feature = "sqlx-sqlite")]
#[test]
fn sqlite_refuses_what_sqlx_would_when_it_connects() {
    assert_refused(
        "sqlite://shop.db",
        &[
            ("journal_mode=wal", "`map_sqlx_sqlite_opts`"),
            ("foreign_keys=on", "`map_sqlx_sqlite_opts`"),
            ("_pragma=busy_timeout(5000)", "`map_sqlx_sqlite_opts`"),
            ("timeout=30", "`map_sqlx_sqlite_opts`"),
            ("mode=create", "`rwc`"),
            ("mode=RWC", "`rwc`"),
            ("Mode=rwc", "write `mode=…`"),
            ("mode=rwc#x", "`rwc`"),
            ("moed=rwc", "did you mean `mode`?"),
            ("create=true", "`mode=rwc`"),
            ("cache=public", "`shared`"),
            ("immutable=yes", "`true`"),
            ("check_same_thread=false", "Python's"),
            ("sslmode=require", "the known ones are `mode`"),
        ],
    );
    assert_accepted(
        "sqlite://shop.db",
        &[
            "mode=rwc",
            "mode=ro&immutable=1",
            "mode=memory&cache=shared&vfs=unix",
        ],
    );
}

#[cfg(all(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
#[test]
fn an_ipv6_address_reaches_the_driver_without_brackets() {
    use sea_orm::sqlx::postgres::PgConnectOptions;

    for (url, host) in [
        ("postgres://app:x@[::1]:5433/shop", "::1"),
        (
            "postgres://app@[2001:db8::7]/shop?sslmode=require",
            "2001:db8::7",
        ),
        (
            "postgres://[::ffff:127.0.0.1]/shop?password=x",
            "::ffff:7f00:1",
        ),
        ("postgres://app@[::1]/shop?hostaddr=::1", "::1"),
        ("postgres://app@[::1]/shop?host=db.example", "db.example"),
        ("postgres://app@127.0.0.1/shop", "127.0.0.1"),
    ] {
        let config = PoolConfig::from_vars([("DATABASE_URL", url)]).unwrap();
        for options in [config.connect_options(), config.url.guarded_options()] {
            let options: PgConnectOptions = options.get_url().parse().unwrap();
            assert_eq!(options.get_host(), host, "{url}");
        }
    }
    let config =
        PoolConfig::from_vars([("DATABASE_URL", "mysql://app:x@[::1]:3307/shop")]).unwrap();
    assert_eq!(config.to_string(), "mysql://app:***@[::1]:3307/shop");
}
