//! [`Anchor`]: keeps a database in memory for as long as its pool is there.

use std::{
    any::Any,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::runtime::Handle;

use super::driver_pool::{DriverPool, Memory};

/// A connection beside the driver's pool, on which nothing ever runs.
///
/// A database that SQLite's connections share in memory is gone with the last
/// of them, and sqlx closes an idle one after ten minutes and any after half an
/// hour. Without a statement, this one has no lock.
pub(super) struct Anchor(Arc<Mutex<State>>);

enum State {
    Due,
    /// Closed when it is dropped, for which no runtime is needed.
    Held(#[allow(dead_code, reason = "nothing runs on it")] Box<dyn Any + Send>),
    /// There is nothing to keep, or no more.
    Over,
}

impl Anchor {
    /// In the runtime that the pool is built in, opens the connection at once.
    pub(super) fn of(driver: &DriverPool) -> Self {
        let (is_due, runtime) = (
            driver.memory() == Some(Memory::Shared),
            Handle::try_current(),
        );
        let state = if is_due { State::Due } else { State::Over };
        let state = Arc::new(Mutex::new(state));
        if let (true, Ok(runtime)) = (is_due, runtime) {
            // Without the pool, which may be dropped meanwhile.
            let (state, driver) = (state.clone(), driver.clone());
            runtime.spawn(async move { open(&state, &driver).await });
        }
        Self(state)
    }

    /// An anchor that keeps nothing.
    pub(super) fn none() -> Self {
        Self(Arc::new(Mutex::new(State::Over)))
    }

    /// Opens the connection if that is still to be done.
    pub(super) async fn hold(&self, driver: &DriverPool) {
        open(&self.0, driver).await;
    }

    /// Lets the database go.
    pub(super) fn let_go(&self) {
        // Dropped when the lock is free.
        let held = mem::replace(&mut *lock(&self.0), State::Over);
        drop(held);
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        // A task may still be about to open the connection.
        self.let_go();
    }
}

async fn open(state: &Mutex<State>, driver: &DriverPool) {
    if !matches!(*lock(state), State::Due) {
        return;
    }
    // Not reported where it fails: the pool's own connection fails as well, and
    // the next one that is fetched comes here again.
    let Some(connection) = driver.connect_beside().await else {
        return;
    };
    let mut opened = State::Held(connection);
    {
        let mut state = lock(state);
        if matches!(*state, State::Due) {
            mem::swap(&mut *state, &mut opened);
        }
    }
    // One too many is closed here.
    drop(opened);
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
