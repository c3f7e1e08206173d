//! [`BeginRule`]: what a layer has each BEGIN bring along.

use std::{borrow::Cow, sync::Arc, time::Duration};

use http::request::Parts;
use sea_orm::DbBackend;

use super::SetUp;
use crate::{
    connection::{BeginSetUp, Demand, Settings, check_name},
    error::Error,
};

/// What a layer has each BEGIN bring along, made from the request's parts.
#[derive(Clone, Default)]
pub(crate) struct BeginRule {
    statements: Option<SetUp>,
    statement_timeout: Option<Duration>,
    lock_timeout: Option<Duration>,
    // Not a map: which names mean the same setting is for `Settings::set` to
    // say.
    parameters: Vec<(Cow<'static, str>, Value)>,
    // Not among the parameters, which put a request into a transaction.
    application_name: Option<Value>,
}

/// A setting's value for a request.
type Value = Arc<dyn Fn(&Parts) -> String + Send + Sync>;

impl BeginRule {
    pub(crate) fn statements(&mut self, set_up: SetUp) {
        self.statements = Some(set_up);
    }

    pub(crate) fn statement_timeout(&mut self, timeout: Duration) {
        self.statement_timeout = Some(timeout);
    }

    pub(crate) fn lock_timeout(&mut self, timeout: Duration) {
        self.lock_timeout = Some(timeout);
    }

    /// # Panics
    ///
    /// If `name` is no name of a setting.
    #[track_caller]
    pub(crate) fn set_local(&mut self, name: Cow<'static, str>, value: Value) {
        // Where the layer is built, so that the panic names its line and not a
        // request's.
        if let Err(kind) = check_name(&name) {
            panic!("{}: {name:?}", Error::from(kind));
        }
        self.parameters.push((name, value));
    }

    pub(crate) fn application_name(&mut self, name: Value) {
        self.application_name = Some(name);
    }

    /// # Panics
    ///
    /// If `backend` cannot do this.
    #[track_caller]
    pub(crate) fn assert_for(&self, backend: DbBackend) {
        let mut settings = self.timeouts();
        // Without values, which no request has brought yet: whether the
        // database has such settings does not depend on them.
        for (name, _) in &self.parameters {
            settings.set(name.clone(), String::new());
        }
        if self.application_name.is_some() {
            settings.name("");
        }
        if let Err(kind) = settings.check(backend) {
            panic!("{}", Error::from(kind));
        }
    }

    /// Returns what BEGIN brings along for a request; `None` if that is
    /// nothing.
    ///
    /// Where statements are limited, those of a request whose client waits no
    /// longer than `left` are limited by that.
    pub(crate) fn set_up(&self, parts: &Parts, left: Option<Duration>) -> Option<BeginSetUp> {
        let mut settings =
            // Within BEGIN's text and not by statements of their own, which
            // would each cost a round trip.
            Settings::timeouts(self.statement_timeout_within(left), self.lock_timeout);
        for (name, value) in &self.parameters {
            settings.set(name.clone(), value(parts));
        }
        if let Some(name) = &self.application_name {
            settings.name(&name(parts));
        }
        if settings.is_empty() && self.statements.is_none() {
            return None;
        }
        let statements = self.statements.as_ref();
        Some(BeginSetUp {
            // A name alone puts no request into a transaction: a statement that
            // commits by itself runs under the connection's own.
            is_required: settings.is_required() || statements.is_some(),
            settings,
            statements: statements.map(|set_up| set_up(parts)).unwrap_or_default(),
            demand: Demand::None,
        })
    }

    fn statement_timeout_within(&self, left: Option<Duration>) -> Option<Duration> {
        let (own, Some(left)) = (self.statement_timeout?, left) else {
            return self.statement_timeout;
        };
        // Zero is no limit.
        let left = left.max(Duration::from_millis(1));
        Some(if own.is_zero() { left } else { own.min(left) })
    }

    fn timeouts(&self) -> Settings {
        Settings::timeouts(self.statement_timeout, self.lock_timeout)
    }
}
