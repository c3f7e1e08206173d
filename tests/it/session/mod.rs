//! `DbSession` in a handler: G2 and G16.

mod hot_path;
mod progress;
