//! The types of values: a number of connections, a time, a switch, a level.

use std::time::Duration;

use log::LevelFilter;
use serde::Deserialize;

use crate::Reset;

/// Defines types that serde reads from text by the given function. Its error says what to write instead.
macro_rules! read_from_text {
    ($($(#[$doc:meta])* $name:ident($value:ty) = $read:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
        #[serde(try_from = "String")]
        pub(super) struct $name(pub(super) $value);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                $read(text.trim().to_ascii_lowercase().as_str()).map(Self)
            }
        }
    )*};
}

read_from_text! {
    /// A number of connections.
    Count(u32) = |text| count(text, 0);
    /// A number of connections, 1 or more.
    Positive(u32) = |text| count(text, 1);
    /// A time of 1 ms or more.
    Time(Duration) = time;
    /// A time that may be 0.
    TimeOrZero(Duration) = time_or_zero;
    /// A time of 1 ms or more, or none.
    TimeOrNever(Option<Duration>) = time_or_never;
    /// A time of 1 ms or more; `never` is the longest one, which the pool's settings take for no limit.
    TimeOrMax(Duration) = |text| time_or_never(text).map(|time| time.unwrap_or(Duration::MAX));
    Switch(bool) = switch;
    Level(LevelFilter) = level;
    ResetOf(Reset) = reset;
    /// [`ResetOf`] in SQLAlchemy's words.
    ResetOnReturn(Reset) = reset_on_return;
}

impl From<ResetOnReturn> for ResetOf {
    fn from(value: ResetOnReturn) -> Self {
        Self(value.0)
    }
}

impl From<Positive> for Count {
    fn from(value: Positive) -> Self {
        Self(value.0)
    }
}

/// sqlx adds times to the clock's, which must not overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

const TIME: &str =
    "write seconds (`30`, `0.5`) or a number with a unit (`250ms`, `30s`, `5min`, `1h`, `1d`)";

fn count(text: &str, least: u32) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| *count >= least);
    count.ok_or_else(|| format!("write a whole number, {least} or more"))
}

fn time(text: &str) -> Result<Duration, String> {
    match time_or_zero(text)? {
        // PostgreSQL rounds a shorter `statement_timeout` to 0, which means no limit there.
        time if time < Duration::from_millis(1) => {
            Err("too short: write `1ms` or more, or leave it out".to_owned())
        }
        time => Ok(time),
    }
}

fn time_or_zero(text: &str) -> Result<Duration, String> {
    if text.starts_with('-') {
        return Err(format!("a time cannot be negative: {TIME}"));
    }
    match seconds(text).map(Duration::try_from_secs_f64) {
        Some(Ok(time)) if time <= LONGEST => Ok(time),
        Some(Ok(_)) => Err("too long: write `3650d` or less".to_owned()),
        _ => Err(format!("not a time: {TIME}")),
    }
}

fn time_or_never(text: &str) -> Result<Option<Duration>, String> {
    match text {
        "-1" | "never" => Ok(None),
        _ => time(text).map(Some),
    }
}

/// By hand: humantime takes no fractions, jiff no days for a duration, and no library takes a bare number
/// as seconds, which is SQLAlchemy's form.
fn seconds(text: &str) -> Option<f64> {
    let end_of_number = text.find(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(end_of_number.unwrap_or(text.len()));
    let unit = match unit {
        "ms" | "millis" | "milliseconds" => 0.001,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        _ => return None,
    };
    Some(number.trim().parse::<f64>().ok()? * unit)
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("write `true` or `false`".to_owned()),
    }
}

fn level(text: &str) -> Result<LevelFilter, String> {
    let otherwise = "write `off`, `error`, `warn`, `info`, `debug` or `trace`";
    text.parse().map_err(|_| otherwise.to_owned())
}

fn reset(text: &str) -> Result<Reset, String> {
    match text {
        "none" => Ok(Reset::None),
        "rollback_only" => Ok(Reset::RollbackOnly),
        "session_state" => Ok(Reset::SessionState),
        "session_state_always" => Ok(Reset::SessionStateAlways),
        _ => Err("write `none`, `rollback_only`, `session_state` or `session_state_always`".into()),
    }
}

fn reset_on_return(text: &str) -> Result<Reset, String> {
    match text {
        "none" => Ok(Reset::None),
        "rollback" => Ok(Reset::RollbackOnly),
        _ => Err("write `rollback` or `none`, or see `reset`".to_owned()),
    }
}
