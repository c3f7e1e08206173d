//! [`Script`]: what one handler does, drawn by lot.

use super::operation::{Operation, special};
use crate::{load::Dice, support::database::Kind};

#[derive(Clone, Debug)]
pub struct Script {
    pub mode: Mode,
    pub steps: Vec<Step>,
    pub status: u16,
    /// After so many polls, the client leaves.
    pub leaves: Option<u32>,
}

/// What the statements of a handler run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Autocommit,
    /// A transaction that the layer orders.
    Layer,
    /// The same, SERIALIZABLE.
    Serializable,
    /// A transaction that the handler's argument orders.
    Argument,
    /// `pool.transaction`.
    Job,
    /// A transaction held until the body's end; whether the body is read until there.
    Held(bool),
}

#[derive(Clone, Debug)]
pub enum Step {
    Run(Operation, Way, Taken),
    /// A transaction inside of what there is, in autocommit one of its own.
    Nest(Vec<Step>, End),
    Commit(Taken),
    Rollback,
}

/// How a statement is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    One,
    All,
    Execute,
    Unprepared,
    Stream,
    /// A stream that is dropped after its first row.
    Half,
    /// The statement's future is dropped after so many polls.
    Dropped(u32),
}

/// How a handler takes an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Swallowed,
    /// The handler answers with this.
    Passed(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Commit,
    Rollback,
    Drop,
}

impl Script {
    pub fn draw(kind: Kind, dice: &mut Dice) -> Self {
        let mode = match dice.below(8) {
            0 | 1 => Mode::Autocommit,
            2 => Mode::Layer,
            3 | 4 => Mode::Argument,
            5 => Mode::Job,
            6 => Mode::Serializable,
            _ => Mode::Held(dice.below(3) > 0),
        };
        let status = [200, 201, 200, 302, 400, 422, 500][dice.below(7) as usize];
        let transactional = mode != Mode::Autocommit;
        let leaves = (dice.below(8) == 0).then(|| dice.below(40) as u32);
        Self {
            mode,
            steps: steps(kind, dice, transactional, transactional, 2),
            status,
            leaves,
        }
    }
}

fn steps(kind: Kind, dice: &mut Dice, inside: bool, may_end: bool, depth: u32) -> Vec<Step> {
    (0..=dice.below(4))
        .map(|_| step(kind, dice, inside, may_end, depth))
        .collect()
}

fn step(kind: Kind, dice: &mut Dice, inside: bool, may_end: bool, depth: u32) -> Step {
    match dice.below(12) {
        0 | 1 if depth > 0 => {
            let end = [End::Commit, End::Commit, End::Rollback, End::Drop][dice.below(4) as usize];
            Step::Nest(steps(kind, dice, true, false, depth - 1), end)
        }
        2 if may_end => Step::Commit(taken(dice)),
        3 if may_end => Step::Rollback,
        _ => run(kind, dice, inside),
    }
}

fn run(kind: Kind, dice: &mut Dice, inside: bool) -> Step {
    loop {
        let operation = match dice.below(6) {
            0 | 1 => Operation::Special(dice.below(special(kind, 0).len() as u64) as usize),
            2 => Operation::CONTENDED[dice.below(Operation::CONTENDED.len() as u64) as usize],
            _ => Operation::USUAL[dice.below(Operation::USUAL.len() as u64) as usize],
        };
        let Some(traits) = operation
            .traits(kind, 0)
            .filter(|traits| inside || !traits.inside)
        else {
            continue;
        };
        let way = match dice.below(8) {
            0 if !traits.unprepared => Way::Half,
            1 => Way::Dropped(dice.below(4) as u32),
            _ if traits.unprepared => Way::Unprepared,
            n => [
                Way::One,
                Way::All,
                Way::Execute,
                Way::Unprepared,
                Way::Stream,
            ][n as usize % 5],
        };
        return Step::Run(operation, way, taken(dice));
    }
}

fn taken(dice: &mut Dice) -> Taken {
    match dice.below(4) {
        0 | 1 => Taken::Swallowed,
        2 => Taken::Passed(409),
        _ => Taken::Passed(500),
    }
}
