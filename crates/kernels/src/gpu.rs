//! A GPU, whichever runtime drives it: memory, launches, and counts of both.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::stream_id::StreamId;

use crate::boundary::{self, Watch};
use crate::counts::Counts;
use crate::product::Large;

/// The GPU failed: at whatever was asked of it since it last answered.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GpuFailure(String);

/// What a device can do, as far as kernels ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory that the units of a cube share.
    pub shared_bytes: usize,
    /// Whether planes have [`crate::LANES`] units and can sum.
    pub planes: bool,
    /// Cubes that compute at a time, about.
    pub multiprocessors: usize,
    /// Cubes in one direction.
    pub cubes: u32,
    /// Bytes of the largest buffer.
    pub largest_buffer: u64,
}

/// Keeps what was found out about tuned kernels in one folder, and compiled kernels in another. The first must be of this model of GPU alone, the second of this build alone:
/// cubecl tells neither apart. Without effect once a GPU was opened.
pub fn keep_kernels(tuned: &Path, compiled: &Path) {
    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    let mut config = CubeClRuntimeConfig::default();
    config.autotune.cache = CacheConfig::File(tuned.to_owned());
    config.compilation.cache = Some(CacheConfig::File(compiled.to_owned()));
    let mut current = CubeClRuntimeConfig::storage().lock();
    if current.is_none() {
        *current = Some(Arc::new(config));
    }
}

/// A GPU. A clone is the same one.
pub struct Gpu<R: Runtime> {
    client: ComputeClient<R>,
    limits: Limits,
    counts: Arc<Counts>,
    device: R::Device,
    /// Who computes large products, until that fails.
    large: Option<Large<R>>,
    large_failed: Arc<AtomicBool>,
    /// Those that have noticed nothing.
    watches: Arc<Mutex<Vec<Watch>>>,
    /// What kernels get for inputs, for outputs and for watches that they do not have.
    nothing: [Buffer; 3],
}

/// Values of 32 bits in the memory of a GPU. A clone is the same memory.
#[derive(Debug, Clone)]
pub struct Buffer {
    handle: Arc<Handle>,
    len: usize,
}

impl Buffer {
    /// What a runtime has at `handle`, `len` values of 32 bits.
    pub fn of(handle: Handle, len: usize) -> Self {
        Self { handle: Arc::new(handle), len }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nobody else has it, so that it can be written over.
    pub fn is_own(&self) -> bool {
        Arc::strong_count(&self.handle) == 1
    }

    /// Some of them, which begin where the GPU lets a buffer begin.
    pub(crate) fn part(&self, first: usize, len: usize) -> Self {
        let handle = (*self.handle).clone().offset_start((first * size_of::<u32>()) as u64);
        Self { handle: Arc::new(handle), len }
    }

    pub(crate) fn handle(&self) -> Handle {
        (*self.handle).clone()
    }

    /// The first `len` of them.
    #[must_use]
    pub fn first(self, len: usize) -> Self {
        Self { len: len.min(self.len), ..self }
    }
}

impl<R: Runtime> Clone for Gpu<R> {
    fn clone(&self) -> Self {
        let Self { client, limits, counts, device, large, large_failed, watches, nothing } = self;
        Self {
            client: client.clone(),
            limits: *limits,
            counts: Arc::clone(counts),
            device: device.clone(),
            large: *large,
            large_failed: Arc::clone(large_failed),
            watches: Arc::clone(watches),
            nothing: nothing.clone(),
        }
    }
}

impl<R: Runtime> fmt::Debug for Gpu<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({:?})", self.limits)
    }
}

impl<R: Runtime> Gpu<R> {
    /// The GPU that a runtime calls `device`.
    ///
    /// # Panics
    /// If the runtime's libraries are missing or there is no such device: look before.
    pub fn new(device: &R::Device) -> Self {
        let mut client = R::client(device);
        // Queues and pools of memory are per thread by default, and passes of one device come from several: all of them are in one queue, in order.
        #[allow(unsafe_code)]
        // SAFETY: nothing has been asked of this client, and everything that will be is in this one queue.
        unsafe {
            client.set_stream(StreamId { value: 0 });
        }
        let properties = client.properties();
        let hardware = &properties.hardware;
        let lanes = crate::LANES as u32;
        let planes = (hardware.plane_size_min, hardware.plane_size_max) == (lanes, lanes)
            && properties.features.plane.contains(cubecl::ir::features::Plane::Ops);
        let limits = Limits {
            shared_bytes: hardware.max_shared_memory_size,
            planes,
            multiprocessors: hardware.num_streaming_multiprocessors.map_or(32, |count| count as usize),
            cubes: hardware.max_cube_count.0.min(65_535),
            largest_buffer: properties.memory.max_page_size,
        };
        let nothing = [(); 3].map(|()| Buffer { handle: Arc::new(client.empty(16)), len: 4 });
        let (device, large_failed, watches) = (device.clone(), Arc::default(), Arc::default());
        Self { client, limits, counts: Arc::default(), device, large: None, large_failed, watches, nothing }
    }

    /// The same GPU, whose large products of weights that are not f32 are computed by `large`.
    #[must_use]
    pub fn with_large(self, large: Large<R>) -> Self {
        Self { large: Some(large), ..self }
    }

    pub(crate) fn large(&self) -> Option<Large<R>> {
        self.large.filter(|_| !self.large_failed.load(Ordering::Relaxed))
    }

    /// Does without it from now on.
    pub(crate) fn without_large(&self, error: &str) {
        tracing::warn!(%error, "large products are computed without tensor cores");
        self.large_failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn device(&self) -> &R::Device {
        &self.device
    }

    /// What it can do.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What has been asked of it.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Counts bytes of keys and values that a kernel reads.
    pub fn read(&self, bytes: u64) {
        self.counts.read(bytes);
    }

    pub(crate) fn client(&self) -> &ComputeClient<R> {
        &self.client
    }

    /// Memory for so many values, of whatever was there before.
    pub fn empty(&self, len: usize) -> Buffer {
        Buffer { handle: Arc::new(self.client.empty(len.max(1) * size_of::<u32>())), len }
    }

    /// Copies floats to the GPU: as bf16 if they are many and nothing is lost by that, as of rows that have come from a network in bf16.
    pub fn upload(&self, values: &[f32]) -> Buffer {
        match boundary::halves(values) {
            Some(halves) => boundary::widened(self, &self.upload_words(&halves), values.len()),
            None => self.upload_bytes(f32::as_bytes(values), values.len()),
        }
    }

    /// Copies whole numbers, or packed values, to the GPU.
    pub fn upload_words(&self, words: &[u32]) -> Buffer {
        self.upload_bytes(u32::as_bytes(words), words.len())
    }

    /// Copies several runs of whole numbers to the GPU at once.
    pub fn upload_runs<const N: usize>(&self, runs: [&[u32]; N]) -> [Buffer; N] {
        let step = (self.client.properties().memory.alignment as usize / size_of::<u32>()).max(1);
        let mut words = Vec::with_capacity(runs.iter().map(|run| run.len().next_multiple_of(step)).sum());
        let places = runs.map(|run| {
            let first = words.len();
            words.extend_from_slice(run);
            // Nothing may begin behind the end, and everything begins where the GPU lets it.
            words.resize((words.len() + 1).next_multiple_of(step), 0);
            (first, run.len())
        });
        let all = self.upload_words(&words);
        places.map(|(first, len)| {
            let handle = (*all.handle).clone().offset_start((first * size_of::<u32>()) as u64);
            Buffer { handle: Arc::new(handle), len }
        })
    }

    fn upload_bytes(&self, bytes: &[u8], len: usize) -> Buffer {
        if len == 0 {
            return self.empty(0);
        }
        self.counts.uploaded(bytes.len());
        Buffer { handle: Arc::new(self.client.create_from_slice(bytes)), len }
    }

    /// Waits until everything that was asked has been done, and copies floats to the host.
    ///
    /// # Errors
    /// If anything has failed since the last time.
    pub fn download(&self, buffer: &Buffer) -> Result<Vec<f32>, GpuFailure> {
        let words = self.download_words(&[buffer])?.pop().unwrap_or_default();
        Ok(words.into_iter().map(f32::from_bits).collect())
    }

    /// As [`Self::download`], for whole numbers, or packed values, of several buffers at once.
    pub(crate) fn download_words(&self, buffers: &[&Buffer]) -> Result<Vec<Vec<u32>>, GpuFailure> {
        let bytes_of = |buffer: &Buffer| buffer.len * size_of::<u32>();
        let some = buffers.iter().filter(|buffer| !buffer.is_empty());
        let handles: Vec<Handle> = some
            .map(|buffer| {
                let handle = buffer.handle();
                let beyond = handle.size_in_used() - bytes_of(buffer) as u64;
                handle.offset_end(beyond)
            })
            .collect();
        if handles.is_empty() {
            return Ok(vec![Vec::new(); buffers.len()]);
        }
        self.counts.downloaded(buffers.iter().map(|buffer| bytes_of(buffer)).sum());
        let failure = |error: &dyn fmt::Display| GpuFailure(error.to_string());
        let read = cubecl::future::block_on(self.client.read_async(handles)).map_err(|e| failure(&e))?;
        // A launch that failed is told by this alone, and nothing is left to wait for.
        cubecl::future::block_on(self.client.sync()).map_err(|e| failure(&e))?;
        let mut read = read.into_iter();
        let of_buffer = |buffer: &&Buffer| {
            if buffer.is_empty() {
                return Some(Vec::new());
            }
            Some(u32::from_bytes(read.next()?.get(..bytes_of(buffer))?).to_vec())
        };
        let words: Option<Vec<_>> = buffers.iter().map(of_buffer).collect();
        words.ok_or_else(|| GpuFailure("less was read than was asked for".to_owned()))
    }

    /// Waits until everything that it was asked for is done.
    ///
    /// # Errors
    /// If something of it failed.
    pub fn finish(&self) -> Result<(), GpuFailure> {
        self.counts.waited();
        cubecl::future::block_on(self.client.sync()).map_err(|e| GpuFailure(e.to_string()))
    }

    /// Watches for passes to come.
    pub(crate) fn idle_watches(&self) -> MutexGuard<'_, Vec<Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives memory that nobody uses back to the system.
    pub fn clean_up(&self) {
        self.client.memory_cleanup();
    }

    /// Bytes that are in use, and bytes that are reserved for what will be.
    ///
    /// # Errors
    /// If the GPU has failed.
    pub fn memory(&self) -> Result<(u64, u64), GpuFailure> {
        let usage = self.client.memory_usage().map_err(|e| GpuFailure(e.to_string()))?;
        Ok((usage.bytes_in_use, usage.bytes_reserved))
    }

    /// An argument of a kernel.
    pub(crate) fn arg(&self, buffer: &Buffer) -> ArrayArg<R> {
        #[allow(unsafe_code)]
        // SAFETY: a buffer knows its own length.
        unsafe {
            ArrayArg::from_raw_parts((*buffer.handle).clone(), buffer.len)
        }
    }

    /// The argument of an input that may be absent, in which case the kernel does not read it.
    pub(crate) fn input(&self, buffer: Option<&Buffer>) -> ArrayArg<R> {
        self.arg(buffer.unwrap_or(&self.nothing[0]))
    }

    /// The argument of an output that may be absent, in which case the kernel does not write it.
    pub(crate) fn output(&self, buffer: Option<&Buffer>) -> ArrayArg<R> {
        self.arg(buffer.unwrap_or(&self.nothing[1]))
    }

    /// The argument of a watch that may be absent, in which case the kernel does not write to it.
    pub(crate) fn noticed(&self, watch: Option<&Watch>) -> ArrayArg<R> {
        self.arg(watch.map_or(&self.nothing[2], |watch| &watch.place))
    }

    /// At least `count` cubes; kernels number them with `CUBE_POS` and pass over those that are too many.
    pub(crate) fn cubes(&self, count: usize) -> CubeCount {
        let count = count.max(1) as u64;
        let rows = count.div_ceil(u64::from(self.limits.cubes));
        CubeCount::Static(count.div_ceil(rows) as u32, rows as u32, 1)
    }
}
