//! One safetensors file, mapped into memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use serde::Deserialize;

use super::CheckpointError;
use super::text::is_lfs_pointer;

/// Longest header that is read; the format's own limit.
const MAX_HEADER: usize = 100_000_000;

/// Bytes of a file with an empty header.
const SHORTEST: u64 = 10;

/// A mapped file and what its header says.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// How a file's floats are encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FileDtype {
    F32,
    Bf16,
    F16,
    /// Bytes of packed weights, which are no numbers by themselves.
    U8,
}

/// Where a tensor lies in its file; its shape has been checked.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub(crate) dtype: FileDtype,
    range: Range<usize>,
}

impl FileDtype {
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::U8 => 1,
        }
    }

    /// Decodes little-endian `bytes` to as many values as `out` has.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, &b)| *v = f32::from_le_bytes(b)),
            Self::U8 => out.iter_mut().zip(bytes).for_each(|(v, &b)| *v = f32::from(b)),
            // The upper half of an f32: nothing but a shift, which compilers vectorise.
            Self::Bf16 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, &b)| {
                *v = f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
            }),
            Self::F16 => {
                let mut halves = [f16::ZERO; 64];
                for (out, bytes) in out.chunks_mut(halves.len()).zip(bytes.chunks(2 * halves.len())) {
                    let halves = &mut halves[..out.len()];
                    halves.iter_mut().zip(bytes.as_chunks().0).for_each(|(half, &b)| *half = f16::from_le_bytes(b));
                    halves.convert_to_f32_slice(out);
                }
            }
        }
    }
}

impl TensorFile {
    /// Maps the file and reads its header.
    #[allow(unsafe_code)]
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let malformed = |reason: String| CheckpointError::Malformed { path: path.to_owned(), reason };
        let size = file.metadata().map_err(io)?.len();
        let truncated = |expected| CheckpointError::Truncated { path: path.to_owned(), length: size, expected };
        if size == 0 {
            // An empty file cannot be mapped.
            return Err(truncated(SHORTEST));
        }
        // SAFETY: the map is read-only. Whoever truncates a model's file while a node serves from it can make reads fail
        // with SIGBUS, as with every program that maps its weights; the documentation says not to.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        if is_lfs_pointer(&map) {
            return Err(CheckpointError::LfsPointer { path: path.to_owned() });
        }
        let length = map.first_chunk().map(|&bytes| u64::from_le_bytes(bytes)).ok_or_else(|| truncated(SHORTEST))?;
        let length = usize::try_from(length).ok().filter(|&n| n <= MAX_HEADER && map.get(8).is_none_or(|&b| b == b'{'));
        let length = length.ok_or_else(|| malformed(format!("it is no safetensors file, {}", begins(&map))))?;
        let header = map.get(8..8 + length).ok_or_else(|| truncated(8 + length as u64))?;
        let tensors = parse_header(header).map_err(|e| malformed(format!("its header is no JSON of tensors: {e}")))?;
        let end = tensors.values().map(|entry| entry.data_offsets.1).max().unwrap_or(0);
        if end > map.len() - 8 - length {
            return Err(truncated((8 + length as u64).saturating_add(end as u64)));
        }
        Ok(Self { path: path.to_owned(), data_start: 8 + length, map, tensors })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Finds a tensor of numbers, or of bytes if it is `packed`, and checks its dtype, its shape and that its bytes are there.
    pub(crate) fn locate(&self, name: &str, expected: &[usize], packed: bool) -> Result<Located, CheckpointError> {
        let path = || self.path.clone();
        let name_owned = || name.to_owned();
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| CheckpointError::MissingTensor {
            path: path(),
            name: name_owned(),
            hint: String::new(),
        })?;
        let dtype = match (entry.dtype.as_str(), packed) {
            ("F32", false) => FileDtype::F32,
            ("BF16", false) => FileDtype::Bf16,
            ("F16", false) => FileDtype::F16,
            ("U8", true) => FileDtype::U8,
            (other, _) => {
                let dtype = other.escape_default().to_string();
                return Err(CheckpointError::Dtype { path: path(), name: name_owned(), dtype });
            }
        };
        if entry.shape != expected {
            let (got, expected) = (entry.shape.clone(), expected.to_vec());
            return Err(CheckpointError::Shape { path: path(), name: name_owned(), got, expected });
        }
        let (start, end) = entry.data_offsets;
        let length = expected.iter().product::<usize>() * dtype.size();
        let range = self.data_start.checked_add(start).zip(self.data_start.checked_add(end));
        let range = range.filter(|&(s, e)| e <= self.map.len() && e.checked_sub(s) == Some(length));
        let (start, end) = range.ok_or_else(|| CheckpointError::Malformed {
            path: path(),
            reason: format!("the bytes of `{name}` are not where its header says, or too few or many"),
        })?;
        Ok(Located { dtype, range: start..end })
    }

    /// Asks the system to read a tensor ahead.
    pub(crate) fn want(&self, located: &Located) {
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, located.range.start, located.range.len());
    }

    /// Gives back the memory of a tensor that has been read: the system has its pages in this process as long as they are mapped,
    /// beside what was made of them. Whoever reads it again reads it from the file.
    #[allow(unsafe_code)]
    pub(crate) fn release(&self, located: &Located) {
        // SAFETY: the map is read-only and of a file, so that pages that are dropped come back as they were.
        #[cfg(unix)]
        let _ = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            self.map.unchecked_advise_range(advice, located.range.start, located.range.len())
        };
    }

    /// The bytes of a tensor that [`Self::locate`] found in this file.
    pub(crate) fn bytes(&self, located: &Located) -> &[u8] {
        &self.map[located.range.clone()]
    }
}

/// Row `row` of a matrix whose rows are as long as `values`, in f32.
pub(crate) fn decode_row(file: &TensorFile, located: &Located, row: usize, values: &mut [f32]) {
    let length = values.len() * located.dtype.size();
    located.dtype.decode(&file.bytes(located)[row * length..(row + 1) * length], values);
}

/// Column `column` of `columns` of matrix `matrix` of a tensor `[matrices, values, columns]`, in f32.
pub(crate) fn decode_column(
    file: &TensorFile,
    located: &Located,
    (matrix, column, columns): (usize, usize, usize),
    values: &mut [f32],
) {
    let (bytes, size, height) = (file.bytes(located), located.dtype.size(), values.len());
    for (row, value) in values.iter_mut().enumerate() {
        let at = ((matrix * height + row) * columns + column) * size;
        located.dtype.decode(&bytes[at..at + size], std::slice::from_mut(value));
    }
}

/// The values of a tensor in f32.
pub(crate) fn decode(file: &TensorFile, located: &Located) -> Vec<f32> {
    let bytes = file.bytes(located);
    let mut values = vec![0.0; bytes.len() / located.dtype.size()];
    located.dtype.decode(bytes, &mut values);
    values
}

/// What a file that is not of the format seems to be.
fn begins(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'<', ..] => "but a web page",
        [b'P', b'K', ..] | [0x80, 2..=5, ..] => "but a pickle of PyTorch",
        [b'G', b'G', b'U', b'F', ..] => "but GGUF",
        [b'{', ..] => "but JSON",
        _ => "as its first bytes say",
    }
}

/// The tensors of a header; its `__metadata__` and whatever else is not a tensor are skipped.
fn parse_header(header: &[u8]) -> Result<BTreeMap<String, Entry>, serde_json::Error> {
    let mut raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)?;
    raw.remove("__metadata__");
    raw.into_iter().map(|(name, value)| Ok((name, serde_json::from_value(value)?))).collect()
}
