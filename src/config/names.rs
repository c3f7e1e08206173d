//! The names of all settings, and the one that a wrong one was meant to be.

/// Every name that a setting has.
pub(super) const NAMES: [&str; 32] = [
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
    "reserve",
    "max_waiting",
    "release_timeout",
    "warm",
    "reset",
    "pool_reset_on_return",
    "cancel_running",
    "warn_hold",
    "max_hold",
    "startup_timeout",
];

/// What others call the parts of a URL. Beside the prefix `DB_` they belong to another program.
pub(super) const PARTS_OF_A_URL: [&str; 17] = [
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
];

/// The name nearest to `wrong`, unless it is far from all of them.
pub(super) fn nearest(wrong: &str) -> Option<&'static str> {
    let near = NAMES.iter().map(|name| (distance(wrong, name), *name)).min()?;
    (near.0 <= 2.max(wrong.len() / 4)).then_some(near.1)
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
