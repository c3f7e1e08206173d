//! [`Rows`]: where a stream's rows go.

use std::{pin::pin, sync::Arc};

use futures_util::future::{Either, select};
use sea_orm::QueryResult;
use tokio::sync::{Notify, mpsc};

/// Sends rows to a reader, until that is gone or the stream is stopped.
#[derive(Clone)]
pub(crate) struct Rows {
    sender: mpsc::Sender<QueryResult>,
    // Shared with the session, whose end must not wait for a reader that has
    // stopped reading.
    stop: Arc<Notify>,
    stopped: bool,
}

impl Rows {
    /// At most so many rows wait for the reader.
    pub(crate) fn new(buffered: usize) -> (Self, mpsc::Receiver<QueryResult>) {
        let (sender, receiver) = mpsc::channel(buffered);
        (
            Self {
                sender,
                stop: Arc::default(),
                stopped: false,
            },
            receiver,
        )
    }

    /// Stops the stream when it is notified once, even if its reader is there
    /// and reads nothing.
    pub(crate) fn stop(&self) -> Arc<Notify> {
        self.stop.clone()
    }

    /// Returns whether the reader is gone or the stream was stopped.
    #[cfg_attr(not(feature = "_sqlx"), allow(dead_code))] // rows need a driver
    pub(super) fn is_gone(&self) -> bool {
        self.stopped || self.sender.is_closed()
    }

    /// Sends a row; false if the reader is gone or the stream was stopped.
    #[cfg_attr(not(feature = "_sqlx"), allow(dead_code))] // rows need a driver
    pub(super) async fn send(&mut self, row: QueryResult) -> bool {
        // A reader that reads nothing leaves the channel full for ever. Shown
        // by `a_stream_read_to_its_end_or_kept_gives_the_connection_back`.
        let sent = match select(pin!(self.stop.notified()), pin!(self.sender.send(row))).await {
            Either::Left(_) => false,
            Either::Right((sent, _)) => sent.is_ok(),
        };
        // Kept, because the notice is used up: the next row would wait for the
        // reader again.
        self.stopped |= !sent;
        sent
    }
}
