//! The names of settings, and which one a wrong name was meant to be.

use strsim::osa_distance;

/// The fields of [`Settings`](super::settings::Settings).
const NAMES: &str = "url max_connections min_connections pool_size max_overflow connect_timeout \
     acquire_timeout pool_timeout idle_timeout max_lifetime pool_recycle test_before_acquire \
     pool_pre_ping connect_lazy sqlx_logging echo sqlx_logging_level \
     sqlx_slow_statements_logging_level sqlx_slow_statements_logging_threshold schema_search_path \
     application_name statement_timeout reserved_connections max_pending release_timeout \
     direct_handoff reset pool_reset_on_return cancel_running hold_slow_threshold hold_timeout \
     body_timeout startup_timeout";

/// Names that others have for the parts of a URL. Beside the prefix `DB_` they belong to another program.
const PARTS_OF_A_URL: &str = "host hostname port user username password password_file pass passwd \
     name database dbname socket connection driver dialect engine ssl sslmode ssl_mode dsn scheme";

/// Returns every name that a setting has.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    NAMES.split(' ')
}

/// Returns the setting that `name` was meant to be.
pub(super) fn meant(name: &str) -> Option<&'static str> {
    alike(name).or_else(|| nearest(name, names()))
}

/// Returns the setting whose name differs from this one in case and separators only.
pub(super) fn alike(name: &str) -> Option<&'static str> {
    let name = plain(name);
    names().find(|known| plain(known) == name)
}

/// Returns the name's letters and digits, in lower case: programs differ most in the rest.
pub(super) fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// Returns the name nearest to `wrong`, unless it is far from all of them.
pub(super) fn nearest<'n>(wrong: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let (distance, name) = names.map(|name| (osa_distance(wrong, name), name)).min()?;
    // In a short name, two other letters make another word: `test` is not `reset`.
    let bound = match wrong.len() {
        ..=5 => 1,
        length => 2.max(length / 4),
    };
    (distance <= bound).then_some(name)
}

/// Returns whether a variable of this name, without its prefix, belongs to another program.
pub(super) fn is_foreign(name: &str) -> bool {
    alike(name).is_none()
        && (is_part_of_a_url(name) || is_injected(name) || nearest(name, names()).is_none())
}

pub(super) fn is_part_of_a_url(name: &str) -> bool {
    PARTS_OF_A_URL.split(' ').any(|part| part == name)
}

/// Returns whether Kubernetes or Docker's links set this name for a service named like the prefix:
/// <https://kubernetes.io/docs/concepts/containers/container-environment/#cluster-information>,
/// <https://docs.docker.com/engine/network/links/#environment-variables>.
fn is_injected(name: &str) -> bool {
    let is_numbered = |(_, port): (&str, &str)| port.starts_with(|c: char| c.is_ascii_digit());
    name.starts_with("env_")
        || name.contains("_env_")
        || name.ends_with("service_host")
        || name.contains("service_port")
        || name.ends_with("_port")
        || name.split_once("port_").is_some_and(is_numbered)
}
