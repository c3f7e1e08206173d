//! `DbSession` in a handler: G2 and G16.

mod current;
mod hot_path;
mod lost_connection;
mod polling;
mod sqlite_worker;
mod stale_plan;
mod stalled_statement;
mod statements;
mod user_code;
