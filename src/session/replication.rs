//! [`Replication`]: what a session has to do with the replicas of its database; and [`Written`]: what it has committed there.
//!
//! A session that reads begins on a replica, and moves to the primary if the
//! replica is behind, fails or is asked to write. It never moves back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use http::response;
use sea_orm::{AccessMode, DbErr, TransactionOptions};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::plan::Mode;
use crate::{
    connection::{Demand, ReadDemand},
    error::{Error, Kind, server},
    pool::{Claim, Lease, SessionPool, WayOut},
    position::Position,
};

/// Takes a position to the client.
pub(crate) type StorePosition = Arc<dyn Fn(Position, &mut response::Parts) + Send + Sync>;

/// The replica that a session reads on.
pub(crate) trait Replica: Send + Sync {
    /// Notes that it could not serve a session.
    fn failed(&self, demand: &ReadDemand, error: &DbErr);
}

/// What a session has to do with the replicas of its database.
pub(crate) struct Replication {
    primary: SessionPool,
    reads: Option<Reads>,
    store: StorePosition,
    /// For the sessions that read on the primary, although they might on a
    /// replica.
    room: Arc<Semaphore>,
    /// Its place among those that read on the primary.
    // Kept until the session's end: its statements would wait for a place each.
    place: Mutex<Option<Place>>,
    /// It reads on the primary from here on, or writes there.
    // Atomic: each statement asks by it which pool is its session's, under no
    // lock.
    has_moved: AtomicBool,
    /// It writes, although its request was to read.
    is_to_write: AtomicBool,
    /// It counts as a session of the primary's pool, beside the replica's.
    is_counted: AtomicBool,
}

/// A place among the sessions that read on the primary, given back when it is
/// dropped.
struct Place(Arc<Semaphore>);

impl Place {
    fn of(permit: SemaphorePermit<'_>, room: &Arc<Semaphore>) -> Self {
        // A permit borrows its semaphore, and could not be kept here. `Drop`
        // gives it back.
        permit.forget();
        Self(room.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

/// The work of a session whose request reads.
pub(crate) struct Reads {
    /// `None`: it reads on the primary.
    pub(crate) replica: Option<Arc<dyn Replica>>,
    pub(crate) demand: Arc<ReadDemand>,
    /// The mode in which the session writes, should it have to.
    pub(crate) writes: Mode,
}

impl Replication {
    #[cfg(feature = "replicas")]
    pub(crate) fn new(
        primary: SessionPool,
        reads: Option<Reads>,
        store: StorePosition,
        room: Arc<Semaphore>,
    ) -> Arc<Self> {
        // Without a replica in use, it reads on the primary from the beginning,
        // within the places there.
        let has_moved = reads.as_ref().is_some_and(|reads| reads.replica.is_none());
        Arc::new(Self {
            primary,
            reads,
            store,
            room,
            place: Mutex::default(),
            has_moved: AtomicBool::new(has_moved),
            is_to_write: AtomicBool::new(false),
            is_counted: AtomicBool::new(false),
        })
    }

    pub(super) fn primary(&self) -> &SessionPool {
        &self.primary
    }

    /// Returns the primary's pool if the session has moved there.
    pub(super) fn moved_to(&self) -> Option<&SessionPool> {
        self.has_moved
            .load(Ordering::Acquire)
            .then_some(&self.primary)
    }

    fn reads_on_replica(&self) -> Option<&Reads> {
        self.reads
            .as_ref()
            .filter(|_| !self.has_moved.load(Ordering::Acquire))
    }

    /// Returns whether the session's request is to read.
    #[cfg(feature = "replicas")]
    pub(crate) fn reads_only(&self) -> bool {
        self.reads.is_some()
    }

    pub(crate) fn is_on_replica(&self) -> bool {
        self.reads_on_replica().is_some()
    }

    /// Returns whether the session may write.
    pub(super) fn may_write(&self) -> bool {
        self.reads.is_none() || self.is_to_write.load(Ordering::Acquire)
    }

    /// Returns what a transaction with `options` has to do with positions.
    pub(super) fn demand(&self, options: TransactionOptions) -> Demand {
        match self.reads_on_replica() {
            Some(reads) => Demand::Read(reads.demand.clone()),
            // It commits nothing that a later read could miss.
            None if options.access_mode == Some(AccessMode::ReadOnly) => Demand::None,
            None => Demand::Track,
        }
    }

    /// Returns for how long a connection is waited for, if any request may wait
    /// for the time `all`.
    pub(super) fn patience(&self, all: Duration) -> Duration {
        self.reads_on_replica()
            .map_or(all, |reads| all.min(reads.demand.patience))
    }

    /// Moves the session to the primary, if it is on a replica.
    fn move_to_primary(&self) -> bool {
        // Swapped: the session counts once in the primary's pool, however often
        // it is moved.
        let moves = self.reads.is_some() && !self.has_moved.swap(true, Ordering::AcqRel);
        // Closing, the primary's pool has no connection for it either.
        if moves && let Some(counted) = self.primary.inner().try_count_session() {
            counted.begin();
            self.is_counted.store(true, Ordering::Release);
        }
        moves
    }

    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a session that is about to read on the primary.
    /// Returns false if it has to wait for one.
    pub(super) fn try_admit(&self) -> bool {
        // The places bound what replicas would have served otherwise: a session
        // that writes belongs on the primary.
        if self.may_write() || self.is_on_replica() {
            return true;
        }
        let mut place = self.place();
        if place.is_none() {
            let permit = self.room.try_acquire().ok();
            *place = permit.map(|permit| Place::of(permit, &self.room));
        }
        place.is_some()
    }

    /// The same, with the wait. Returns how much of `patience` is left.
    pub(crate) async fn admit(&self, patience: Duration) -> Result<Duration, Error> {
        if self.try_admit() {
            return Ok(patience);
        }
        let started = Instant::now();
        // Dropped in the wait, it takes no place
        // (`a_read_that_is_dropped_gives_its_place_on_the_primary_back`).
        let admitted = timeout(patience, self.room.acquire()).await;
        let waited = started.elapsed();
        let Ok(Ok(permit)) = admitted else {
            let error = Kind::ReadsOnPrimary.into();
            return Err(self.primary.inner().fail(error, waited));
        };
        *self.place() = Some(Place::of(permit, &self.room));
        Ok(patience.saturating_sub(waited))
    }

    /// Notes that the session has ended.
    pub(super) fn ended(&self) {
        *self.place() = None;
        if self.is_counted.swap(false, Ordering::AcqRel) {
            self.primary.inner().session_ended();
        }
    }

    /// Has a session whose request reads write on the primary. Returns the mode
    /// for that and whether it has left a replica; `None` if it writes already.
    pub(super) fn begin_to_write(&self) -> Option<(Mode, bool)> {
        let reads = self.reads.as_ref()?;
        // It never moves back: what it has written may not be on any replica
        // yet (G19).
        let is_first = !self.is_to_write.swap(true, Ordering::AcqRel);
        is_first.then(|| {
            // It needs none from here on, and one of the readers may wait for
            // it.
            *self.place() = None;
            (reads.writes, self.move_to_primary())
        })
    }

    /// Stores the position that the session has made. Its client knows no later
    /// one, since this one was made after its request had come.
    pub(super) fn store(&self, made: Position, head: &mut response::Parts) {
        if let Some(timeline) = made.timeline() {
            self.primary.inner().cluster.note_latest_timeline(timeline);
        }
        (self.store)(made, head);
    }

    /// Notes that a session has lost its connection by this error. Returns
    /// whether it has only read there, so that its request may be served again:
    /// the replica is out of use until its next check.
    pub(super) fn note_lost_read(&self, error: &DbErr) -> bool {
        let known = Error::of(error);
        let is_lost = known.is_none_or(|known| known.is_connection_lost());
        // A connection that the server has closed because its transaction was
        // idle for too long is its handler's fault, and the replica is sound
        // (`a_read_that_was_idle_for_too_long_is_its_handlers_fault`).
        if self.may_write() || !is_lost || server::is_overdue(error) {
            return false;
        }
        if let Some(reads) = self.reads_on_replica()
            && let Some(replica) = &reads.replica
        {
            replica.failed(&reads.demand, error);
        }
        true
    }

    /// Has the session read on the primary, because the replica has no
    /// connection for it.
    pub(crate) fn give_up_replica(&self, error: &DbErr) -> bool {
        let moves = self.move_to_primary();
        // Only the error by which the session has left it counts against the
        // replica.
        if moves
            && let Some(reads) = &self.reads
            && let Some(replica) = &reads.replica
        {
            replica.failed(&reads.demand, error);
        }
        moves
    }
}

impl WayOut for Replication {
    fn take(
        &self,
        error: &DbErr,
        deadline: Option<Instant>,
    ) -> BoxFuture<'_, Result<Lease, Error>> {
        self.give_up_replica(error);
        Box::pin(async move {
            let pool = self.primary.inner();
            let patience = self.admit(pool.patience(deadline)).await?;
            // Without a BEGIN that travels with another session's COMMIT: the
            // call sends its own.
            pool.acquire(Claim::First, None, patience).await
        })
    }
}

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
        // It is behind all that was committed before it, so that it stands for
        // what was not asked about as well.
        self.is_unseen = false;
    }
}
