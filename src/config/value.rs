//! One value: a number of connections, a time, a switch, a level.

use std::time::Duration;

use log::LevelFilter;

use super::ConfigError;
use crate::Reset;

/// sqlx adds times to the clock's, which must not overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

const TIME: &str =
    "write seconds (`30`, `0.5`) or a number with a unit (`250ms`, `30s`, `5min`, `1h`, `1d`)";

/// A number of connections, `least` or more.
pub(super) fn count(key: &str, text: &str, least: u32) -> Result<u32, ConfigError> {
    let count = text.trim().parse().ok().filter(|count| *count >= least);
    count.ok_or_else(|| refused(key, text, &format!("write a whole number, {least} or more")))
}

/// How many connections `pool_size` asks for.
pub(super) fn pool_size(key: &str, text: &str) -> Result<u32, ConfigError> {
    match text.trim() {
        "0" => Err(refused(
            key,
            text,
            "no limit in SQLAlchemy, and there is no such pool here: write how many connections to keep open",
        )),
        _ => count(key, text, 1),
    }
}

/// How many connections `max_overflow` adds.
pub(super) fn max_overflow(key: &str, text: &str) -> Result<u32, ConfigError> {
    match text.trim() {
        "-1" => Err(refused(
            key,
            text,
            "no limit in SQLAlchemy, and there is no such pool here: write how many more connections than `pool_size` \
             the server can spare",
        )),
        _ => count(key, text, 0),
    }
}

/// A time of 1 ms or more.
pub(super) fn time(key: &str, text: &str) -> Result<Duration, ConfigError> {
    let time = time_or_zero(key, text)?;
    // Less is nothing to PostgreSQL's `statement_timeout`, and nothing is no limit there.
    if time < Duration::from_millis(1) {
        return Err(refused(
            key,
            text,
            "too short: write `1ms` or more, or leave it out",
        ));
    }
    Ok(time)
}

/// A time that may be 0.
pub(super) fn time_or_zero(key: &str, text: &str) -> Result<Duration, ConfigError> {
    if text.trim().starts_with('-') {
        return Err(refused(
            key,
            text,
            &format!("a time cannot be negative: {TIME}"),
        ));
    }
    let time = seconds(text).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match time.ok_or_else(|| refused(key, text, &format!("no time: {TIME}")))? {
        time if time > LONGEST => Err(refused(key, text, "too long: write `3650d` or less")),
        time => Ok(time),
    }
}

/// A time of 1 ms or more; `None` for `-1` and `never`.
pub(super) fn time_or_never(key: &str, text: &str) -> Result<Option<Duration>, ConfigError> {
    match text.trim() {
        "-1" | "never" => Ok(None),
        _ => time(key, text).map(Some),
    }
}

fn seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let (number, unit) = text.split_at(
        text.find(|c: char| c.is_ascii_alphabetic())
            .unwrap_or(text.len()),
    );
    let unit = match unit.to_ascii_lowercase().as_str() {
        "ms" | "millis" | "milliseconds" => 0.001,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        _ => return None,
    };
    Some(number.trim().parse::<f64>().ok()? * unit)
}

/// Yes or no.
pub(super) fn switch(key: &str, text: &str) -> Result<bool, ConfigError> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        "debug" if key.to_ascii_lowercase().ends_with("echo") => Err(refused(
            key,
            text,
            "the rows are logged by nobody here: write `true` for the statements",
        )),
        _ => Err(refused(key, text, "write `true` or `false`")),
    }
}

/// What a connection is freed of.
pub(super) fn reset(key: &str, text: &str) -> Result<Reset, ConfigError> {
    match text.trim().to_ascii_lowercase().as_str() {
        "none" => Ok(Reset::None),
        "rollback_only" => Ok(Reset::RollbackOnly),
        "session_state" => Ok(Reset::SessionState),
        "session_state_always" => Ok(Reset::SessionStateAlways),
        _ => Err(refused(
            key,
            text,
            "write `none`, `rollback_only`, `session_state` or `session_state_always`",
        )),
    }
}

/// The same in SQLAlchemy's words.
pub(super) fn reset_on_return(key: &str, text: &str) -> Result<Reset, ConfigError> {
    match text.trim().to_ascii_lowercase().as_str() {
        "none" => Ok(Reset::None),
        "rollback" => Ok(Reset::RollbackOnly),
        "commit" => Err(refused(
            key,
            text,
            "what nobody has committed is never committed here: write `rollback`",
        )),
        _ => Err(refused(
            key,
            text,
            "write `rollback` or `none`, or see `reset`",
        )),
    }
}

/// A level of the log.
pub(super) fn level(key: &str, text: &str) -> Result<LevelFilter, ConfigError> {
    let level = text.trim().parse();
    level.map_err(|_| {
        refused(
            key,
            text,
            "write `off`, `error`, `warn`, `info`, `debug` or `trace`",
        )
    })
}

/// The error for `text`, which is shown if it can be no secret.
fn refused(key: &str, text: &str, why: &str) -> ConfigError {
    let harmless = |c: char| c.is_ascii_alphanumeric() || " .+-_".contains(c);
    if text.len() <= 24 && text.chars().all(harmless) {
        ConfigError::new(key, format!("\"{text}\" is refused: {why}"))
    } else {
        ConfigError::new(key, format!("this value is refused: {why}"))
    }
}
