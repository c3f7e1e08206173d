//! Giving the connection back: G3, G4, G6, G11 and G13.

mod dropped_request;
mod no_runtime;
mod outlived_handle;
mod panic;
mod release_timeout;
mod reset;
mod response;
