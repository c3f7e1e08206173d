//! [`Client`]: one connection, one request at a time.

use std::io::{self, ErrorKind, Write};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::item::ROWS;

/// It does as little as it can: it shares the processor with what is measured.
#[derive(Debug)]
pub struct Client {
    port: u16,
    stream: Option<TcpStream>,
    out: Vec<u8>,
    input: Vec<u8>,
    random: u64,
}

impl Client {
    pub async fn connect(port: u16, number: u64) -> io::Result<Self> {
        let random = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let stream = Some(connect(port).await?);
        Ok(Self {
            port,
            stream,
            out: Vec::with_capacity(128),
            input: vec![0; 16 * 1024],
            random,
        })
    }

    /// One request to its answer's end; the answer's status.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        sent: impl FnOnce(),
    ) -> io::Result<u16> {
        let id = self.next_id();
        self.out.clear();
        write!(
            self.out,
            "{method} {path}{id} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        )?;
        self.out.extend_from_slice(if method == "POST" {
            b"content-length: 0\r\n\r\n"
        } else {
            b"\r\n"
        });
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.port).await?,
        };
        stream.write_all(&self.out).await?;
        sent();
        let status = self.answer(&mut stream).await?;
        self.stream = Some(stream);
        Ok(status)
    }

    async fn answer(&mut self, stream: &mut TcpStream) -> io::Result<u16> {
        let mut filled = 0;
        loop {
            let Some(room) = self.input.get_mut(filled..).filter(|room| !room.is_empty()) else {
                return Err(ErrorKind::InvalidData.into());
            };
            let read = stream.read(room).await?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            if let Some((status, length)) = head(&self.input[..filled])?
                && filled >= length
            {
                return Ok(status);
            }
        }
    }

    /// xorshift64.
    fn next_id(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % ROWS as u64 + 1
    }
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The status and the length, body included, of the answer that `input` begins with; none if its head is
/// not complete.
fn head(input: &[u8]) -> io::Result<Option<(u16, usize)>> {
    let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&input[..end]).map_err(|_| ErrorKind::InvalidData)?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.get(9..12))
        .and_then(|status| status.parse().ok());
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    match (status, length) {
        (Some(status), Some(length)) => Ok(Some((status, end + 4 + length))),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::head;

    #[test]
    fn a_head_gives_the_status_and_where_the_answer_ends() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: x\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(head(answer).unwrap(), Some((200, answer.len())));
        assert_eq!(head(&answer[..20]).unwrap(), None);
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
