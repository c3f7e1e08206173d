//! Random programs against models of what must be there.

mod acknowledged_writes;
mod outcomes;
mod polled_futures;
mod programs;
mod random_sql;
