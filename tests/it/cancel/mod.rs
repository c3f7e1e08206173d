//! Dropped requests and futures, and `.cancel_running()`: G5 and G9.

mod cancel_running;
mod cancel_running_under_load;
mod dropped_commit;
mod dropped_future;
mod dropped_request;
mod dropped_transaction;
mod late_cancel_request;
mod pgbouncer;
