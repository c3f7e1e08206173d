//! The parameters of a URL: those that sqlx reads, with values that it takes.
//!
//! sqlx passes over the others, for MySQL without a line in the log: `ssl=true`
//! would leave TLS optional.

use std::{collections::BTreeMap, env, net::IpAddr};

use sea_orm::DbBackend;
use url::form_urlencoded::Parse;

use super::settings::{NAMES, nearest, plain};

// A line `= NAMES: VALUES` has all names of a parameter that sqlx reads, and
// the values that it may have: a list, or one of the kinds in [`refuse`]; from
// `src/options/parse.rs` of sqlx-postgres, sqlx-mysql and sqlx-sqlite 0.9.0.
// Any other line has names of a parameter that other drivers know, in the form
// of [`plain`] or exact ones, and what to write instead, where `{}` stands for
// the name.
const POSTGRES: &str = include_str!("advice/postgres.txt");
const MYSQL: &str = include_str!("advice/mysql.txt");
const SQLITE: &str = include_str!("advice/sqlite.txt");
const ANY: &str = include_str!("advice/any.txt");

/// PostgreSQL's settings for a session, the only parameter that may be given
/// several times.
const OPTIONS: &str = "options";

/// Parameters by their first name, each with the name and the value that it was
/// given.
type Given = BTreeMap<&'static str, (String, String)>;

/// Refuses a parameter that sqlx does not read, a value that it does not take,
/// and two that disagree. No error shows a value: `PoolConfig` shows no
/// parameters of a URL.
pub(super) fn check(backend: DbBackend, pairs: Parse<'_>) -> Result<(), String> {
    let mut given = Given::new();
    for (name, value) in pairs {
        let is_name = |(names, _): &(&str, _)| names.split(' ').any(|known| known == name);
        let Some((names, values)) = parameters(backend).find(is_name) else {
            // Any setting of the server may stand there, one of an extension as
            // well.
            if backend == DbBackend::Postgres && is_option(&name) {
                continue;
            }
            return Err(unknown(backend, &name, &value));
        };
        // sqlx would refuse it as well, but only when it connects.
        if let Some(why) = refuse(values, backend, &value) {
            return Err(format!("its parameter `{name}` {why}"));
        }
        let now = (name.into_owned(), value.into_owned());
        match given.insert(first(names), now.clone()) {
            // For sqlx the last one counts: which of the two was meant is for
            // their author to say.
            Some(before) if before.1 != now.1 && names != OPTIONS => {
                let (before, now) = (before.0, now.0);
                let why = format!("its parameters `{before}` and `{now}` disagree");
                return Err(why + ": keep one of the two");
            }
            _ => {}
        }
    }
    unchecked_certificate(backend, &given).map_or(Ok(()), Err)
}

fn lines(backend: DbBackend) -> std::str::Lines<'static> {
    match backend {
        DbBackend::Postgres => POSTGRES,
        DbBackend::MySql => MYSQL,
        _ => SQLITE,
    }
    .lines()
}

/// Returns the names and the values of each parameter that sqlx reads.
fn parameters(backend: DbBackend) -> impl Iterator<Item = (&'static str, &'static str)> + Clone {
    lines(backend).filter_map(|line| line.strip_prefix("= ")?.split_once(": "))
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

/// Returns what is wrong with `value`, which should be one of `values`.
fn refuse(values: &'static str, backend: DbBackend, value: &str) -> Option<String> {
    let (is_right, why) = match values {
        // sqlx takes any text there.
        "ANY" => return None,
        "NUMBER" => (value.parse::<usize>().is_ok(), "is not a number"),
        "PORT" => (value.parse::<u16>().is_ok(), "is not a port"),
        "HOST" => (
            !value.contains([',', '[', ']']),
            "must be a single host: sqlx connects to one, and an IPv6 address has no brackets here",
        ),
        "ADDRESS" => (
            value.parse::<IpAddr>().is_ok(),
            "is not an IP address (an IPv6 address has no brackets here)",
        ),
        _ => {
            // sqlx takes the modes of TLS in any case, SQLite's values as they
            // are.
            let is_exact = backend == DbBackend::Sqlite;
            let is = |known: &str| known == value || !is_exact && known.eq_ignore_ascii_case(value);
            let is_right = values.split(' ').any(is);
            return (!is_right).then(|| format!("must be one of {}", listed(values.split(' '))));
        }
    };
    (!is_right).then(|| why.to_owned())
}

/// Returns what to write instead of a parameter that the driver does not know.
fn unknown(backend: DbBackend, name: &str, value: &str) -> String {
    let is_harmless = |c: char| c.is_ascii_alphanumeric() || "-_.[]".contains(c);
    let all = parameters(backend).map(|(names, _)| names);
    let known = all.clone().flat_map(|names| names.split(' '));
    let is_alike = |known: &&str| plain(known) == plain(name);
    let there_are = || format!("the known ones are {}", listed(all.clone().map(first)));
    // From the surest to the vaguest: a known name in other letters, one of
    // another driver, a setting beside the URL, a typing mistake.
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
    // PostgreSQL's settings are known by their underscores
    // (`statement_timeout`), other drivers' parameters without.
    let forms = [name.to_ascii_lowercase(), plain(name)];
    let mut lines = lines(backend).chain(ANY.lines());
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

/// Returns what is wrong if an authority for certificates is given and nothing
/// is checked with it: libpq checks as soon as it has one, sqlx in two modes
/// only.
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
    // With a root certificate, libpq's `require` checks as well
    // (<https://www.postgresql.org/docs/current/libpq-ssl.html>): such a URL is
    // taken for safe, and with sqlx it is not.
    (!chosen.to_ascii_lowercase().starts_with("verify")).then(|| {
        format!("its parameter `{name}` does nothing unless the certificate is checked: write `{mode}={modes}` as well")
    })
}
