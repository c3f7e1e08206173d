//! [`BodyError`]: why a body is broken off.

use std::{error::Error, fmt};

use super::BoxError;

#[derive(Debug)]
pub(super) struct BodyError {
    kind: Kind,
    source: Option<BoxError>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    NotCommitted,
    CutOff,
    TooLong,
    TooShort,
}

impl BodyError {
    pub(super) fn not_committed(source: BoxError) -> BoxError {
        Box::new(Self {
            kind: Kind::NotCommitted,
            source: Some(source),
        })
    }

    pub(super) fn cut_off(why: crate::Error) -> BoxError {
        Box::new(Self {
            kind: Kind::CutOff,
            source: Some(Box::new(why)),
        })
    }

    pub(super) fn too_long() -> BoxError {
        Box::new(Self {
            kind: Kind::TooLong,
            source: None,
        })
    }

    pub(super) fn too_short() -> BoxError {
        Box::new(Self {
            kind: Kind::TooShort,
            source: None,
        })
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::NotCommitted => "the response's transaction could not be committed",
            Kind::CutOff => "the response's session was cut off before the body's end",
            Kind::TooLong => {
                "the response's body is longer than its length; its transaction is rolled back"
            }
            Kind::TooShort => {
                "the response's body ended before its length; its transaction is rolled back"
            }
        })
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
