//! One file of tensors, mapped into memory: safetensors, or GGUF once its header has been read.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::Deserialize;

use super::CheckpointError;
use super::dtype::{FLOATS, FileDtype};
use super::ggml::BlockFormat;
use super::layout::Layout;
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

/// A tensor as a header has it.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    pub(super) data_offsets: (usize, usize),
    /// What GGUF did to it, if it is of one.
    #[serde(skip)]
    pub(super) layout: Option<Layout>,
}

/// Where a tensor lies in its file, and how.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) dtype: FileDtype,
    /// Its bytes, which the file has.
    pub(super) range: Range<usize>,
    /// What GGUF did to it, if it is of one.
    pub(super) layout: Option<Layout>,
}

/// Dtype and shape of a tensor as its file's header says, unchecked.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
}

impl TensorFile {
    /// Maps the file and reads its header.
    #[allow(unsafe_code)]
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let truncated = |expected| CheckpointError::Truncated { path: path.to_owned(), length: size, expected };
        if size == 0 {
            // An empty file cannot be mapped.
            return Err(truncated(SHORTEST));
        }
        // SAFETY: the map is read-only. Whoever truncates a model's file while a node serves from it can make reads fail
        // with SIGBUS, as with every program that maps its weights; the documentation says not to.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (length, tensors) = read_header(path, &map, size)?;
        let end = tensors.values().map(|entry| entry.data_offsets.1).max().unwrap_or(0);
        if end > map.len() - 8 - length {
            return Err(truncated((8 + length as u64).saturating_add(end as u64)));
        }
        Ok(Self { path: path.to_owned(), data_start: 8 + length, map, tensors })
    }

    /// The names of the tensors of a file that begins with `start`.
    pub(super) fn names_in(path: &Path, start: &[u8]) -> Result<Vec<String>, CheckpointError> {
        let (_, tensors) = read_header(path, start, start.len() as u64)?;
        Ok(tensors.into_keys().collect())
    }

    /// The tensors of a file whose header has been read.
    pub(super) fn of_mapped(path: PathBuf, map: Mmap, tensors: BTreeMap<String, Entry>) -> Self {
        Self { path, map, data_start: 0, tensors }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn entry(&self, name: &str) -> Result<&Entry, CheckpointError> {
        self.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            name: name.to_owned(),
            hint: String::new(),
        })
    }

    /// What the header says of a tensor.
    pub(super) fn header(&self, name: &str) -> Result<Header, CheckpointError> {
        let Entry { dtype, shape, .. } = self.entry(name)?;
        Ok(Header { dtype: dtype.clone(), shape: shape.clone() })
    }

    /// What the header says of a tensor, and where its bytes are, whatever it is.
    pub(super) fn raw(&self, name: &str) -> Result<(Header, Range<usize>), CheckpointError> {
        let (start, end) = self.entry(name)?.data_offsets;
        let range = self.data_start.checked_add(start).zip(self.data_start.checked_add(end));
        let range = range.filter(|&(start, end)| start <= end && end <= self.map.len());
        let (start, end) = range.ok_or_else(|| CheckpointError::Malformed {
            path: self.path.clone(),
            reason: format!("the bytes of `{}` are not where its header says", name.escape_default()),
        })?;
        Ok((self.header(name)?, start..end))
    }

    /// Finds a tensor and checks that it has one of `dtypes`, its shape, and that its bytes are there.
    pub(super) fn locate(
        &self,
        name: &str,
        expected: &[usize],
        dtypes: &[FileDtype],
    ) -> Result<Place, CheckpointError> {
        let (path, name_owned) = (|| self.path.clone(), || name.to_owned());
        let entry = self.entry(name)?;
        let dtype = FileDtype::named(&entry.dtype).filter(|dtype| entry.may_be(*dtype, dtypes));
        let dtype = dtype.ok_or_else(|| CheckpointError::Dtype {
            path: path(),
            name: name_owned(),
            dtype: entry.dtype.escape_default().to_string(),
            expected: entry.readable(dtypes),
        })?;
        let order = entry.layout.unwrap_or_default().order;
        let [block, size] = dtype.extents();
        let whole_blocks = expected.last().is_none_or(|values| values.is_multiple_of(block));
        if !entry.is_shaped(expected) || !whole_blocks || !order.fits(expected.first().copied().unwrap_or(1)) {
            let (got, expected) = (entry.shape.clone(), expected.to_vec());
            return Err(CheckpointError::Shape { path: path(), name: name_owned(), got, expected });
        }
        let (start, end) = entry.data_offsets;
        let values = expected.iter().try_fold(1usize, |values, extent| values.checked_mul(*extent));
        let length = values.and_then(|values| (values / block).checked_mul(size));
        let range = self.data_start.checked_add(start).zip(self.data_start.checked_add(end));
        let range = range.filter(|&(s, e)| e <= self.map.len() && length.is_some() && e.checked_sub(s) == length);
        let (start, end) = range.ok_or_else(|| CheckpointError::Malformed {
            path: path(),
            reason: format!("the bytes of `{name}` are not where its header says, or too few or many"),
        })?;
        Ok(Place { dtype, range: start..end, layout: entry.layout })
    }

    /// Asks the system to read bytes ahead.
    pub(super) fn want(&self, range: &Range<usize>) {
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Gives back the memory of bytes that have been read.
    #[allow(unsafe_code)]
    pub(super) fn release(&self, range: &Range<usize>) {
        // SAFETY: the map is read-only and of a file, so that pages that are dropped come back as they were.
        #[cfg(unix)]
        let _ = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            self.map.unchecked_advise_range(advice, range.start, range.len())
        };
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Bytes that [`Self::locate`] found in this file.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.map[range]
    }
}

impl Entry {
    /// Whether it may be of a dtype where `dtypes` are asked for: blocks of GGUF are widened wherever floats may be.
    fn may_be(&self, dtype: FileDtype, dtypes: &[FileDtype]) -> bool {
        match dtype {
            FileDtype::Block(_) => self.layout.is_some() && dtypes == FLOATS,
            dtype => dtypes.contains(&dtype),
        }
    }

    /// The dtypes that it may be of, in words.
    fn readable(&self, dtypes: &[FileDtype]) -> String {
        let names: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
        match self.layout {
            Some(_) if dtypes == FLOATS => format!("{} or one of {}", names.join(", "), BlockFormat::names()),
            _ => names.join(" or "),
        }
    }

    /// Whether it has these extents. GGUF leaves out those of 1.
    fn is_shaped(&self, expected: &[usize]) -> bool {
        let more = |extents: &[usize]| extents.iter().copied().filter(|extent| *extent != 1).collect::<Vec<_>>();
        self.shape == expected || self.layout.is_some() && more(&self.shape) == more(expected)
    }
}

/// What a file that is not of the format seems to be.
fn begins(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'<', ..] => "but a web page",
        [b'P', b'K', ..] | [0x80, 2..=5, ..] => "but a pickle of PyTorch",
        [b'G', b'G', b'U', b'F', ..] => "but GGUF, which --model takes as a file",
        [b'{', ..] => "but JSON",
        _ => "as its first bytes say",
    }
}

/// The length of the header of a file of `size` bytes that begins with `start`, and its tensors.
fn read_header(path: &Path, start: &[u8], size: u64) -> Result<(usize, BTreeMap<String, Entry>), CheckpointError> {
    let malformed = |reason: String| CheckpointError::Malformed { path: path.to_owned(), reason };
    let truncated = |expected| CheckpointError::Truncated { path: path.to_owned(), length: size, expected };
    if is_lfs_pointer(start) {
        return Err(CheckpointError::LfsPointer { path: path.to_owned() });
    }
    let length = start.first_chunk().map(|&bytes| u64::from_le_bytes(bytes)).ok_or_else(|| truncated(SHORTEST))?;
    let length = usize::try_from(length).ok().filter(|&n| n <= MAX_HEADER && start.get(8).is_none_or(|&b| b == b'{'));
    let length = length.ok_or_else(|| malformed(format!("it is no safetensors file, {}", begins(start))))?;
    let header = start.get(8..8 + length).ok_or_else(|| truncated(8 + length as u64))?;
    let tensors = parse_header(header).map_err(|e| malformed(format!("its header is no JSON of tensors: {e}")))?;
    Ok((length, tensors))
}

/// The tensors of a header; its `__metadata__` and whatever else is not a tensor are skipped.
fn parse_header(header: &[u8]) -> Result<BTreeMap<String, Entry>, serde_json::Error> {
    let mut raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)?;
    raw.remove("__metadata__");
    raw.into_iter().map(|(name, value)| Ok((name, serde_json::from_value(value)?))).collect()
}
