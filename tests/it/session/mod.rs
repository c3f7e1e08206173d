//! `DbSession` in a handler: G2 and G16.

mod current;
mod cut_connection;
mod hot_path;
mod imitated_loss;
mod lost_connection;
mod polling;
mod raw_code;
mod sqlite_worker;
mod stale_plan;
mod stalled_statement;
mod statements;
mod user_code;
