//! [`Settings`]: everything that can be set, and which setting a wrong name was meant to be.

use std::time::Duration;

use log::LevelFilter;
use strsim::osa_distance;

use super::value::{
    count, level, pool_mode, positive, reset, reset_on_return, switch, time, time_or_max,
    time_or_never, time_or_zero, whole,
};
use crate::{PoolMode, Reset};

/// Values that SQLAlchemy accepts and this crate does not: name, value, and
/// what to write instead.
const NOT_AS_IN_SQLALCHEMY: &str = include_str!("advice/sqlalchemy.txt");

/// Makes [`Settings`] of a table: each setting's name, the type of its value,
/// and the function that reads it; behind them its name in SQLAlchemy.
// In one table, so that no setting has a name without a reader, or a field
// without a name.
macro_rules! settings {
    ($($name:ident: $value:ty = $read:ident $(, $other:ident = $read_other:ident)?;)*) => {
        /// The settings that were given, under SeaORM's names.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub(super) struct Settings {
            $(pub(super) $name: Option<$value>,)*
        }

        /// Every name that a setting has.
        pub(super) const NAMES: &[&str] = &[$(stringify!($name), $(stringify!($other),)?)*];

        impl Settings {
            /// Reads `text` as the value of the setting `name`. Returns `false`
            /// if the setting has another value already.
            ///
            /// # Errors
            ///
            /// What to write instead, if this is no value.
            pub(super) fn read(&mut self, name: &str, text: &str) -> Result<bool, String> {
                // Before it is read: some of these are numbers all the same,
                // and "write a whole number" would be no help.
                let entry = format!("{name}={}: ", text.trim().to_ascii_lowercase());
                let mut refused = NOT_AS_IN_SQLALCHEMY.lines();
                if let Some(why) = refused.find_map(|line| line.strip_prefix(&*entry)) {
                    return Err(why.to_owned());
                }
                $(
                    if name == stringify!($name) {
                        return Ok(put(&mut self.$name, $read(text)?));
                    }
                    $(if name == stringify!($other) {
                        return Ok(put(&mut self.$name, $read_other(text)?));
                    })?
                )*
                Ok(true)
            }
        }
    };
}

// The order is the one in which the error about an unknown name lists them.
// SQLAlchemy's names read into the same fields, so that two names of one
// setting can be compared.
settings! {
    // Taken out before anything is shown: it may have a password in it.
    url: String = whole;
    max_connections: u32 = positive;
    min_connections: u32 = count, pool_size = positive;
    max_overflow: u32 = count;
    connect_timeout: Duration = time;
    acquire_timeout: Duration = time, pool_timeout = time;
    idle_timeout: Option<Duration> = time_or_never;
    max_lifetime: Option<Duration> = time_or_never, pool_recycle = time_or_never;
    test_before_acquire: bool = switch, pool_pre_ping = switch;
    connect_lazy: bool = switch;
    sqlx_logging: bool = switch, echo = switch;
    sqlx_logging_level: LevelFilter = level;
    sqlx_slow_statements_logging_level: LevelFilter = level;
    sqlx_slow_statements_logging_threshold: Duration = time_or_zero;
    schema_search_path: String = whole;
    application_name: String = whole;
    statement_timeout: Duration = time;
    reserved_connections: u32 = count;
    max_pending: u32 = count;
    release_timeout: Duration = time;
    commit_timeout: Duration = time;
    direct_handoff: bool = switch;
    test_before_acquire_if_idle_for: Duration = time_or_zero;
    reset: Reset = reset, pool_reset_on_return = reset_on_return;
    pool_mode: PoolMode = pool_mode;
    cancel_running: bool = switch;
    hold_slow_threshold: Duration = time_or_max;
    hold_timeout: Duration = time_or_max;
    body_timeout: Duration = time_or_max;
    startup_timeout: Duration = time_or_zero;
}

/// Gives a setting its value, unless it has another one.
fn put<T: PartialEq>(setting: &mut Option<T>, value: T) -> bool {
    match setting {
        // By value: `30` and `30s` agree.
        Some(before) => *before == value,
        None => {
            *setting = Some(value);
            true
        }
    }
}

/// Names that others have for the parts of a URL. Beside the prefix `DB_` they
/// belong to another program.
const PARTS_OF_A_URL: &str = "host hostname port user username password password_file pass passwd \
     name database dbname socket connection driver dialect engine ssl sslmode ssl_mode dsn scheme";

/// Returns the setting that `name` was meant to be.
pub(super) fn meant(name: &str) -> Option<&'static str> {
    alike(name).or_else(|| nearest(name, NAMES.iter().copied()))
}

/// Returns the setting whose name differs from this one in case and separators
/// only.
pub(super) fn alike(name: &str) -> Option<&'static str> {
    let name = plain(name);
    NAMES.iter().copied().find(|known| plain(known) == name)
}

/// Returns the name's letters and digits, in lower case: programs differ most
/// in the rest.
pub(super) fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// Returns the name nearest to `wrong`, unless it is far from all of them.
pub(super) fn nearest<'n>(wrong: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // This distance counts two letters that have changed places as one mistake,
    // as in `POOL_SZIE`. Of two names as near, the one that is first by the
    // alphabet, so that the answer is always the same.
    let (distance, name) = names.map(|name| (osa_distance(wrong, name), name)).min()?;
    // In a short name, two other letters make another word: `test` is not
    // `reset`. Longer names bear more wrong letters before another one is as
    // near.
    let bound = match wrong.len() {
        ..=5 => 1,
        length => 2.max(length / 4),
    };
    (distance <= bound).then_some(name)
}

/// Returns whether a variable of this name, without its prefix, belongs to
/// another program.
pub(super) fn is_foreign(name: &str) -> bool {
    // A setting of ours in other letters is not passed over, but refused with
    // the right name.
    alike(name).is_none()
        && (is_part_of_a_url(name)
            || is_injected(name)
            || nearest(name, NAMES.iter().copied()).is_none())
}

pub(super) fn is_part_of_a_url(name: &str) -> bool {
    PARTS_OF_A_URL.split(' ').any(|part| part == name)
}

/// Returns whether Kubernetes or Docker's links set this name for a service
/// named like the prefix:
/// <https://kubernetes.io/docs/concepts/containers/container-environment/#cluster-information>,
/// <https://docs.docker.com/engine/network/links/#environment-variables>.
fn is_injected(name: &str) -> bool {
    // Such as `DB_PORT=tcp://10.0.0.11:5432`, which no person has written.
    let is_numbered = |(_, port): (&str, &str)| port.starts_with(|c: char| c.is_ascii_digit());
    name.starts_with("env_")
        || name.contains("_env_")
        || name.ends_with("service_host")
        || name.contains("service_port")
        || name.ends_with("_port")
        || name.split_once("port_").is_some_and(is_numbered)
}
