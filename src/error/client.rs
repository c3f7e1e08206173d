//! What a client is told of an error: a title, and gRPC's headers.

use http::{HeaderName, HeaderValue};

use super::{Error, Kind};

static STATUS: HeaderName = HeaderName::from_static("grpc-status");
static MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

impl Error {
    /// The words that a client may read.
    pub(crate) fn title(&self) -> &'static str {
        match self.kind {
            // It reaches the client, unlike the error's own text: nothing of
            // the database, and no advice for its owner (G15).
            _ if self.is_exhausted() => "the service is busy",
            Kind::UnknownDatabase => "not found",
            Kind::Down | Kind::ReadLost => "the database cannot be reached",
            Kind::Closing => "the service is shutting down",
            Kind::Reclaimed | Kind::Unread | Kind::StatementTimeout => "the request took too long",
            Kind::ReadOnly | Kind::FormerPrimary => "the database is read-only",
            Kind::ReplicaBehind => "the database has not caught up",
            Kind::StalePlan => "the database has just changed",
            _ if self.is_conflict() => "the request conflicted with another one",
            _ => "internal error",
        }
    }

    /// Returns the status and its message, for a response's head or its
    /// trailers.
    pub(crate) fn grpc_headers(&self) -> [(HeaderName, HeaderValue); 2] {
        headers(self.grpc_code(), self.title())
    }

    /// [`grpc_headers`](Self::grpc_headers) of a failure that is none of this
    /// crate's errors.
    pub(crate) fn unknown_grpc_headers() -> [(HeaderName, HeaderValue); 2] {
        // INTERNAL.
        headers(13, "internal error")
    }
}

fn headers(code: i32, message: &'static str) -> [(HeaderName, HeaderValue); 2] {
    [
        (STATUS.clone(), HeaderValue::from(code)),
        // gRPC wants it percent-encoded
        // (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>):
        // the titles have nothing to encode.
        (MESSAGE.clone(), HeaderValue::from_static(message)),
    ]
}
