//! A tensor in its file.

use std::sync::Arc;

use super::dtype::FileDtype;
use super::file::{Place, TensorFile};
use super::layout::Layout;

/// A tensor in its mapped file, whose dtype and shape have been checked.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    file: Arc<TensorFile>,
    place: Place,
}

impl Stored {
    /// The tensor at a place that was found in this file.
    pub(super) fn new(file: Arc<TensorFile>, place: Place) -> Self {
        Self { file, place }
    }

    pub(super) fn dtype(&self) -> FileDtype {
        self.place.dtype
    }

    /// What GGUF did to it, if it is of one.
    pub(super) fn layout(&self) -> Option<Layout> {
        self.place.layout
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.file.bytes(self.place.range.clone())
    }

    /// All values in f32.
    pub(crate) fn values(&self) -> Vec<f32> {
        let [together, size] = self.dtype().extents();
        let mut values = vec![0.0; self.place.range.len() / size * together];
        self.decode(0, &mut values);
        if let Some(layout) = self.layout() {
            layout.undo(&mut values);
        }
        values
    }

    /// As many values as `out` has, from `first` on, as they lie; of blocks whole ones.
    pub(super) fn decode(&self, first: usize, out: &mut [f32]) {
        let dtype = self.dtype();
        dtype.decode(&self.bytes()[dtype.bytes(first)..dtype.bytes(first + out.len())], out);
    }

    /// Value `number`.
    pub(super) fn value(&self, number: usize) -> f32 {
        let mut value = 0.0;
        self.decode(number, std::slice::from_mut(&mut value));
        value
    }

    /// The words of a tensor of 32-bit integers.
    pub(super) fn words(&self) -> &[[u8; 4]] {
        self.bytes().as_chunks().0
    }

    /// The integers of a tensor of integers.
    pub(super) fn integers(&self) -> Vec<i64> {
        let bytes = self.bytes();
        match self.dtype() {
            FileDtype::I64 => bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
            FileDtype::I32 => bytes.as_chunks().0.iter().map(|&b| i64::from(i32::from_le_bytes(b))).collect(),
            _ => Vec::new(),
        }
    }

    /// Asks the system to read it ahead.
    pub(crate) fn want(&self) {
        self.file.want(&self.place.range);
    }

    /// Gives back the memory of a tensor that has been read: the system has its pages in this process as long as they are mapped,
    /// beside what was made of them. Whoever reads it again reads it from the file.
    pub(crate) fn release(&self) {
        self.file.release(&self.place.range);
    }
}
