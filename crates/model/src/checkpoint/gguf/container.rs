//! The container: metadata, the list of tensors, and where their bytes lie (ggml's `docs/gguf.md`, versions 2 and 3).
//!
//! Nothing in it is believed: counts are of things that must be in the file, so that what is read takes no more memory than a few times the file's
//! own header, and whatever lies beyond the file's end is said to.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::reader::{Problem, Reader};
use super::value::Value;
use crate::checkpoint::text::is_lfs_pointer;
use crate::checkpoint::{CheckpointError, FileDtype, ggml};

const MAGIC: &[u8; 4] = b"GGUF";
/// Bytes of a file without metadata and tensors.
const SHORTEST: u64 = 24;
/// Where tensors begin if the file does not say otherwise: at multiples of this.
const ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;
/// Most extents of a tensor.
const MAX_EXTENTS: u32 = 4;
/// Longest key or name of a tensor, in bytes.
const MAX_NAME: usize = 1 << 16;

/// A mapped file and what its header says.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) path: PathBuf,
    pub(super) map: Mmap,
    pub(super) metadata: BTreeMap<String, Value>,
    /// By their own names.
    pub(super) tensors: BTreeMap<String, Tensor>,
}

/// A tensor as the header has it.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    /// Its type by the name that ggml has for it.
    pub(super) dtype: String,
    /// The longest stride first, as everywhere but in this format.
    pub(super) shape: Vec<usize>,
    /// Its bytes, from the file's beginning; empty if its type is not known.
    pub(super) bytes: (usize, usize),
}

impl Container {
    /// Whether a file begins like one.
    pub(super) fn is_one(path: &Path) -> bool {
        use std::io::Read;
        let mut start = [0; MAGIC.len()];
        path.is_file() && File::open(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && start == *MAGIC
    }

    /// Maps a file and reads its header.
    #[allow(unsafe_code)]
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length == 0 {
            // An empty file cannot be mapped.
            return Err(CheckpointError::Truncated { path: path.to_owned(), length, expected: SHORTEST });
        }
        // SAFETY: the map is read-only. Whoever truncates a model's file while a node serves from it can make reads fail
        // with SIGBUS, as with every program that maps its weights; the documentation says not to.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        if is_lfs_pointer(&map) {
            return Err(CheckpointError::LfsPointer { path: path.to_owned() });
        }
        let (metadata, tensors) = header(&map).map_err(|problem| problem.of(path, length))?;
        Ok(Self { path: path.to_owned(), map, metadata, tensors })
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, Tensor>);

fn header(bytes: &[u8]) -> Result<Header, Problem> {
    let mut reader = Reader::new(bytes);
    if reader.take(MAGIC.len())? != MAGIC {
        return Err(Problem::wrong("it is no GGUF, as its first bytes say"));
    }
    let version = reader.u32()?;
    if version & 0xffff == 0 {
        return Err(Problem::wrong("it is a GGUF for processors whose numbers begin with the largest byte"));
    }
    if !(2..=3).contains(&version) {
        return Err(Problem::wrong(format!("it is version {version} of GGUF, and only 2 and 3 are read")));
    }
    let (tensor_count, count) = (reader.u64()?, reader.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = reader.text(MAX_NAME)?;
        let value = Value::read(&mut reader).map_err(|problem| problem.within(&format!("`{}`", key.escape_debug())))?;
        if let Some(old) = metadata.insert(key, value) {
            drop(old);
            return Err(Problem::wrong("a key is there twice"));
        }
    }
    let mut described = Vec::new();
    for _ in 0..tensor_count {
        described.push(Described::read(&mut reader)?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(value) => {
            let alignment = value.unsigned().filter(|n| n.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(n));
            alignment.ok_or_else(|| Problem::wrong("`general.alignment` is no power of two from 8 to 65536"))?
        }
    };
    let start = (reader.at() as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for tensor in described {
        let name = tensor.name.clone();
        let placed = tensor.placed(start, alignment, bytes.len() as u64)?;
        if tensors.insert(name, placed).is_some() {
            return Err(Problem::wrong("a tensor is there twice"));
        }
    }
    Ok((metadata, tensors))
}

/// A tensor in the list of tensors.
struct Described {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

impl Described {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Problem> {
        let name = reader.text(MAX_NAME)?;
        let count = reader.u32()?;
        if !(1..=MAX_EXTENTS).contains(&count) {
            return Err(Problem::wrong(format!("tensor `{}` has {count} extents", name.escape_debug())));
        }
        let mut shape = Vec::new();
        for _ in 0..count {
            let extent = usize::try_from(reader.u64()?).ok().filter(|extent| *extent > 0);
            shape.push(extent.ok_or_else(|| Problem::wrong(format!("an extent of `{}`", name.escape_debug())))?);
        }
        // Files have the shortest stride first.
        shape.reverse();
        Ok(Self { name, shape, kind: reader.u32()?, offset: reader.u64()? })
    }

    /// Where its bytes lie, if its type is known.
    fn placed(self, start: u64, alignment: u64, length: u64) -> Result<Tensor, Problem> {
        let Self { name, shape, kind, offset } = self;
        let wrong = |what: &str| Problem::wrong(format!("tensor `{}` {what}", name.escape_debug()));
        let dtype = ggml::type_name(kind).map_or_else(|| format!("type {kind}"), str::to_owned);
        let Some(format) = FileDtype::named(&dtype) else {
            return Ok(Tensor { dtype, shape, bytes: (0, 0) });
        };
        let ([values, block], columns) = (format.extents(), shape.last().copied().unwrap_or(1));
        if !columns.is_multiple_of(values) {
            return Err(wrong(&format!("has rows of {columns} values, which are no whole blocks of {dtype}")));
        }
        let rows = shape[..shape.len() - 1].iter().try_fold(1usize, |rows, extent| rows.checked_mul(*extent));
        let blocks = rows.and_then(|rows| rows.checked_mul(columns / values));
        let size = blocks.and_then(|blocks| blocks.checked_mul(block));
        if !offset.is_multiple_of(alignment) {
            return Err(wrong("does not begin where tensors may"));
        }
        let begin = start.checked_add(offset);
        let end = begin.zip(size).and_then(|(begin, size)| begin.checked_add(size as u64));
        let (begin, end) = begin.zip(end).ok_or_else(|| wrong("is larger than any file"))?;
        if end > length {
            return Err(Problem::Ends(end));
        }
        Ok(Tensor { dtype, shape, bytes: (begin as usize, end as usize) })
    }
}
