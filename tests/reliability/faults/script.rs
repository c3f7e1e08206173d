//! [`Script`]: which fault happens at which message, and whether it has.

use std::time::Duration;

use super::frames::Direction;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both connections are closed.
    Cut,
    /// Both connections are reset: nothing on its way arrives.
    Reset,
    /// Nothing passes for a while, then everything goes on.
    Stall(Duration),
    /// Nothing passes any more, and nobody is told.
    Silence,
    /// This one message is late.
    Delay(Duration),
    /// From here on, each byte travels alone.
    Drip,
    /// The sender's direction is closed, the other one goes on.
    HalfClose,
}

/// Where: at the message with this number of this sender, counted from 1 since the script was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub direction: Direction,
    pub number: u64,
    pub place: Place,
}

/// Where in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Before,
    /// When half of its bytes have passed.
    Middle,
    After,
}

#[derive(Debug, Default)]
pub struct Script {
    armed: Option<(Point, Fault)>,
    seen: [u64; 2],
    fired: bool,
}

impl Script {
    /// From here on counts, and waits for the point if there is one.
    pub fn arm(&mut self, armed: Option<(Point, Fault)>) {
        *self = Self {
            armed,
            seen: [0, 0],
            fired: false,
        };
    }

    /// How many messages have passed, up and down, and whether the fault has happened.
    pub fn seen(&self) -> ([u64; 2], bool) {
        (self.seen, self.fired)
    }

    /// Counts a message; what is to go wrong with it, if something is.
    pub fn step(&mut self, direction: Direction) -> Option<(Place, Fault)> {
        let seen = &mut self.seen[direction as usize];
        *seen += 1;
        let (point, fault) = self.armed?;
        if self.fired || point.direction != direction || point.number != *seen {
            return None;
        }
        self.fired = true;
        Some((point.place, fault))
    }
}
