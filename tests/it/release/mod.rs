//! Giving the connection back: G3, G4, G6, G11 and G13.

pub mod exits;
mod release_timeout;
mod reset;
