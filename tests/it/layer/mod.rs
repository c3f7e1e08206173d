//! `DbSessionLayer` among other layers, and its choice of a pool: G14 and G15.

mod by;
mod deadline;
mod extractors;
mod log;
mod nested_layer;
mod response_for_error;
mod tower_contract;
