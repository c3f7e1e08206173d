//! URLs: which are refused, and that none shows its password.

use super::PoolConfig;

fn config(url: &str) -> Result<PoolConfig, super::ConfigError> {
    PoolConfig::from_vars([("DATABASE_URL", url)])
}

/// Every URL has this in it, whole or in part.
const SECRETS: [&str; 6] = [
    "hunter2",
    "hunter",
    "unter2",
    "%68unter2",
    "hunter%32",
    "h%75nter2",
];

#[cfg(all(
    feature = "sqlx-postgres",
    feature = "sqlx-mysql",
    feature = "sqlx-sqlite"
))]
#[test]
fn no_url_shows_its_password() {
    let mut accepted = 0;
    for url in [
        "postgres://app:hunter2@db.example/shop",
        "postgresql://app:%68unter2@db.example:5433/shop?sslmode=disable",
        "postgres://:hunter2@db.example/shop",
        "postgres://app:p@hunter2@db.example/shop",
        "postgres://app:12/hunter2@db.example/shop",
        "postgres://app:12?hunter2@db.example/shop",
        "postgres://app:12#hunter2@db.example/shop",
        "postgres://app:hun/ter2@db.example/shop",
        "postgres://db.example/shop?user=app&password=hunter2",
        "postgres://db.example/shop?p%61ssword=h%75nter2",
        "postgres://db.example/shop?PASSWORD=hunter2",
        "postgres://db.example/shop?sslkey=k&sslpassword=hunter2",
        "postgres://db.example/shop?passwd=hunter%32#frag",
        "postgres://db.example/shop?password=hunter2&password=hunter2",
        "postgres://app:hunter2@[::1]:5432/shop",
        "postgres://app:hunter2@/shop?host=/tmp",
        "postgres:app:hunter2@db.example/shop",
        " postgres://app:hunter2@db.example/shop\n",
        "postgres://app:hunter2@db.example:99999/shop",
        "postgres://app:hunter2@db exam ple/shop",
        "postgres//app:hunter2@db.example/shop",
        "app:hunter2@db.example/shop",
        "://app:hunter2@db.example",
        "postgres://app:hunter2%ff@db.example/shop",
        "postgres://app:%ffhunter2@db.example/shop?password=x",
        "postgresql+asyncpg://app:hunter2@db.example/shop",
        "mysql://app:hunter2@db.example/shop",
        "mysql://db.example/shop?ssl-mode=disabled&password=hunter2",
        "MySQL://app:hunter2@db.example/shop",
        "mariadb://app:hunter2@db.example/shop",
        "mssql://app:hunter2@db.example/shop",
        "sqlite://app:hunter2@db.example/shop",
        "sqlite://shop.db?key=hunter2",
        "sqlite://shop.db?password=hunter2",
        "sqlite:shop.db?vfs=hunter2",
        "hunter2",
        "hunter2://",
    ] {
        let shown = match config(url) {
            Ok(config) => {
                accepted += 1;
                let guarded = config.with_settings(config.url.guarded_options());
                // What SQLite's has in its query is no password of a
                // database's.
                let guarded = if url.starts_with("sqlite") {
                    String::new()
                } else {
                    format!("{guarded:?}")
                };
                format!("{config} {config:?} {config:#?} {guarded}")
            }
            Err(error) => format!("{error} {error:?}"),
        };
        for secret in SECRETS {
            assert!(!shown.contains(secret), "{url}: {shown}");
        }
    }
    assert!(accepted >= 11, "{accepted} of these are well-formed");
}

#[cfg(all(feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
#[test]
fn user_host_and_database_are_shown() {
    for (url, shown) in [
        (
            "postgres://app:hunter2@db.example:5433/shop?sslmode=disable",
            "postgres://app:***@db.example:5433/shop?…",
        ),
        ("postgresql://app@[::1]/shop", "postgresql://app@[::1]/shop"),
        ("postgres://db.example", "postgres://db.example"),
        ("postgres:///shop?host=/tmp", "postgres:///shop?…"),
        ("sqlite://app@home/shop.db#1", "sqlite:…"),
        ("sqlite::memory:", "sqlite::memory:"),
        ("sqlite:///tmp/shop.db?mode=rwc", "sqlite:///tmp/shop.db?…"),
        ("sqlite://shop.db", "sqlite://shop.db"),
    ] {
        let config = config(url).unwrap();
        assert_eq!(config.to_string(), shown);
        assert!(
            format!("{config:?}").starts_with(&format!("PoolConfig {{ url: \"{shown}\"")),
            "{config:?}"
        );
    }
}

#[test]
fn a_url_that_cannot_be_is_refused_with_what_to_write() {
    for (url, part) in [
        (
            "db.example/shop",
            "write `postgres://user:password@host/database`",
        ),
        (
            "postgresql+asyncpg://db.example/shop",
            "write `postgresql://…`",
        ),
        ("mysql+aiomysql://db.example/shop", "write `mysql://…`"),
        ("mariadb+asyncmy://db.example/shop", "write `mysql://…`"),
        ("sqlite+aiosqlite:///shop.db", "write `sqlite://…`"),
        ("mariadb://db.example/shop", "write `mysql://…`"),
        (
            "mssql://db.example/shop",
            "`postgres://…`, `mysql://…` or `sqlite://…`",
        ),
        ("postgres:db.example/shop", "`//` is missing"),
        ("postgres://app:12/x@db.example/shop", "`%2F`"),
        ("postgres://app:12#x@db.example/shop", "`%23`"),
        (
            "mysql://db.example/shop?password=x",
            "write it before the host",
        ),
        (
            "postgres://db.example/shop?sslpassword=x",
            "write it before the host",
        ),
        (
            "postgres://app:%ff@db.example/shop",
            "its password is not UTF-8",
        ),
        (
            "postgres://%ff@db.example/shop",
            "its user name is not UTF-8",
        ),
        (
            "mysql://caf%e9:x@db.example/shop",
            "its user name is not UTF-8",
        ),
        (
            "mysql://app:x@db.example/caf%e9",
            "its database's name is not UTF-8",
        ),
        ("sqlite://app:x@db.example/shop", "has no password"),
        (
            "postgres://app@::1:5432/shop",
            "`postgres://user:password@[::1]:5432/database`",
        ),
        ("postgres://app@a:5432,b:5432/shop", "several hosts"),
        ("postgres://app@a,b/shop", "several hosts"),
        ("mysql://app@a,b/shop", "several hosts"),
        ("", "not set"),
    ] {
        let error = config(url).unwrap_err();
        assert_eq!(error.key(), "DATABASE_URL");
        assert!(error.to_string().contains(part), "{url}: {error}");
    }
}

/// It would be of no use in the scheme of another database.
#[test]
fn advice_is_in_the_urls_own_scheme() {
    for (url, part) in [
        ("mysql://app:12a#x@h/shop", "`mysql://user:password@host/"),
        ("MySQL://app:a/x@h/shop", "`mysql://user:password@host/"),
        (
            "mariadb://app:a:b,c#x@h/shop",
            "`mysql://user:password@host/",
        ),
        ("mysql+aiomysql://app@/shop", "`mysql://user:password@host/"),
        (
            "postgresql://app:a?x@h/shop",
            "`postgresql://user:password@host/",
        ),
        ("mysql://::1/shop", "`mysql://user:password@[::1]:3306/"),
        (
            "postgresql://::1/shop",
            "`postgresql://user:password@[::1]:5432/",
        ),
        ("mysql://h:99999/shop", "the last one is 65535"),
        ("postgres://app:x@h:99999/shop", "the last one is 65535"),
        ("mysql://app:123456#x@h/shop", "`%23`"),
        ("sqlite://:memory:", "`sqlite::memory:`"),
        ("sqlite://:memory:?cache=shared", "`sqlite::memory:`"),
        ("sqlite://a b.db?mode=rwc", "`%20`"),
        ("sqlite://a:b.db", "`%3A`"),
        (
            "sqlite://file:m?mode=memory&cache=shared",
            "`sqlite://name?mode=memory`",
        ),
        ("sqlite+aiosqlite://:memory:", "`sqlite::memory:`"),
    ] {
        let error = config(url).unwrap_err().to_string();
        assert!(error.contains(part), "{url}: {error}");
        let of_postgres = url.starts_with("postgres");
        assert_eq!(
            error.contains("postgres"),
            of_postgres && error.contains("://"),
            "{url}: {error}"
        );
    }
    for (url, right, feature) in [
        (
            "mysql:h/shop",
            "`mysql://user:password@host/",
            cfg!(feature = "sqlx-mysql"),
        ),
        (
            "postgresql:h/shop",
            "`postgresql://user:password@host/",
            cfg!(feature = "sqlx-postgres"),
        ),
    ] {
        let error = config(url).unwrap_err().to_string();
        assert!(!feature || error.contains(right), "{url}: {error}");
    }
}

#[cfg(feature = "sqlx-sqlite")]
#[test]
fn the_sqlite_urls_that_are_advised_are_taken() {
    for url in [
        "sqlite::memory:",
        "sqlite://name?mode=memory",
        "sqlite://name?mode=memory&cache=shared",
        "sqlite://directory/file.db",
        "sqlite://a%20b.db?mode=rwc",
        "sqlite://C%3A/shop.db",
    ] {
        assert!(config(url).is_ok(), "{url}");
    }
}

#[test]
fn a_driver_that_is_not_built_in_is_refused_with_its_feature() {
    for (url, feature, is_built_in) in [
        (
            "postgres://db.example/shop",
            "sqlx-postgres",
            cfg!(feature = "sqlx-postgres"),
        ),
        (
            "mysql://db.example/shop",
            "sqlx-mysql",
            cfg!(feature = "sqlx-mysql"),
        ),
        (
            "sqlite://shop.db",
            "sqlx-sqlite",
            cfg!(feature = "sqlx-sqlite"),
        ),
    ] {
        match config(url) {
            Ok(_) => assert!(is_built_in, "{url}"),
            Err(error) => assert!(
                !is_built_in && error.to_string().contains(&format!("`{feature}`")),
                "{error}"
            ),
        }
    }
}

#[cfg(feature = "sqlx-postgres")]
#[test]
fn what_is_no_secret_stays_in_the_query() {
    let url = "postgres://app:x@h/shop?sslmode=disable&password=y&options[search_path]=a%20b&application_name=caf%C3%A9";
    let options = config(url).unwrap().url.guarded_options();
    let parsed = url::Url::parse(options.get_url()).unwrap();
    let rest: Vec<_> = parsed
        .query_pairs()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(
        rest,
        [
            "sslmode=disable",
            "options[search_path]=a b",
            "application_name=café"
        ]
    );
}
