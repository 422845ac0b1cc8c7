//! Bodies of HTTP/1 messages: where they end, strictly, and how they go on.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::head::{self, Field, Length, Problem, put};

/// Read at a time from a connection that has much to say.
const PIECE: usize = 64 * 1024;
/// Read at a time otherwise: what an idle connection holds.
const SIP: usize = 4 * 1024;
/// Longest line with the size of a chunk: 16 digits and an extension, which is dropped.
const SIZE_LINE: usize = 256;

/// A reading half with what was read too much.
#[derive(Debug)]
pub struct Incoming<R> {
    inner: R,
    buffer: Vec<u8>,
    start: usize,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub fn new(inner: R, buffer: Vec<u8>) -> Self {
        Self { inner, buffer, start: 0 }
    }

    pub fn held(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    pub fn take(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start >= self.buffer.len() {
            self.start = 0;
            self.buffer.clear();
            // Memory stays with those who use it.
            if self.buffer.capacity() > PIECE {
                self.buffer = Vec::new();
            }
        }
    }

    /// Reads more; 0 is the end.
    pub async fn more(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        if self.buffer.capacity() - self.buffer.len() < SIP {
            self.buffer.reserve(SIP);
        }
        self.inner.read_buf(&mut self.buffer).await
    }

    /// As [`Self::more`], for the middle of a body.
    async fn gulp(&mut self) -> io::Result<usize> {
        if self.buffer.is_empty() && self.buffer.capacity() < PIECE {
            self.buffer.reserve_exact(PIECE);
        }
        self.more().await
    }

    /// Without what is held.
    pub fn inner(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Gives back what a big body needed.
    pub fn rest(&mut self) {
        if self.held().is_empty() {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }

    pub fn into_held(self) -> Vec<u8> {
        self.held().to_vec()
    }
}

/// Where in a body with chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunked {
    Size,
    Data(u64),
    /// The CR LF after the data.
    End,
    Trailers,
}

/// What is next in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    More,
    /// So many bytes of it are framing.
    Skip(usize),
    /// So many bytes are data.
    Data(usize),
    /// The end, after so many bytes.
    Last(Vec<Field>, usize),
}

impl Chunked {
    /// Reads on at the beginning of `bytes`.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Part, Problem> {
        match *self {
            Self::Data(0) => {
                *self = Self::End;
                Ok(Part::Skip(0))
            }
            Self::Data(left) => {
                let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if now == 0 {
                    return Ok(Part::More);
                }
                *self = Self::Data(left - now as u64);
                Ok(Part::Data(now))
            }
            Self::End => match bytes {
                [b'\r', b'\n', ..] => {
                    *self = Self::Size;
                    Ok(Part::Skip(2))
                }
                [] | [b'\r'] => Ok(Part::More),
                _ => Err("a chunk that does not end where it says"),
            },
            Self::Size => {
                let Some((size, length)) = size(bytes)? else { return Ok(Part::More) };
                *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                Ok(Part::Skip(length))
            }
            Self::Trailers => Ok(match head::trailers(bytes)? {
                None => Part::More,
                Some((fields, length)) => Part::Last(fields, length),
            }),
        }
    }
}

/// `1*16HEXDIG [ ";" extension ] CR LF`.
fn size(bytes: &[u8]) -> Result<Option<(u64, usize)>, Problem> {
    const BAD: Problem = "a chunk size that is not a number";
    let mut size = 0_u64;
    let mut digits = 0;
    let mut extension = false;
    for (at, byte) in bytes.iter().enumerate() {
        if at >= SIZE_LINE {
            return Err("a chunk size that is too long");
        }
        match byte {
            b'\n' if at > 0 && bytes[at - 1] == b'\r' => return Ok(Some((size, at + 1))),
            _ if at > 0 && bytes[at - 1] == b'\r' => return Err("a bare carriage return"),
            b'\r' if digits > 0 => {}
            b';' if digits > 0 => extension = true,
            b'\t' | b' '..=b'~' if extension => {}
            _ if extension => return Err("a chunk extension that holds a control byte"),
            _ => {
                let digit = char::from(*byte).to_digit(16).ok_or(BAD)?;
                digits += 1;
                if digits > 15 {
                    return Err(BAD);
                }
                size = size << 4 | u64::from(digit);
            }
        }
    }
    Ok(None)
}

/// Why a body did not go through.
#[derive(Debug)]
pub enum Broken {
    /// The sender broke the rules.
    Sender(Problem),
    /// The sender went away in the middle.
    Cut,
    /// The receiver does not take it.
    Receiver,
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Plain,
    Chunked,
}

/// Lets a body through, never more than a piece of it in memory. Returns its bytes.
pub async fn pump<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    from: &mut Incoming<R>,
    to: &mut W,
    length: Length,
    framing: Framing,
    count: impl Fn(u64),
) -> Result<(), Broken> {
    match length {
        Length::None => Ok(()),
        Length::Bytes(mut left) => {
            while left > 0 {
                if from.held().is_empty() {
                    fill(from).await?;
                }
                let now = from.held().len().min(usize::try_from(left).unwrap_or(usize::MAX));
                write(to, &from.held()[..now], framing).await?;
                count(now as u64);
                from.take(now);
                left -= now as u64;
            }
            end(to, framing, &[]).await
        }
        Length::Close => loop {
            if from.held().is_empty() {
                match from.gulp().await {
                    Ok(0) => return end(to, framing, &[]).await,
                    Ok(_) => {}
                    Err(_) => return Err(Broken::Cut),
                }
            }
            let now = from.held().len();
            write(to, from.held(), framing).await?;
            count(now as u64);
            from.take(now);
        },
        Length::Chunked => {
            let mut state = Chunked::Size;
            loop {
                match state.step(from.held()).map_err(Broken::Sender)? {
                    Part::More => fill(from).await?,
                    Part::Skip(bytes) => from.take(bytes),
                    Part::Data(bytes) => {
                        write(to, &from.held()[..bytes], framing).await?;
                        count(bytes as u64);
                        from.take(bytes);
                    }
                    Part::Last(fields, bytes) => {
                        from.take(bytes);
                        return end(to, framing, &fields).await;
                    }
                }
            }
        }
    }
}

async fn fill<R: AsyncRead + Unpin>(from: &mut Incoming<R>) -> Result<(), Broken> {
    match from.gulp().await {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(Broken::Cut),
    }
}

async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    data: &[u8],
    framing: Framing,
) -> Result<(), Broken> {
    let whole = async {
        if framing == Framing::Plain {
            return to.write_all(data).await;
        }
        let mut size = format!("{:x}\r\n", data.len()).into_bytes();
        if data.len() <= SIP {
            // Small ones in one packet.
            size.extend_from_slice(data);
            size.extend_from_slice(b"\r\n");
            return to.write_all(&size).await;
        }
        to.write_all(&size).await?;
        to.write_all(data).await?;
        to.write_all(b"\r\n").await
    };
    whole.await.map_err(|_| Broken::Receiver)
}

async fn end<W: AsyncWrite + Unpin>(
    to: &mut W,
    framing: Framing,
    trailers: &[Field],
) -> Result<(), Broken> {
    if framing == Framing::Chunked {
        let mut last = b"0\r\n".to_vec();
        for field in trailers {
            put(&mut last, &field.name, &field.value);
        }
        last.extend_from_slice(b"\r\n");
        to.write_all(&last).await.map_err(|_| Broken::Receiver)?;
    }
    Ok(())
}

/// Data, trailers and bytes in all.
#[cfg(any(test, feature = "fuzzing"))]
pub type Decoded = (Vec<u8>, Vec<Field>, usize);

/// All of a body at once, for tests and the fuzzer: what [`pump`] would pass on.
#[cfg(any(test, feature = "fuzzing"))]
pub fn decode(mut bytes: &[u8]) -> Result<Option<Decoded>, Problem> {
    let all = bytes.len();
    let mut state = Chunked::Size;
    let mut data = Vec::new();
    loop {
        match state.step(bytes)? {
            Part::More => return Ok(None),
            Part::Skip(n) => bytes = &bytes[n..],
            Part::Data(n) => {
                data.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
            }
            Part::Last(fields, n) => return Ok(Some((data, fields, all - bytes.len() + n))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunks_are_read() {
        let (data, trailers, length) =
            decode(b"3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nT: 1\r\n\r\nnext")
                .unwrap()
                .unwrap();
        assert_eq!(data, b"abc0123456789");
        assert_eq!(trailers, [Field { name: "T".into(), value: b"1".to_vec() }]);
        assert_eq!(length, 42);
    }

    #[test]
    fn chunk_tricks_are_refused() {
        for text in [
            &b"3\nabc\r\n0\r\n\r\n"[..],
            b"3\r\nabc\n0\r\n\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nabc0\r\n\r\n",
            b"0x3\r\nabc\r\n0\r\n\r\n",
            b"+3\r\nabc\r\n0\r\n\r\n",
            b"-1\r\n",
            b" 3\r\n",
            b"3 \r\nabc\r\n0\r\n\r\n",
            b"\r\n",
            b";x\r\n",
            b"3;\0\r\nabc",
            b"3;x\n\r\nabc",
            b"3;x\rabc",
            b"3\r\rabc",
            b"10000000000000000\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\n A: b\r\n\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\n\n",
        ] {
            assert!(decode(text).is_err(), "{:?}", String::from_utf8_lossy(text));
        }
        assert!(decode(&[b"1;".to_vec(), vec![b'x'; 300]].concat()).is_err());
    }

    proptest! {
        /// Any cut gives the same, and it goes on as it came.
        #[test]
        fn a_body_survives_any_cut(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8),
            cuts in prop::collection::vec(1_usize..20, 1..5),
        ) {
            let mut wire = Vec::new();
            for piece in &pieces {
                wire.extend(format!("{:X}\r\n", piece.len()).bytes());
                wire.extend(piece);
                wire.extend(b"\r\n");
            }
            wire.extend(b"0\r\nA: b\r\n\r\n");
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let out = runtime.block_on(async {
                let (mut tx, rx) = tokio::io::duplex(7);
                let feed = async {
                    let mut rest = &wire[..];
                    let mut cuts = cuts.iter().cycle();
                    while !rest.is_empty() {
                        let n = (*cuts.next().unwrap()).min(rest.len());
                        tx.write_all(&rest[..n]).await.unwrap();
                        rest = &rest[n..];
                    }
                };
                let mut from = Incoming::new(rx, Vec::new());
                let mut out = Vec::new();
                let ((), done) = tokio::join!(
                    feed,
                    pump(&mut from, &mut out, Length::Chunked, Framing::Chunked, |_| ())
                );
                done.unwrap();
                out
            });
            let (data, trailers, length) = decode(&out).unwrap().unwrap();
            prop_assert_eq!(data, pieces.concat());
            prop_assert_eq!(trailers.len(), 1);
            prop_assert_eq!(length, out.len());
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'1'), any::<u8>()], 0..60)) {
            let _ = decode(&bytes);
        }
    }
}
