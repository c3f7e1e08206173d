//! [`Given`]: the settings as they were written, from which serde reads their values.

use std::cell::Cell;

use serde::{
    Deserialize, Deserializer,
    de::{
        Error as _, IntoDeserializer, Visitor,
        value::{Error, MapDeserializer, StrDeserializer},
    },
    forward_to_deserialize_any,
};

use super::{
    error::ConfigError,
    names::{is_part_of_a_url, meant, names},
};

const OWN_PREFIX: &str = " (if it belongs to another program, read these settings under another prefix: \
     `PoolConfig::from_prefixed_vars`)";

/// Values that SQLAlchemy accepts and this crate does not: name, value, and what to write instead.
const NOT_AS_IN_SQLALCHEMY: &str = include_str!("advice/sqlalchemy.txt");

/// The settings that were written in one place.
#[derive(Default)]
pub(super) struct Given<'p> {
    /// The prefix of the environment's variables; empty for a file.
    prefix: &'p str,
    settings: Vec<Setting>,
}

struct Setting {
    name: String,
    /// The name as it was written.
    key: String,
    text: String,
}

impl<'p> Given<'p> {
    pub(super) fn with_prefix(prefix: &'p str) -> Self {
        Self {
            prefix,
            settings: Vec::new(),
        }
    }

    /// Adds the setting `name`, written as `key`.
    pub(super) fn add(&mut self, name: &str, key: &str, text: String) -> Result<(), ConfigError> {
        if names().all(|known| known != name) {
            return Err(self.no_such_setting(name, key));
        }
        match self.settings.iter().find(|before| before.name == name) {
            // Serde would refuse the second one even if it says the same.
            Some(before) if before.text.trim() == text.trim() => Ok(()),
            Some(_) => Err(self.disagreement(key, name)),
            None => {
                let (name, key) = (name.to_owned(), key.to_owned());
                self.settings.push(Setting { name, key, text });
                Ok(())
            }
        }
    }

    /// Reads the values of all settings.
    pub(super) fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ConfigError> {
        // Serde's error does not name the setting. It is the last one that was read.
        let last = Cell::new(None);
        let settings = self
            .settings
            .iter()
            .inspect(|setting| last.set(Some(*setting)));
        let settings = settings.map(|setting| (setting.name.as_str(), setting));
        T::deserialize(MapDeserializer::<_, Error>::new(settings)).map_err(|error| {
            let (key, text) = last
                .get()
                .map_or(("", ""), |it| (it.key.as_str(), it.text.as_str()));
            ConfigError::of_value(key, text, &error.to_string())
        })
    }

    /// Returns how the first of these settings that was given was written.
    pub(super) fn key<'a>(&'a self, names: &[&'a str]) -> &'a str {
        let given = |name: &&str| self.settings.iter().find(|setting| setting.name == *name);
        let key = names
            .iter()
            .find_map(given)
            .map(|setting| setting.key.as_str());
        key.or(names.first().copied()).unwrap_or_default()
    }

    /// Returns the error for `key`, whose setting has another value under the name `other`.
    pub(super) fn disagreement(&self, key: &str, other: &str) -> ConfigError {
        let other = self.key(&[other]);
        let why =
            "is another name of the same setting, with a different value: keep one of the two";
        ConfigError::new(key, format!("`{other}` {why}"))
    }

    /// Returns the error for a name that no setting has.
    fn no_such_setting(&self, name: &str, key: &str) -> ConfigError {
        let hint = if is_part_of_a_url(name) {
            format!(
                ": the whole connection is one URL: put it into `{}`",
                self.written("url")
            )
        } else if let Some(meant) = meant(name) {
            return self.misspelt(key, &self.written(meant));
        } else {
            let names: Vec<_> = names().map(|name| self.written(name)).collect();
            format!("; the settings are {}", names.join(", "))
        };
        ConfigError::new(key, format!("no such setting{hint}{}", self.own_prefix()))
    }

    /// Returns the error for a key that was meant to be another one.
    pub(super) fn misspelt(&self, key: &str, meant: &str) -> ConfigError {
        let own_prefix = self.own_prefix();
        ConfigError::new(
            key,
            format!("no such setting: did you mean `{meant}`?{own_prefix}"),
        )
    }

    /// Returns the setting's name as it is written here.
    pub(super) fn written(&self, name: &str) -> String {
        match self.prefix {
            "" => name.to_owned(),
            prefix => format!("{prefix}{}", name.to_uppercase()),
        }
    }

    fn own_prefix(&self) -> &'static str {
        if self.prefix.is_empty() {
            ""
        } else {
            OWN_PREFIX
        }
    }
}

impl<'de> Deserializer<'de> for &Setting {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(&self.text)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let entry = format!("{}={}: ", self.name, self.text.trim().to_ascii_lowercase());
        match NOT_AS_IN_SQLALCHEMY
            .lines()
            .find_map(|line| line.strip_prefix(&*entry))
        {
            Some(why) => Err(Error::custom(why)),
            None => visitor.visit_some(StrDeserializer::new(&self.text)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for &Setting {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
