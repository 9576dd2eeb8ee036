//! What a GPU is asked to do, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since a GPU was opened.
#[derive(Debug, Default)]
pub struct Counts {
    launches: AtomicU64,
    syncs: AtomicU64,
    uploads: AtomicU64,
    uploaded: AtomicU64,
    downloaded: AtomicU64,
    read: AtomicU64,
}

/// Counts of a stretch of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Kernels that were started.
    pub launches: u64,
    /// Times that the host waited.
    pub syncs: u64,
    /// Copies from the host.
    pub uploads: u64,
    /// Bytes of them.
    pub uploaded: u64,
    /// Bytes copied to the host.
    pub downloaded: u64,
    /// Bytes of weights and of keys and values that kernels read, as often as they read them.
    pub read: u64,
}

impl Counts {
    pub(crate) fn launched(&self) {
        self.launches.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn uploaded(&self, bytes: usize) {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        self.uploaded.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The host waits for everything so far.
    pub(crate) fn waited(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// Every copy to the host waits for what led to it.
    pub(crate) fn downloaded(&self, bytes: usize) {
        self.waited();
        self.downloaded.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All of them so far.
    pub fn so_far(&self) -> Counted {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counted {
            launches: of(&self.launches),
            syncs: of(&self.syncs),
            uploads: of(&self.uploads),
            uploaded: of(&self.uploaded),
            downloaded: of(&self.downloaded),
            read: of(&self.read),
        }
    }
}

impl Counted {
    /// What came after `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            launches: self.launches - before.launches,
            syncs: self.syncs - before.syncs,
            uploads: self.uploads - before.uploads,
            uploaded: self.uploaded - before.uploaded,
            downloaded: self.downloaded - before.downloaded,
            read: self.read - before.read,
        }
    }
}
