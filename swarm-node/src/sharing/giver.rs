//! Answers others who ask for files. Nothing that they send is believed, and nothing that they do takes more than its share.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use petals_hub::{ModelSource, SharedContent};
use petals_protocol::{
    ContentAnswer, ContentError, ContentHash, ContentRequest, read_content_message, write_content_message,
};
use petals_swarm::{Incoming, IncomingStream, Party};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::pace::{LEAST_RATE, Pace};
use super::places::Places;
use crate::lock::lock;

/// Longest wait for a request, and for a piece to be taken.
const SILENCE: Duration = Duration::from_secs(15);
/// Longest wait for the next part of a file: all that was sent may still be on its way.
const PAUSE: Duration = Duration::from_secs(60);
/// Requests of a stream that may bring no bytes. Who is put off while a file is looked at asks once a second.
const MOST_IN_VAIN: u32 = 64;
/// Files that wait to be held against their hashes.
const MOST_CHECKS: usize = 64;

/// Gives files of one model.
pub(super) struct Giver {
    source: Arc<ModelSource>,
    pace: Pace,
    places: Arc<Places>,
    checks: Arc<Checks>,
}

/// Files that are held against their hashes, one at a time.
struct Checks {
    waiting: Mutex<HashSet<ContentHash>>,
    one: Semaphore,
    /// Whether the node goes on.
    goes_on: AtomicBool,
}

/// Why a stream is over.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Message(#[from] ContentError),
    #[error("the stream or the file failed: {0}")]
    Io(#[from] io::Error),
    #[error("nothing came, or went, for {0:?}")]
    Silence(Duration),
    #[error("a part took more than {0:?}")]
    Slow(Duration),
    #[error("{MOST_IN_VAIN} requests brought nothing")]
    InVain,
}

/// What a request comes to.
enum Found {
    Part(File, u64, Range<u64>),
    Answer(ContentAnswer),
}

impl Giver {
    pub(super) fn new(source: Arc<ModelSource>, pace: Pace) -> Self {
        let places = Places::new(pace.at_a_time());
        let checks = Checks { waiting: Mutex::default(), one: Semaphore::new(1), goes_on: AtomicBool::new(true) };
        Self { source, pace, places, checks: Arc::new(checks) }
    }

    /// Answers until the node ends.
    pub(super) async fn run(self: Arc<Self>, mut incoming: Incoming) {
        // Ends a check that is under way, also if this is dropped.
        let _end = End(self.checks.clone());
        let mut streams = JoinSet::new();
        while let Some(IncomingStream { party, stream }) = incoming.next().await {
            while streams.try_join_next().is_some() {}
            let giver = self.clone();
            streams.spawn(async move {
                let mut given = 0;
                if let Err(ended) = giver.serve(party, stream, &mut given).await {
                    tracing::debug!(peer = %party.peer, given, %ended, "a stream for files of the model is over");
                }
                if given > 0 {
                    tracing::info!(peer = %party.peer, bytes = given, "gave files of the model");
                }
            });
        }
    }

    /// Answers the requests of one stream, whose end is always an error.
    async fn serve(
        &self,
        party: Party,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        given: &mut u64,
    ) -> Result<(), Ended> {
        let (mut place, mut in_vain) = (None, 0);
        loop {
            let wait = if place.is_some() { PAUSE } else { SILENCE };
            let request = timeout(wait, read_content_message::<ContentRequest>(&mut stream)).await;
            let request = request.map_err(|_| Ended::Silence(wait))??;
            place = place.or_else(|| self.places.take(party));
            let found = if place.is_some() { self.find(request).await? } else { Found::Answer(ContentAnswer::Busy) };
            match found {
                Found::Answer(answer) => {
                    place = None;
                    in_vain += 1;
                    if in_vain > MOST_IN_VAIN {
                        return Err(Ended::InVain);
                    }
                    let said = timeout(SILENCE, write_content_message(&mut stream, &answer)).await;
                    said.map_err(|_| Ended::Silence(SILENCE))??;
                }
                Found::Part(file, size, range) => {
                    let (limit, is_last) = (longest(&range), range.end == size);
                    let sent = timeout(limit, self.send(&mut stream, file, size, range, given)).await;
                    sent.map_err(|_| Ended::Slow(limit))??;
                    // Who began a file is to have all of it.
                    if is_last {
                        place = None;
                    }
                }
            }
        }
    }

    async fn find(&self, request: ContentRequest) -> Result<Found, Ended> {
        let (source, hash) = (self.source.clone(), request.hash);
        let look = move || source.snapshot().and_then(|snapshot| snapshot.shared_content(&hash.to_string()));
        let looked = tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?;
        Ok(match looked {
            Some(SharedContent::Whole { file, size }) => match request.range(size) {
                Some(range) => Found::Part(file, size, range),
                None => Found::Answer(ContentAnswer::BadRange { size }),
            },
            Some(SharedContent::Unchecked) => Found::Answer(self.check(hash)),
            _ => Found::Answer(ContentAnswer::NotShared),
        })
    }

    /// Has a file held against its hash, so that it can be given soon.
    fn check(&self, hash: ContentHash) -> ContentAnswer {
        let mut waiting = lock(&self.checks.waiting);
        if waiting.len() >= MOST_CHECKS {
            return ContentAnswer::Busy;
        }
        if waiting.insert(hash) {
            let (checks, source) = (self.checks.clone(), self.source.clone());
            tokio::spawn(async move {
                // It is never closed.
                let _one = checks.one.acquire().await;
                let goes_on = checks.clone();
                let check = move || {
                    if let Some(snapshot) = source.snapshot() {
                        snapshot.check_content(&hash.to_string(), || goes_on.goes_on.load(Ordering::Relaxed));
                    }
                };
                if let Err(error) = tokio::task::spawn_blocking(check).await {
                    tracing::warn!(%error, "a file could not be held against its hash");
                }
                lock(&checks.waiting).remove(&hash);
            });
        }
        ContentAnswer::Later
    }

    /// Sends a part, piece by piece, each when the one before it was taken.
    async fn send(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        mut file: File,
        size: u64,
        range: Range<u64>,
        given: &mut u64,
    ) -> Result<(), Ended> {
        let mut left = range.end - range.start;
        write_content_message(stream, &ContentAnswer::Bytes { size, length: left }).await?;
        let mut start = Some(range.start);
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(self.pace.piece());
            let begin = start.take();
            let read = move || -> io::Result<(File, Vec<u8>)> {
                if let Some(begin) = begin {
                    file.seek(SeekFrom::Start(begin))?;
                }
                let mut piece = vec![0; count];
                file.read_exact(&mut piece)?;
                Ok((file, piece))
            };
            let (back, piece) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
            file = back;
            self.pace.wait(piece.len()).await;
            let written = timeout(SILENCE, stream.write_all(&piece)).await;
            written.map_err(|_| Ended::Silence(SILENCE))??;
            left -= piece.len() as u64;
            *given += piece.len() as u64;
        }
        Ok(stream.flush().await?)
    }
}

/// How long a part may take: who takes it more slowly than anybody has to bear gives others the place.
fn longest(range: &Range<u64>) -> Duration {
    SILENCE + Duration::from_secs((range.end - range.start) / (LEAST_RATE / 8))
}

/// Tells checks that the node does not go on.
struct End(Arc<Checks>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.goes_on.store(false, Ordering::Relaxed);
    }
}
