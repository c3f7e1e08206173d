//! [`Turn`]: the right to use the session's connection.

use std::sync::Arc;

use tokio::sync::{AcquireError, TryAcquireError};

use super::core::Core;

/// Whose turn it is. Dropped, the turn passes on.
pub(super) struct Turn(Arc<Core>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.turn().add_permits(1);
    }
}

impl Core {
    /// The turn, if nobody has it.
    pub(super) fn try_turn(self: &Arc<Self>) -> Result<Turn, TryAcquireError> {
        self.turn().try_acquire()?.forget();
        Ok(Turn(self.clone()))
    }

    /// Waits for the turn, in order.
    pub(super) async fn next_turn(self: &Arc<Self>) -> Result<Turn, AcquireError> {
        self.turn().acquire().await?.forget();
        Ok(Turn(self.clone()))
    }
}
