//! How many texts are generated at a time, and how many requests wait for their turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Lets so many texts through at a time, first come, first served.
#[derive(Debug)]
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    all: usize,
    waiting: AtomicUsize,
    most_waiting: usize,
    patience: Duration,
}

/// Counts a request that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    /// A gate for `places` texts; `most_waiting` requests wait at most, for `patience` at most.
    pub(crate) fn new(places: usize, most_waiting: usize, patience: Duration) -> Self {
        let all = places.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self { places: Arc::new(Semaphore::new(all)), all, waiting: AtomicUsize::new(0), most_waiting, patience }
    }

    /// Waits for the turn of a request for `texts` texts, which gets as many places, or all that there are, until the permit is dropped.
    ///
    /// # Errors
    /// 429 if too many wait, 503 after too long a wait, or if the gate is closed.
    pub(super) async fn enter(&self, texts: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let closed = |_| ApiError::unavailable("this server is about to stop");
        let texts = texts.min(self.all) as u32;
        if let Ok(permit) = self.places.clone().try_acquire_many_owned(texts) {
            return Ok(permit);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.most_waiting {
            return Err(ApiError::queue_full());
        }
        match tokio::time::timeout(self.patience, self.places.clone().acquire_many_owned(texts)).await {
            Ok(permit) => permit.map_err(closed),
            Err(_) => Err(ApiError::unavailable("no place became free in time, try again later")),
        }
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        self.places.close();
    }

    /// Texts that are being generated.
    pub(super) fn active(&self) -> usize {
        self.all - self.places.available_permits().min(self.all)
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}
