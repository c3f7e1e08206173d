//! [`BodyError`]: why a body fails instead of ending.

use std::{error::Error, fmt};

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

#[derive(Debug)]
pub(super) enum BodyError {
    NotCommitted(BoxError),
    CutOff(crate::Error),
    TooLong,
    TooShort,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotCommitted(_) => "the response's transaction could not be committed",
            Self::CutOff(_) => "the response's session was cut off before the body's end",
            Self::TooLong => {
                "the response's body is longer than its declared length; its transaction is rolled back"
            }
            Self::TooShort => {
                "the response's body ended before its declared length; its transaction is rolled back"
            }
        })
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NotCommitted(source) => Some(&**source),
            Self::CutOff(source) => Some(source),
            Self::TooLong | Self::TooShort => None,
        }
    }
}
