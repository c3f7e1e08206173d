//! [`Line`]: one connection through the proxy.

use std::{
    future::pending,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use super::{
    Shared,
    frames::{Direction, Frames},
    script::{Fault, Place},
};

pub(super) struct Line<'s> {
    shared: &'s Shared,
    /// Nothing passes on this connection.
    held: watch::Sender<bool>,
    dripping: AtomicBool,
}

/// How a connection ends.
enum End {
    Closed,
    Reset,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

impl<'s> Line<'s> {
    pub(super) fn new(shared: &'s Shared) -> Self {
        Self {
            shared,
            held: watch::Sender::new(false),
            dripping: AtomicBool::new(false),
        }
    }

    /// Serves one client until one side has gone or a fault ends it.
    pub(super) async fn run(self, client: TcpStream, server: TcpStream) {
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let (mut ended, mut given_up) = (
            self.shared.ended.subscribe(),
            self.shared.given_up.subscribe(),
        );
        let (from_client, mut to_client) = client.into_split();
        let (from_server, mut to_server) = server.into_split();
        let end = {
            let up = async {
                match self.pump(Direction::Up, from_client, &mut to_server).await {
                    // The client's end is no reason to lose the server's last words.
                    Ok(()) => pending().await,
                    Err(end) => end,
                }
            };
            let down = async {
                self.pump(Direction::Down, from_server, &mut to_client)
                    .await
                    .err()
            };
            tokio::select! {
                end = up => end,
                end = down => end.unwrap_or(End::Closed),
                _ = ended.changed() => if ended.borrow().1 { End::Reset } else { End::Closed },
                _ = self.until_given_up(&mut given_up) => End::Closed,
            }
        };
        if matches!(end, End::Reset) {
            reset(to_client);
            reset(to_server);
        }
    }

    async fn until_given_up(&self, given_up: &mut watch::Receiver<u64>) {
        loop {
            if given_up.changed().await.is_err() || *self.held.borrow() {
                return;
            }
        }
    }

    /// Forwards one direction, message by message, until its sender ends.
    async fn pump(
        &self,
        direction: Direction,
        mut from: OwnedReadHalf,
        to: &mut OwnedWriteHalf,
    ) -> Result<(), End> {
        let mut frames = Frames::new(self.shared.wire, direction);
        let mut buffer = vec![0; 16 * 1024];
        let mut ready = Vec::new();
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                self.send(to, &frames.rest()).await?;
                return Ok(to.shutdown().await?);
            }
            frames.push(&buffer[..read]);
            while let Some(message) = frames.pop() {
                let Some((place, fault)) = self.shared.script().step(direction) else {
                    ready.extend(message);
                    continue;
                };
                let passes_first = match place {
                    Place::Before => 0,
                    Place::Middle => message.len() / 2,
                    Place::After => message.len(),
                };
                ready.extend(&message[..passes_first]);
                self.send(to, &std::mem::take(&mut ready)).await?;
                self.strike(fault, to).await?;
                ready.extend(&message[passes_first..]);
            }
            self.send(to, &std::mem::take(&mut ready)).await?;
        }
    }

    async fn send(&self, to: &mut OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
        for held in [&self.shared.held, &self.held] {
            if *held.borrow() {
                let _ = held.subscribe().wait_for(|held| !held).await;
            }
        }
        if !self.dripping.load(Ordering::Relaxed) {
            return to.write_all(bytes).await;
        }
        for byte in bytes {
            to.write_all(&[*byte]).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn strike(&self, fault: Fault, to: &mut OwnedWriteHalf) -> Result<(), End> {
        match fault {
            Fault::Cut => return Err(End::Closed),
            Fault::Reset => return Err(End::Reset),
            Fault::Stall(time) => {
                self.held.send_replace(true);
                tokio::time::sleep(time).await;
                self.held.send_replace(false);
            }
            Fault::Silence => {
                self.held.send_replace(true);
                pending::<()>().await;
            }
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::Drip => self.dripping.store(true, Ordering::Relaxed),
            Fault::HalfClose => {
                to.shutdown().await?;
                pending::<()>().await;
            }
        }
        Ok(())
    }
}

/// Closes a connection so that its peer is told of a reset.
fn reset(half: OwnedWriteHalf) {
    // Its deprecation is about the time that a drop would block: none, with a linger of zero.
    #[allow(deprecated)]
    let _ = half.as_ref().set_linger(Some(Duration::ZERO));
    // Dropping the half would say goodbye first.
    half.forget();
}
