//! [`Frames`]: where one message of the database's protocol ends and the next begins.

/// Which protocol a proxy listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// PostgreSQL's: a type byte, then a length that counts itself. A client's first messages have no type.
    Postgres,
    /// MySQL's and MariaDB's: three bytes of length, one of sequence.
    MySql,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The service.
    Up,
    /// The database.
    Down,
}

/// Cuts what one side of one connection sends into messages.
#[derive(Debug)]
pub struct Frames {
    wire: Wire,
    direction: Direction,
    /// Nothing but start-up requests has passed.
    starting: bool,
    buffer: Vec<u8>,
}

impl Frames {
    pub fn new(wire: Wire, direction: Direction) -> Self {
        Self {
            wire,
            direction,
            starting: true,
            buffer: Vec::new(),
        }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it is there.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        let end = self.end()?;
        if self.buffer.len() < end {
            return None;
        }
        let rest = self.buffer.split_off(end);
        let message = std::mem::replace(&mut self.buffer, rest);
        self.starting = self.starting && is_tls_request(&message);
        Some(message)
    }

    /// What is left when the sender has ended: part of a message.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// Where the first message ends, as soon as that is known.
    fn end(&self) -> Option<usize> {
        let bytes = &self.buffer;
        match (self.wire, self.direction) {
            (Wire::MySql, _) => {
                let [a, b, c, _] = *bytes.first_chunk()?;
                Some(4 + u32::from_le_bytes([a, b, c, 0]) as usize)
            }
            (Wire::Postgres, Direction::Up) if self.starting => {
                Some((u32::from_be_bytes(*bytes.first_chunk()?) as usize).max(4))
            }
            // The answer to a request for TLS is one byte, and no message begins with these two.
            (Wire::Postgres, Direction::Down)
                if self.starting && bytes.len() == 1 && b"NS".contains(&bytes[0]) =>
            {
                Some(1)
            }
            (Wire::Postgres, _) => {
                let [_, length @ ..] = *bytes.first_chunk::<5>()?;
                Some(1 + (u32::from_be_bytes(length) as usize).max(4))
            }
        }
    }
}

/// Whether a message asks for TLS, which is asked before anything else, or answers that.
fn is_tls_request(message: &[u8]) -> bool {
    message.len() == 1 || message == [0, 0, 0, 8, 4, 210, 22, 47]
}

#[cfg(test)]
mod tests {
    use super::{Direction, Frames, Wire};

    #[test]
    fn messages_are_found_however_they_are_torn() {
        let start = [
            &[0, 0, 0, 9, 0, 3, 0, 0, 0][..],
            b"Q\0\0\0\x06a\0",
            b"S\0\0\0\x04",
        ];
        for torn in 1..8 {
            let mut frames = Frames::new(Wire::Postgres, Direction::Up);
            let mut found = Vec::new();
            for piece in start.concat().chunks(torn) {
                frames.push(piece);
                found.extend(std::iter::from_fn(|| frames.pop()));
            }
            assert_eq!(found, start);
            assert!(frames.rest().is_empty());
        }
    }

    #[test]
    fn a_request_for_tls_is_no_start() {
        let mut up = Frames::new(Wire::Postgres, Direction::Up);
        let sent = [
            &[0, 0, 0, 8, 4, 210, 22, 47][..],
            &[0, 0, 0, 9, 0, 3, 0, 0, 0],
            b"X\0\0\0\x04",
        ];
        up.push(&sent.concat());
        assert_eq!(std::iter::from_fn(|| up.pop()).collect::<Vec<_>>(), sent);
        let mut down = Frames::new(Wire::Postgres, Direction::Down);
        down.push(b"N");
        assert_eq!(down.pop(), Some(b"N".to_vec()));
        down.push(b"R\0\0\0\x08\0\0\0\0");
        assert_eq!(down.pop().map(|message| message.len()), Some(9));
    }

    #[test]
    fn mysql_counts_what_follows_its_header() {
        let mut frames = Frames::new(Wire::MySql, Direction::Down);
        frames.push(&[1, 0, 0, 0, 14, 2, 0, 0, 1, 7]);
        assert_eq!(frames.pop(), Some(vec![1, 0, 0, 0, 14]));
        assert_eq!(frames.pop(), None);
        frames.push(&[7]);
        assert_eq!(frames.pop(), Some(vec![2, 0, 0, 1, 7, 7]));
    }
}
