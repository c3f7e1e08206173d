//! Transactions: G7, G8 and G12.

mod aborted;
mod application_name;
mod chained;
mod commit_in_handler;
mod commit_when;
mod control_statements;
mod db_tx;
mod ended_by_server;
mod ended_while_idle;
mod failed_commit;
mod hooks;
mod isolation;
mod log;
mod mysql_modes;
mod nested;
mod on_begin;
mod options;
mod pool_transaction;
mod round_trips;
mod schemas;
mod second_try;
mod settings;
mod time_outs;
mod transaction_layer;
mod unfinished;
mod unknown_outcome;
