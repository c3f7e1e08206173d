//! `DbSessionLayer` among other layers: G14 and G15.

mod extractors;
mod log;
mod nested_layer;
mod response_for_error;
mod tower_contract;
