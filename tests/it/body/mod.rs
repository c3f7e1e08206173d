//! Bodies that hold their session: G3 and G7.

mod hold_until_body_end;
mod lost_session;
mod slow_client;
mod upgrade;
