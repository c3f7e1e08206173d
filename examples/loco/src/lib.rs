//! A Loco app whose requests have a session each. `initializers.rs` is where it differs from any other.

pub mod announce;
pub mod app;
pub mod controllers;
pub mod current_user;
pub mod initializers;
pub mod item;
pub mod migration;
pub mod user;
