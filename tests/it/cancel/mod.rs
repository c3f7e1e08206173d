//! Dropped requests and futures, and `.cancel_running()`: G5 and G9.

pub mod cancel_running;
mod cancel_running_under_load;
mod dropped_commit;
mod dropped_future;
mod dropped_request;
mod late_cancel_request;
mod pgbouncer;
