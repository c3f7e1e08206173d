//! Bodies that hold their session: G3 and G7.

mod grpc;
mod hold_until_body_end;
mod http_1_0;
mod lost_session;
pub mod server;
mod slow_client;
mod upgrade;
