//! The names of all settings, and the one that a wrong one was meant to be.

/// Every name that a setting has.
pub(super) const NAMES: [&str; 33] = [
    "url",
    "max_connections",
    "min_connections",
    "pool_size",
    "max_overflow",
    "connect_timeout",
    "acquire_timeout",
    "pool_timeout",
    "idle_timeout",
    "max_lifetime",
    "pool_recycle",
    "test_before_acquire",
    "pool_pre_ping",
    "connect_lazy",
    "sqlx_logging",
    "echo",
    "sqlx_logging_level",
    "sqlx_slow_statements_logging_level",
    "sqlx_slow_statements_logging_threshold",
    "schema_search_path",
    "application_name",
    "statement_timeout",
    "reserved_connections",
    "max_pending",
    "release_timeout",
    "direct_handoff",
    "reset",
    "pool_reset_on_return",
    "cancel_running",
    "hold_slow_threshold",
    "hold_timeout",
    "body_timeout",
    "startup_timeout",
];

/// What others call the parts of a URL. Beside the prefix `DB_` they belong to another program.
const PARTS_OF_A_URL: [&str; 22] = [
    "host",
    "hostname",
    "port",
    "user",
    "username",
    "password",
    "password_file",
    "pass",
    "passwd",
    "name",
    "database",
    "dbname",
    "socket",
    "connection",
    "driver",
    "dialect",
    "engine",
    "ssl",
    "sslmode",
    "ssl_mode",
    "dsn",
    "scheme",
];

/// What a variable's name is to this crate, without its prefix.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Setting,
    /// Almost the name of this setting.
    Misspelt(&'static str),
    /// Another program's.
    Foreign,
}

pub(super) fn meaning(name: &str) -> Meaning {
    let name = name.to_ascii_lowercase();
    if NAMES.contains(&name.as_str()) {
        Meaning::Setting
    } else if let Some(meant) = alike(&name) {
        Meaning::Misspelt(meant)
    } else if is_part_of_a_url(&name) || is_injected(&name) {
        Meaning::Foreign
    } else {
        nearest(&name, NAMES).map_or(Meaning::Foreign, Meaning::Misspelt)
    }
}

/// The setting whose name is this one but for case and separators.
pub(super) fn alike(name: &str) -> Option<&'static str> {
    let name = plain(name);
    NAMES.into_iter().find(|known| plain(known) == name)
}

/// Letters and digits only, in lower case.
pub(super) fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

pub(super) fn is_part_of_a_url(name: &str) -> bool {
    PARTS_OF_A_URL.contains(&name)
}

/// What Kubernetes and Docker's links set for a service of the prefix's name:
/// <https://kubernetes.io/docs/concepts/containers/container-environment/#cluster-information>,
/// <https://docs.docker.com/engine/network/links/#environment-variables>.
fn is_injected(name: &str) -> bool {
    let has_number = |port: &str| port.starts_with(|c: char| c.is_ascii_digit());
    name.starts_with("env_")
        || name.contains("_env_")
        || name.ends_with("service_host")
        || name.contains("service_port")
        || name.ends_with("_port")
        || name
            .split_once("port_")
            .is_some_and(|(_, port)| has_number(port))
}

/// The name nearest to `wrong`, unless it is far from all of them.
pub(super) fn nearest<'n>(
    wrong: &str,
    names: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    let near = names
        .into_iter()
        .map(|name| (distance(wrong, name), name))
        .min()?;
    // Of few letters, two others are another word: `test` is not `reset`.
    let bound = if wrong.len() <= 5 {
        1
    } else {
        2.max(wrong.len() / 4)
    };
    (near.0 <= bound).then_some(near.1)
}

/// How many letters are to be put in, left out, changed or swapped with the next one.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<_>>()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let changed = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}
