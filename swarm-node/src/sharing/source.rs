//! One content as another server sends it.

use std::io::{self, Cursor, Read};
use std::time::Duration;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use petals_protocol::{
    ContentAnswer, ContentHash, ContentRequest, MAX_CONTENT_RANGE, read_content_message, write_content_message,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Bytes that are read at a time.
const PIECE: u64 = 1 << 18;
/// Time between two requests of a server that puts us off.
const AGAIN: Duration = Duration::from_secs(1);
/// Time over which the bytes of a server are counted, without that in which nobody waited for them.
const WINDOW: Duration = Duration::from_secs(15);
/// Least bytes in that time: a quarter of what a server that gives at its slowest sends.
const LEAST_IN_WINDOW: u64 = 15 << 18;

/// What is missing of a content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missing {
    pub(super) hash: ContentHash,
    pub(super) size: u64,
    pub(super) start: u64,
}

/// How long another server is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For an answer, and for the next bytes of one.
    pub(super) silence: Duration,
    /// For a file that is being held against its hash.
    pub(super) put_off: Duration,
}

/// Why a server gives no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It has not got it, or has no time. No fault of its own.
    #[error("it does not give the file")]
    NotGiven,
    #[error("nothing came for {0:?}")]
    Silence(Duration),
    #[error("it was slower than {} KiB/s", LEAST_IN_WINDOW / WINDOW.as_secs() / 1024)]
    Slow,
    #[error("it put us off for {0:?}")]
    PutOff(Duration),
    #[error("it says that the file has {said} bytes and sends {length}, and {asked} were asked for of {size}")]
    Nonsense { said: u64, length: u64, asked: u64, size: u64 },
    #[error("{0}")]
    Broken(String),
}

/// A stream on which a server sends a content.
#[derive(Debug)]
pub(super) struct Source<S> {
    stream: S,
    missing: Missing,
    patience: Patience,
    /// Bytes of the answer that are still to come.
    left: u64,
    waited: Duration,
    in_window: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Source<S> {
    /// Asks for what is missing.
    pub(super) async fn ask(stream: S, missing: Missing, patience: Patience) -> Result<Self, Failure> {
        let mut source = Self { stream, missing, patience, left: 0, waited: Duration::ZERO, in_window: 0 };
        source.next_part().await?;
        Ok(source)
    }

    async fn next_part(&mut self) -> Result<(), Failure> {
        let Missing { hash, size, start } = self.missing;
        let asked = size.saturating_sub(start).min(MAX_CONTENT_RANGE);
        let (request, since) = (ContentRequest { hash, offset: start, length: asked }, Instant::now());
        let silence = self.patience.silence;
        loop {
            let exchange = async {
                write_content_message(&mut self.stream, &request).await.map_err(broken)?;
                read_content_message::<ContentAnswer>(&mut self.stream).await.map_err(broken)
            };
            match timeout(silence, exchange).await.map_err(|_| Failure::Silence(silence))?? {
                ContentAnswer::Bytes { size: said, length } if said == size && length == asked => {
                    self.left = length;
                    return Ok(());
                }
                ContentAnswer::Bytes { size: said, length } => {
                    return Err(Failure::Nonsense { said, length, asked, size });
                }
                ContentAnswer::BadRange { size: said } => {
                    return Err(Failure::Nonsense { said, length: 0, asked, size });
                }
                ContentAnswer::NotShared | ContentAnswer::Busy => return Err(Failure::NotGiven),
                ContentAnswer::Later if since.elapsed() > self.patience.put_off => {
                    return Err(Failure::PutOff(self.patience.put_off));
                }
                ContentAnswer::Later => tokio::time::sleep(AGAIN.min(self.patience.put_off)).await,
            }
        }
    }

    /// Hands on what comes, until all has come or nobody takes it any more.
    pub(super) async fn pump(mut self, to: mpsc::Sender<io::Result<Vec<u8>>>) {
        while self.missing.start < self.missing.size {
            let piece = self.next_piece().await.map_err(|failure| io::Error::other(failure.to_string()));
            let failed = piece.is_err();
            if to.send(piece).await.is_err() || failed {
                return;
            }
        }
    }

    async fn next_piece(&mut self) -> Result<Vec<u8>, Failure> {
        let since = Instant::now();
        if self.left == 0 {
            self.next_part().await?;
        }
        let mut piece = vec![0; usize::try_from(self.left.min(PIECE)).unwrap_or_default()];
        let silence = self.patience.silence;
        let read = timeout(silence, self.stream.read(&mut piece)).await.map_err(|_| Failure::Silence(silence))?;
        let count = match read {
            Ok(0) => return Err(Failure::Broken("the connection ended too early".to_owned())),
            Ok(count) => count,
            Err(error) => return Err(broken(error)),
        };
        piece.truncate(count);
        self.left -= count as u64;
        self.missing.start += count as u64;
        self.waited += since.elapsed();
        self.in_window += count as u64;
        if self.waited >= WINDOW {
            if self.in_window < LEAST_IN_WINDOW {
                return Err(Failure::Slow);
            }
            (self.waited, self.in_window) = (Duration::ZERO, 0);
        }
        Ok(piece)
    }
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Broken(error.to_string())
}

/// What a [`Source`] hands on, for a thread that waits.
#[derive(Debug)]
pub(super) struct Pieces {
    from: mpsc::Receiver<io::Result<Vec<u8>>>,
    piece: Cursor<Vec<u8>>,
}

impl Pieces {
    pub(super) fn new(from: mpsc::Receiver<io::Result<Vec<u8>>>) -> Self {
        Self { from, piece: Cursor::default() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.piece.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.from.blocking_recv() {
                Some(piece) => self.piece = Cursor::new(piece?),
                None => return Ok(0),
            }
        }
    }
}
