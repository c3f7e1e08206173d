//! An error in gRPC's form.

use http::{HeaderName, HeaderValue};

use super::Error;

static STATUS: HeaderName = HeaderName::from_static("grpc-status");
static MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

impl Error {
    /// Returns the status and its message, for a response's head or its trailers.
    pub(crate) fn grpc_headers(&self) -> [(HeaderName, HeaderValue); 2] {
        headers(self.grpc_code(), self.title())
    }

    /// [`grpc_headers`](Self::grpc_headers) of a failure that is none of this crate's errors.
    pub(crate) fn unknown_grpc_headers() -> [(HeaderName, HeaderValue); 2] {
        // INTERNAL.
        headers(13, "internal error")
    }
}

fn headers(code: i32, message: &'static str) -> [(HeaderName, HeaderValue); 2] {
    [
        (STATUS.clone(), HeaderValue::from(code)),
        (MESSAGE.clone(), HeaderValue::from_static(message)),
    ]
}
