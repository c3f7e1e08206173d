//! Acquiring a connection: G1, G10, G16 and G17.

mod dead_connection;
mod liveness;
mod max_pending;
mod overload;
mod second_session;
mod set_up;
