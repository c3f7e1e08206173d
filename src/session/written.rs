//! [`Written`]: what a session has committed, for its client's next reads.

use crate::position::Position;

/// What a session has committed on a database with replicas.
#[derive(Default)]
pub(super) struct Written {
    /// The position of it, as far as that is known.
    pub(super) position: Option<Position>,
    /// It has committed something whose position is not known.
    pub(super) is_unseen: bool,
}

impl Written {
    /// Notes the position of what was committed.
    pub(super) fn note(&mut self, position: Position) {
        // A session that commits several times has to be seen with all of it.
        let before = self.position;
        self.position = Some(before.map_or(position, |before| before.and(position)));
        // It is behind all that was committed before it, so that it stands for what was not asked about as well.
        self.is_unseen = false;
    }
}
