//! `DbSessionLayer` among other layers: G14 and G15.

mod contract;
pub mod log;
mod nested_layer;
mod response_for_error;
