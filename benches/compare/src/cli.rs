//! [`Options`]: `--name value` pairs, and `--name` alone.

use std::{collections::BTreeMap, str::FromStr};

use crate::Failure;

/// What stood on the command line after the command.
#[derive(Debug, Default)]
pub struct Options {
    words: Vec<String>,
    values: BTreeMap<String, Vec<String>>,
}

impl Options {
    /// Reads the arguments; those named in `switches` take no value.
    pub fn parse(
        arguments: impl Iterator<Item = String>,
        switches: &[&str],
    ) -> Result<Self, Failure> {
        let mut options = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let Some(name) = argument.strip_prefix("--") else {
                options.words.push(argument);
                continue;
            };
            let value = match switches.contains(&name) {
                true => String::new(),
                false => arguments.next().ok_or(format!("--{name} needs a value"))?,
            };
            options
                .values
                .entry(name.to_owned())
                .or_default()
                .push(value);
        }
        Ok(options)
    }

    pub fn word(&self, at: usize) -> Option<&str> {
        self.words.get(at).map(String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.all(name).last().map(String::as_str)
    }

    pub fn needed(&self, name: &str) -> Result<&str, Failure> {
        Ok(self.text(name).ok_or(format!("--{name} is missing"))?)
    }

    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        Ok(Some(
            text.parse()
                .map_err(|_| format!("--{name} {text}: not a number"))?,
        ))
    }

    /// Refuses options that nobody reads.
    pub fn only(&self, known: &[&str]) -> Result<(), Failure> {
        match self
            .values
            .keys()
            .find(|name| !known.contains(&name.as_str()))
        {
            Some(name) => Err(format!(
                "unknown option --{name}; there are: --{}",
                known.join(" --")
            )
            .into()),
            None => Ok(()),
        }
    }
}
