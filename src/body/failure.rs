//! [`Failure`]: how a body fails instead of ending, and [`BodyError`]: why.

use std::{error::Error, fmt};

use http::HeaderMap;

use super::hold::{BoxError, CutOff};

/// How a body fails.
pub(super) struct Failure {
    pub(super) error: BoxError,
    /// What a gRPC client gets in place of the error.
    pub(super) trailers: Option<HeaderMap>,
}

impl Failure {
    pub(super) fn new(error: BodyError, has_grpc_trailers: bool) -> Self {
        Self {
            // For gRPC only: any other recipient may drop trailers without a
            // look (<https://www.rfc-editor.org/rfc/rfc9110#section-6.5.1>),
            // and would take the body for complete (G7).
            trailers: has_grpc_trailers.then(|| error.grpc_trailers()),
            error: error.into(),
        }
    }

    /// One that breaks the body off.
    pub(super) fn breaking(error: impl Into<BoxError>) -> Self {
        Self {
            error: error.into(),
            trailers: None,
        }
    }
}

impl From<CutOff> for Failure {
    fn from(cut_off: CutOff) -> Self {
        Self::new(BodyError::CutOff(cut_off.why), cut_off.has_grpc_trailers)
    }
}

#[derive(Debug)]
pub(super) enum BodyError {
    NotCommitted(BoxError),
    CutOff(crate::Error),
    // The handler's mistakes, which are found before COMMIT is sent.
    TooLong,
    TooShort,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the source's text, which a log that walks the chain would
        // show twice.
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
            // For the log of the server that polls the body, which gets nothing
            // but this error.
            Self::NotCommitted(source) => Some(&**source),
            Self::CutOff(source) => Some(source),
            Self::TooLong | Self::TooShort => None,
        }
    }
}

impl BodyError {
    /// The status that the layer would have answered with at the head.
    fn grpc_trailers(&self) -> HeaderMap {
        let known = match self {
            // This crate's own, unless the task that was to commit has died:
            // that has no status.
            Self::NotCommitted(source) => source.downcast_ref(),
            Self::CutOff(source) => Some(source),
            Self::TooLong | Self::TooShort => None,
        };
        let headers = known.map_or_else(
            crate::Error::unknown_grpc_headers,
            crate::Error::grpc_headers,
        );
        HeaderMap::from_iter(headers)
    }
}
