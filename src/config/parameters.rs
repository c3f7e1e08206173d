//! The parameters of a URL: those that sqlx reads, with values that it takes.
//!
//! sqlx passes over the others, for MySQL without a line in the log: `ssl=true` would leave TLS optional.

use std::{collections::BTreeMap, env, net::IpAddr};

use sea_orm::DbBackend;

use super::{
    ConfigError,
    advice::advice,
    names::{NAMES, nearest},
};

/// A parameter under all of its names.
type Parameter = (&'static [&'static str], Values);

/// What its value may be.
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
        &["sslmode", "ssl-mode"],
        OneOf("disable allow prefer require verify-ca verify-full"),
    ),
    (&["sslrootcert", "ssl-root-cert", "ssl-ca"], Any),
    (&["sslcert", "ssl-cert"], Any),
    (&["sslkey", "ssl-key"], Any),
    (&["statement-cache-capacity"], Number),
    (&["host"], Host),
    (&["hostaddr"], Address),
    (&["port"], Port),
    (&["dbname"], Any),
    (&["user"], Any),
    (&["password"], Any),
    (&["application_name"], Any),
    (&[OPTIONS], Any),
];
const MYSQL: &[Parameter] = &[
    (
        &["ssl-mode", "sslmode"],
        OneOf("disabled preferred required verify_ca verify_identity"),
    ),
    (&["ssl-ca", "sslca"], Any),
    (&["ssl-cert", "sslcert"], Any),
    (&["ssl-key", "sslkey"], Any),
    (&["charset"], Any),
    (&["collation"], Any),
    (&["statement-cache-capacity"], Number),
    (&["socket"], Any),
    (&["timezone", "time-zone"], Any),
];
const SQLITE: &[Parameter] = &[
    (&["mode"], OneOf("ro rw rwc memory")),
    (&["cache"], OneOf("private shared")),
    (&["immutable"], OneOf("true 1 false 0")),
    (&["vfs"], Any),
];

/// PostgreSQL's settings for a session, the one parameter that may be given several times.
const OPTIONS: &str = "options";

/// Refuses a parameter that sqlx does not read, a value that it does not take, and two that disagree.
pub(super) fn check<N: AsRef<str>, V: AsRef<str>>(
    key: &str,
    backend: DbBackend,
    pairs: impl IntoIterator<Item = (N, V)>,
) -> Result<(), ConfigError> {
    let refused = |why: String| Err(ConfigError::new(key, why));
    let mut given = BTreeMap::<&str, (String, String)>::new();
    for (name, value) in pairs {
        let (name, value) = (name.as_ref(), value.as_ref());
        let Some((names, values)) = parameters(backend)
            .iter()
            .find(|(names, _)| names.contains(&name))
        else {
            if backend == DbBackend::Postgres && is_option(name) {
                continue;
            }
            return refused(unknown(backend, name, value));
        };
        // What `PoolConfig` shows of a URL has no parameters, so no text here shows a value.
        if let Some(why) = values.refuse(backend, value) {
            return refused(format!("its parameter `{name}` {why}"));
        }
        if names[0] == OPTIONS {
            continue;
        }
        match given.insert(names[0], (name.to_owned(), value.to_owned())) {
            Some((before, other)) if other != value => {
                return refused(format!(
                    "its parameters `{before}` and `{name}` disagree: keep one of the two"
                ));
            }
            _ => {}
        }
    }
    match unchecked_certificate(backend, &given) {
        Some(why) => refused(why),
        None => Ok(()),
    }
}

fn parameters(backend: DbBackend) -> &'static [Parameter] {
    match backend {
        DbBackend::Postgres => POSTGRES,
        DbBackend::MySql => MYSQL,
        _ => SQLITE,
    }
}

/// `options[search_path]`.
fn is_option(name: &str) -> bool {
    name.strip_prefix("options[")
        .and_then(|name| name.strip_suffix(']'))
        .is_some_and(|name| !name.is_empty())
}

impl Values {
    /// What is wrong with `value`.
    fn refuse(self, backend: DbBackend, value: &str) -> Option<String> {
        // sqlx takes the modes of TLS in any case, SQLite's values as they are.
        let folded = if backend == DbBackend::Sqlite {
            value.to_owned()
        } else {
            value.to_ascii_lowercase()
        };
        let fits = match self {
            Any => true,
            OneOf(values) => values.split(' ').any(|known| known == folded),
            Number => value.parse::<usize>().is_ok(),
            Port => value.parse::<u16>().is_ok(),
            Host => !value.contains([',', '[', ']']),
            Address => value.parse::<IpAddr>().is_ok(),
        };
        (!fits).then(|| match self {
            OneOf(values) => format!("has another value than {}", listed(values.split(' '))),
            Number | Any => "is no number".to_owned(),
            Port => "is no port".to_owned(),
            Host => {
                "is not one host: sqlx connects to one, and an IPv6 address has no brackets here"
                    .to_owned()
            }
            Address => "is no IP address (an IPv6 address has no brackets here)".to_owned(),
        })
    }
}

/// What to write instead of a parameter that the driver does not know.
fn unknown(backend: DbBackend, name: &str, value: &str) -> String {
    let is_harmless = |c: char| c.is_ascii_alphanumeric() || "-_.[]".contains(c);
    let known = || {
        parameters(backend)
            .iter()
            .flat_map(|(names, _)| names.iter().copied())
    };
    let canonical = parameters(backend).iter().map(|(names, _)| names[0]);
    let plain = plain(name);
    let advice = if let Some(name) = known().find(|name| self::plain(name) == plain) {
        format!("write `{name}=…`")
    } else if let Some(advice) = advice(backend, name, &plain) {
        advice
    } else if let Some(setting) = NAMES.iter().find(|setting| self::plain(setting) == plain) {
        format!("write the setting `{setting}`, beside the URL")
    } else if let Some(near) = nearest(&name.to_ascii_lowercase(), known()) {
        format!("did you mean `{near}`?")
    } else if name.len() > 40 || !name.chars().all(is_harmless) || value.is_empty() {
        // It may be the half of a password with a `?` in it.
        return format!(
            "the driver does not know one of its parameters; there are {}",
            listed(canonical)
        );
    } else {
        format!("there are {}", listed(canonical))
    };
    format!("the driver does not know its parameter `{name}`: {advice}")
}

/// Without capitals and signs: drivers differ in these most.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| !"-_".contains(*c))
        .collect::<String>()
        .to_ascii_lowercase()
}

fn listed(names: impl Iterator<Item = &'static str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// libpq looks at the certificate as soon as it has an authority to check it with; sqlx does so in two
/// modes only.
fn unchecked_certificate(
    backend: DbBackend,
    given: &BTreeMap<&str, (String, String)>,
) -> Option<String> {
    let (mode, authority, from_env) = match backend {
        DbBackend::Postgres => ("sslmode", "sslrootcert", env::var("PGSSLMODE").ok()),
        DbBackend::MySql => ("ssl-mode", "ssl-ca", None),
        _ => return None,
    };
    let (name, _) = given.get(authority)?;
    let is_checked = given.get(mode).map(|(_, mode)| mode.clone()).or(from_env);
    if is_checked.is_some_and(|mode| mode.to_ascii_lowercase().starts_with("verify")) {
        return None;
    }
    let modes = if backend == DbBackend::Postgres {
        "verify-full` or `verify-ca"
    } else {
        "VERIFY_IDENTITY` or `VERIFY_CA"
    };
    Some(format!(
        "its parameter `{name}` does nothing unless the certificate is checked: write `{mode}={modes}` as well"
    ))
}
