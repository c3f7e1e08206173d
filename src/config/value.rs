//! Reading values: a number of connections, a time, a switch, a level. Errors
//! say what to write instead.

use std::time::Duration;

use log::LevelFilter;

use crate::{PoolMode, Reset};

/// sqlx adds times to the clock's, which must not overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

const TIME: &str =
    "write seconds (`30`, `0.5`) or a number with a unit (`250ms`, `30s`, `5min`, `1h`, `1d`)";

const UNITS: &[(&str, f64)] = &[
    ("ms millis milliseconds", 0.001),
    ("s sec secs second seconds", 1.0),
    ("m min mins minute minutes", 60.0),
    ("h hour hours", 3600.0),
    ("d day days", 86400.0),
];

pub(super) fn whole(text: &str) -> Result<String, String> {
    // As for all others: the space around a value is never meant.
    Ok(text.trim().to_owned())
}

pub(super) fn count(text: &str) -> Result<u32, String> {
    at_least(0, text)
}

pub(super) fn positive(text: &str) -> Result<u32, String> {
    // A pool of none would serve nothing.
    at_least(1, text)
}

fn at_least(least: u32, text: &str) -> Result<u32, String> {
    let count = text.trim().parse().ok().filter(|count| *count >= least);
    count.ok_or_else(|| format!("write a whole number, {least} or more"))
}

/// Reads a time of 1 ms or more: PostgreSQL rounds a shorter
/// `statement_timeout` to 0, which means no limit there.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let is_long = |time: &Duration| *time >= Duration::from_millis(1);
    let time = Some(time_or_zero(text)?).filter(is_long);
    time.ok_or_else(|| "too short: write `1ms` or more, or leave it out".to_owned())
}

pub(super) fn time_or_zero(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    // "-1" means no limit for some settings of SQLAlchemy: it deserves its own
    // answer.
    if text.starts_with('-') {
        return Err(format!("a time cannot be negative: {TIME}"));
    }
    // Not `from_secs_f64`, which panics at what is too long.
    match seconds(text).map(Duration::try_from_secs_f64) {
        Some(Ok(time)) if time <= LONGEST => Ok(time),
        Some(Ok(_)) => Err("too long: write `3650d` or less".to_owned()),
        _ => Err(format!("not a time: {TIME}")),
    }
}

pub(super) fn time_or_never(text: &str) -> Result<Option<Duration>, String> {
    match one_of(&[("-1 never", ())], text) {
        Some(()) => Ok(None),
        None => time(text).map(Some),
    }
}

/// As [`time_or_never`]: `never` is the longest time, which the pool's settings
/// take for no limit.
pub(super) fn time_or_max(text: &str) -> Result<Duration, String> {
    time_or_never(text).map(|time| time.unwrap_or(Duration::MAX))
}

/// By hand: humantime takes no fractions, jiff no days for a duration, and no
/// library takes a bare number as seconds, which is SQLAlchemy's form.
fn seconds(text: &str) -> Option<f64> {
    // At the first letter, so that `1e3`, `inf` and `nan`, which `f64` would
    // read, are no times.
    let end_of_number = text.find(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(end_of_number.unwrap_or(text.len()));
    let unit = if unit.is_empty() { "s" } else { unit };
    Some(number.trim().parse::<f64>().ok()? * one_of(UNITS, unit)?)
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    let words = [("true 1 yes on", true), ("false 0 no off", false)];
    one_of(&words, text).ok_or_else(|| "write `true` or `false`".to_owned())
}

pub(super) fn level(text: &str) -> Result<LevelFilter, String> {
    let otherwise = "write `off`, `error`, `warn`, `info`, `debug` or `trace`";
    text.trim().parse().map_err(|_| otherwise.to_owned())
}

pub(super) fn reset(text: &str) -> Result<Reset, String> {
    let words = [
        ("none", Reset::None),
        ("rollback_only", Reset::RollbackOnly),
        ("session_state", Reset::SessionState),
        ("session_state_always", Reset::SessionStateAlways),
    ];
    let otherwise = "write `none`, `rollback_only`, `session_state` or `session_state_always`";
    one_of(&words, text).ok_or_else(|| otherwise.to_owned())
}

/// In PgBouncer's words.
pub(super) fn pool_mode(text: &str) -> Result<PoolMode, String> {
    let words = [
        ("session", PoolMode::Session),
        ("transaction", PoolMode::Transaction),
    ];
    one_of(&words, text).ok_or_else(|| "write `session` or `transaction`".to_owned())
}

/// In SQLAlchemy's words.
pub(super) fn reset_on_return(text: &str) -> Result<Reset, String> {
    let words = [("none", Reset::None), ("rollback", Reset::RollbackOnly)];
    let otherwise = "write `rollback` or `none`, or see `reset`";
    one_of(&words, text).ok_or_else(|| otherwise.to_owned())
}

/// Returns the meaning of `text` in a table of words.
fn one_of<T: Copy>(table: &[(&str, T)], text: &str) -> Option<T> {
    let is_word = |(words, _): &&(&str, T)| {
        let mut words = words.split(' ');
        // In any case: YAML takes `True` and `TRUE` as well.
        words.any(|word| word.eq_ignore_ascii_case(text.trim()))
    };
    table.iter().find(is_word).map(|(_, meaning)| *meaning)
}
