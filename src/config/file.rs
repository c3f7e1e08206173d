//! Settings from a file, by serde.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

use super::{error::ConfigError, given::Given};

/// A value of any format. It is read as the text that a variable would have.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Switch(bool),
    // Before `Number`, by which a large one would lose digits.
    Whole(i64),
    Number(f64),
    Text(String),
    // Last, because it takes anything.
    Nested(IgnoredAny),
}

/// Reads the settings of a file.
pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Given<'static>, D::Error> {
    // Not into a struct by serde's derive: its error for an unknown field knows
    // no name that was meant, and its aliases do not tell whether two values
    // agree.
    deserializer.deserialize_map(Table)
}

struct Table;

impl<'de> Visitor<'de> for Table {
    type Value = Given<'static>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings of a database pool")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut given = Given::nothing("", "url");
        // Entry by entry: a map would lose one of two with the same name.
        while let Some((key, value)) = map.next_entry::<String, Option<Value>>()? {
            // As text, so that a value means the same in a file and in a
            // variable.
            let text = match value {
                // `null` is not set, as an empty variable is not.
                None => continue,
                Some(Value::Switch(value)) => value.to_string(),
                Some(Value::Whole(value)) => value.to_string(),
                Some(Value::Number(value)) => value.to_string(),
                Some(Value::Text(text)) => text,
                // `{ secs = 3, nanos = 0 }` is what serde makes of a
                // `Duration`.
                Some(Value::Nested(_)) => {
                    let why = "write text, a number, `true` or `false`";
                    return Err(Error::custom(ConfigError::new(key, why)));
                }
            };
            given.add(&key, &key, text).map_err(Error::custom)?;
        }
        Ok(given)
    }
}
