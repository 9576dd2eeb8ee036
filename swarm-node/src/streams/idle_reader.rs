//! A reader that gives up a peer which stops in the middle of a frame, and reads no more of a frame than has memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::io::AsyncRead;
use futures::task::AtomicWaker;
use tokio::time::{Sleep, sleep};

/// Ends with [`io::ErrorKind::TimedOut`] once no byte arrived for too long: `between_frames` until the first byte of a
/// frame, `inside` from then on.
///
/// Only time spent waiting for bytes counts, so a pause of this side is not held against the peer.
#[derive(Debug)]
pub(crate) struct IdleReader<R> {
    inner: R,
    gauge: Gauge,
    between_frames: Duration,
    inside: Duration,
    /// Runs while a read is waiting.
    waiting: Option<Pin<Box<Sleep>>>,
}

/// Tells an [`IdleReader`] where frames begin and how much of one may be read, and what has been read of it. A handle, because the frame reader
/// owns the reader.
#[derive(Debug, Clone)]
pub(crate) struct Gauge(Arc<Measures>);

#[derive(Debug)]
struct Measures {
    at_boundary: AtomicBool,
    arrived: AtomicU64,
    allowed: AtomicU64,
    reader: AtomicWaker,
}

impl Gauge {
    /// What has been read so far is a whole number of frames.
    pub(crate) fn frame_ended(&self) {
        self.0.at_boundary.store(true, Ordering::Relaxed);
        self.0.allowed.store(u64::MAX, Ordering::Relaxed);
    }

    /// What follows is counted from here.
    pub(crate) fn count_from_here(&self) {
        self.0.arrived.store(0, Ordering::Relaxed);
    }

    /// Bytes since the last [`Self::count_from_here`].
    pub(crate) fn arrived(&self) -> u64 {
        self.0.arrived.load(Ordering::Relaxed)
    }

    /// No more than so many bytes are read, counted alike, until this is called again or the frame ends.
    pub(crate) fn allow(&self, bytes: u64) {
        self.0.allowed.store(bytes, Ordering::Relaxed);
        self.0.reader.wake();
    }

    fn room(&self) -> u64 {
        self.0.allowed.load(Ordering::Relaxed).saturating_sub(self.arrived())
    }
}

impl<R> IdleReader<R> {
    /// A reader that stands at the beginning of a frame.
    pub(crate) fn new(inner: R, between_frames: Duration, inside: Duration) -> (Self, Gauge) {
        let gauge = Gauge(Arc::new(Measures {
            at_boundary: AtomicBool::new(true),
            arrived: AtomicU64::new(0),
            allowed: AtomicU64::new(u64::MAX),
            reader: AtomicWaker::new(),
        }));
        (Self { inner, gauge: gauge.clone(), between_frames, inside, waiting: None }, gauge)
    }

    fn patience(&self) -> Duration {
        if self.gauge.0.at_boundary.load(Ordering::Relaxed) { self.between_frames } else { self.inside }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for IdleReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.gauge.room() == 0 && !buf.is_empty() {
            self.gauge.0.reader.register(cx.waker());
            if self.gauge.room() == 0 {
                // The wait is this side's.
                self.waiting = None;
                return Poll::Pending;
            }
        }
        let most = buf.len().min(usize::try_from(self.gauge.room()).unwrap_or(usize::MAX));
        if let Poll::Ready(read) = Pin::new(&mut self.inner).poll_read(cx, &mut buf[..most]) {
            self.waiting = None;
            self.gauge.0.at_boundary.store(false, Ordering::Relaxed);
            if let Ok(bytes) = read {
                self.gauge.0.arrived.fetch_add(bytes as u64, Ordering::Relaxed);
            }
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
mod tests;
