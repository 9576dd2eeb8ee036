//! A reader that gives up a peer which stops in the middle of a frame.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::io::AsyncRead;
use tokio::time::{Sleep, sleep};

/// Ends with [`io::ErrorKind::TimedOut`] once no byte arrived for too long: `between_frames` until the first byte of a
/// frame, `inside` from then on.
///
/// Only time spent waiting for bytes counts, so a pause of this side is not held against the peer, and a frame may take
/// as long as a slow link needs for it.
#[derive(Debug)]
pub(crate) struct IdleReader<R> {
    inner: R,
    boundary: FrameBoundary,
    between_frames: Duration,
    inside: Duration,
    /// Runs while a read is waiting.
    waiting: Option<Pin<Box<Sleep>>>,
}

/// Tells an [`IdleReader`] that the next byte begins a frame. A handle, because the frame reader owns the reader.
#[derive(Debug, Clone)]
pub(crate) struct FrameBoundary(Arc<AtomicBool>);

impl FrameBoundary {
    /// What has been read so far is a whole number of frames.
    pub(crate) fn reached(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<R> IdleReader<R> {
    /// A reader that stands at the beginning of a frame.
    pub(crate) fn new(inner: R, between_frames: Duration, inside: Duration) -> (Self, FrameBoundary) {
        let boundary = FrameBoundary(Arc::new(AtomicBool::new(true)));
        (Self { inner, boundary: boundary.clone(), between_frames, inside, waiting: None }, boundary)
    }

    fn patience(&self) -> Duration {
        if self.boundary.0.load(Ordering::Relaxed) { self.between_frames } else { self.inside }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for IdleReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(read) = Pin::new(&mut self.inner).poll_read(cx, buf) {
            self.waiting = None;
            self.boundary.0.store(false, Ordering::Relaxed);
            return Poll::Ready(read);
        }
        let patience = self.patience();
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        waiting.as_mut().poll(cx).map(|()| {
            let what = format!("no byte arrived for {} s", patience.as_secs_f32());
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::mpsc;
    use futures::{AsyncReadExt, TryStreamExt};

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(20);

    /// A pipe: what is sent is read.
    fn pipe() -> (mpsc::Sender<io::Result<Vec<u8>>>, impl AsyncRead + Unpin) {
        let (sender, receiver) = mpsc::channel(8);
        (sender, receiver.into_async_read())
    }

    #[tokio::test]
    async fn a_peer_that_stops_inside_of_a_frame_is_given_up() {
        let (mut sender, read) = pipe();
        let (mut reader, _) = IdleReader::new(read, LONG, SHORT);
        sender.try_send(Ok(vec![1])).unwrap();
        let error = tokio::time::timeout(LONG, reader.read_exact(&mut [0; 2])).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn between_frames_there_is_more_time() {
        let (mut sender, read) = pipe();
        let (mut reader, boundary) = IdleReader::new(read, LONG, SHORT);
        for byte in [1, 2] {
            let late = tokio::time::timeout(10 * SHORT, reader.read_exact(&mut [0; 1])).await;
            assert!(late.is_err(), "the reader itself must still be waiting");
            sender.try_send(Ok(vec![byte])).unwrap();
            reader.read_exact(&mut [0; 1]).await.unwrap();
            boundary.reached();
        }
    }

    #[tokio::test]
    async fn a_slow_frame_arrives_as_long_as_its_bytes_keep_coming() {
        let (mut sender, read) = pipe();
        let patience = Duration::from_millis(500);
        let (mut reader, _) = IdleReader::new(read, LONG, patience);
        let writing = async {
            for byte in 0..8 {
                tokio::time::sleep(patience / 4).await;
                sender.try_send(Ok(vec![byte])).unwrap();
            }
        };
        let mut frame = [0; 8];
        let (read, ()) = futures::join!(reader.read_exact(&mut frame), writing);
        read.unwrap();
        assert_eq!(frame, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
