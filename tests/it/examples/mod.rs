//! The examples, tested as their users would test a service.

mod export;
mod items;
mod row_level_security;
