//! The parameters of a URL: those that sqlx reads, with values that it takes.
//!
//! sqlx passes over the others, for MySQL without a line in the log: `ssl=true` would leave TLS optional.

use std::{collections::BTreeMap, env, net::IpAddr};

use sea_orm::DbBackend;
use url::form_urlencoded::Parse;

use super::settings::{NAMES, nearest, plain};

/// All names of a parameter, and the values that it may have.
type Parameter = (&'static str, Values);

#[derive(Clone, Copy)]
enum Values {
    Any,
    OneOf(&'static str),
    Number,
    Port,
    Host,
    Address,
}
use Values::{Address, Any, Host, Number, OneOf, Port};

// From `src/options/parse.rs` of sqlx-postgres, sqlx-mysql and sqlx-sqlite 0.9.0.
const POSTGRES: &[Parameter] = &[
    (
        "sslmode ssl-mode",
        OneOf("disable allow prefer require verify-ca verify-full"),
    ),
    ("sslrootcert ssl-root-cert ssl-ca", Any),
    ("sslcert ssl-cert", Any),
    ("sslkey ssl-key", Any),
    ("statement-cache-capacity", Number),
    ("host", Host),
    ("hostaddr", Address),
    ("port", Port),
    ("dbname", Any),
    ("user", Any),
    ("password", Any),
    ("application_name", Any),
    (OPTIONS, Any),
];
const MYSQL: &[Parameter] = &[
    (
        "ssl-mode sslmode",
        OneOf("disabled preferred required verify_ca verify_identity"),
    ),
    ("ssl-ca sslca", Any),
    ("ssl-cert sslcert", Any),
    ("ssl-key sslkey", Any),
    ("charset", Any),
    ("collation", Any),
    ("statement-cache-capacity", Number),
    ("socket", Any),
    ("timezone time-zone", Any),
];
const SQLITE: &[Parameter] = &[
    ("mode", OneOf("ro rw rwc memory")),
    ("cache", OneOf("private shared")),
    ("immutable", OneOf("true 1 false 0")),
    ("vfs", Any),
];

/// PostgreSQL's settings for a session, the only parameter that may be given several times.
const OPTIONS: &str = "options";

/// Advice on parameters that other drivers know. A line has names in the form of [`plain`], or exact ones, and what
/// to write instead, where `{}` stands for the name.
const POSTGRES_ADVICE: &str = include_str!("advice/postgres.txt");
const MYSQL_ADVICE: &str = include_str!("advice/mysql.txt");
const SQLITE_ADVICE: &str = include_str!("advice/sqlite.txt");
const ANY_ADVICE: &str = include_str!("advice/any.txt");

/// Parameters by their first name, each with the name and the value that it was given.
type Given = BTreeMap<&'static str, (String, String)>;

/// Refuses a parameter that sqlx does not read, a value that it does not take, and two that disagree. No error shows a
/// value: `PoolConfig` shows no parameters of a URL.
pub(super) fn check(backend: DbBackend, pairs: Parse<'_>) -> Result<(), String> {
    let mut given = Given::new();
    for (name, value) in pairs {
        let is_name = |(names, _): &&Parameter| names.split(' ').any(|known| known == name);
        let Some((names, values)) = parameters(backend).iter().find(is_name) else {
            // Any setting of the server may stand there, one of an extension as well.
            if backend == DbBackend::Postgres && is_option(&name) {
                continue;
            }
            return Err(unknown(backend, &name, &value));
        };
        // sqlx would refuse it as well, but only when it connects.
        if let Some(why) = values.refuse(backend, &value) {
            return Err(format!("its parameter `{name}` {why}"));
        }
        let now = (name.into_owned(), value.into_owned());
        match given.insert(first(names), now.clone()) {
            Some(before) if before.1 != now.1 && *names != OPTIONS => {
                let (before, now) = (before.0, now.0);
                let why = format!("its parameters `{before}` and `{now}` disagree");
                return Err(why + ": keep one of the two");
            }
            _ => {}
        }
    }
    unchecked_certificate(backend, &given).map_or(Ok(()), Err)
}

fn parameters(backend: DbBackend) -> &'static [Parameter] {
    match backend {
        DbBackend::Postgres => POSTGRES,
        DbBackend::MySql => MYSQL,
        _ => SQLITE,
    }
}

fn first(names: &'static str) -> &'static str {
    names.split(' ').next().unwrap_or_default()
}

/// Returns whether the name is like `options[search_path]`.
fn is_option(name: &str) -> bool {
    let inside = name
        .strip_prefix("options[")
        .and_then(|name| name.strip_suffix(']'));
    inside.is_some_and(|name| !name.is_empty())
}

impl Values {
    /// Returns what is wrong with `value`.
    fn refuse(self, backend: DbBackend, value: &str) -> Option<String> {
        let (is_right, why) = match self {
            Any => return None,
            OneOf(values) => {
                // sqlx takes the modes of TLS in any case, SQLite's values as they are.
                let is_exact = backend == DbBackend::Sqlite;
                let is =
                    |known: &str| known == value || !is_exact && known.eq_ignore_ascii_case(value);
                if !values.split(' ').any(is) {
                    let values = listed(values.split(' '));
                    return Some(format!("must be one of {values}"));
                }
                return None;
            }
            Number => (value.parse::<usize>().is_ok(), "is not a number"),
            Port => (value.parse::<u16>().is_ok(), "is not a port"),
            Host => (
                !value.contains([',', '[', ']']),
                "must be a single host: sqlx connects to one, and an IPv6 address has no brackets here",
            ),
            Address => (
                value.parse::<IpAddr>().is_ok(),
                "is not an IP address (an IPv6 address has no brackets here)",
            ),
        };
        (!is_right).then(|| why.to_owned())
    }
}

/// Returns what to write instead of a parameter that the driver does not know.
fn unknown(backend: DbBackend, name: &str, value: &str) -> String {
    let is_harmless = |c: char| c.is_ascii_alphanumeric() || "-_.[]".contains(c);
    let all = parameters(backend).iter().map(|(names, _)| *names);
    let known = all.clone().flat_map(|names| names.split(' '));
    let is_alike = |known: &&str| plain(known) == plain(name);
    let there_are = || format!("the known ones are {}", listed(all.clone().map(first)));
    let advice = if let Some(name) = known.clone().find(is_alike) {
        format!("write `{name}=…`")
    } else if let Some(advice) = advice(backend, name) {
        advice
    } else if let Some(setting) = NAMES.iter().copied().find(is_alike) {
        format!("write the setting `{setting}`, beside the URL")
    } else if let Some(near) = nearest(&name.to_ascii_lowercase(), known) {
        format!("did you mean `{near}`?")
    } else if name.len() > 40 || !name.chars().all(is_harmless) || value.is_empty() {
        // It may be the half of a password with a `?` in it.
        return format!(
            "the driver does not know one of its parameters; {}",
            there_are()
        );
    } else {
        there_are()
    };
    format!("the driver does not know its parameter `{name}`: {advice}")
}

fn advice(backend: DbBackend, name: &str) -> Option<String> {
    let of_backend = match backend {
        DbBackend::Postgres => POSTGRES_ADVICE,
        DbBackend::MySql => MYSQL_ADVICE,
        _ => SQLITE_ADVICE,
    };
    let forms = [name.to_ascii_lowercase(), plain(name)];
    let mut lines = of_backend.lines().chain(ANY_ADVICE.lines());
    lines.find_map(|line| {
        let (names, advice) = line.split_once(": ")?;
        let name = names
            .split(' ')
            .find(|name| forms.iter().any(|form| form == name))?;
        Some(advice.replace("{}", name))
    })
}

fn listed(names: impl Iterator<Item = &'static str>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Returns what is wrong if an authority for certificates is given and nothing is checked with it: libpq checks
/// as soon as it has one, sqlx in two modes only.
fn unchecked_certificate(backend: DbBackend, given: &Given) -> Option<String> {
    let (mode, authority, modes) = match backend {
        DbBackend::Postgres => ("sslmode", "sslrootcert", "verify-full` or `verify-ca"),
        DbBackend::MySql => ("ssl-mode", "ssl-ca", "VERIFY_IDENTITY` or `VERIFY_CA"),
        _ => return None,
    };
    let (name, _) = given.get(authority)?;
    let in_url = given.get(mode).map(|(_, mode)| mode.clone());
    // sqlx reads this variable for PostgreSQL.
    let from_env = || {
        env::var("PGSSLMODE")
            .ok()
            .filter(|_| backend == DbBackend::Postgres)
    };
    // The URL's goes first, as for sqlx.
    let chosen = in_url.or_else(from_env).unwrap_or_default();
    (!chosen.to_ascii_lowercase().starts_with("verify")).then(|| {
        format!("its parameter `{name}` does nothing unless the certificate is checked: write `{mode}={modes}` as well")
    })
}
