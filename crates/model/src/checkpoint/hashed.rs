//! What the weights of a block are, told by a hash: of its tensors as they lie in their files.
//!
//! Hashes are kept on disk beside rounded weights, under the sizes and times of the files, so that files are read for them once. Nothing depends on
//! that: where they cannot be written, they are computed with every start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use petals_protocol::{Span, WeightsHash};
use rayon::prelude::*;

use super::{Checkpoint, CheckpointError};

/// Begins what is hashed of a block; its number changes with how that is done.
const HASHED: &str = "petals block weights 1\n";
/// Buffers that some versions of transformers saved with a block and others did not. Nobody reads them.
const BUFFERS: [&str; 4] = ["rotary_emb.inv_freq", "attention.bias", "attention.masked_bias", "attn.masked_bias"];

/// The hashes that are known so far, by block, and where they are kept.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    directory: Option<PathBuf>,
    known: Mutex<BTreeMap<u32, WeightsHash>>,
}

impl Hashes {
    /// Hashes that are kept in `directory`.
    pub(super) fn kept_in(directory: PathBuf) -> Self {
        Self { directory: Some(directory), known: Mutex::default() }
    }

    fn known(&self, block: u32) -> Option<WeightsHash> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&block).copied()
    }

    fn learn(&self, block: u32, hash: WeightsHash) -> WeightsHash {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(block, hash);
        hash
    }
}

/// A tensor of a block: its name there, the one that it is stored under, and its file.
struct OfBlock<'a> {
    name: String,
    stored: &'a str,
    file: &'a Path,
}

impl Checkpoint {
    /// The hashes of the weights of `span`, block by block. Those of blocks that were loaded are known; others' files are read, unless that was done
    /// before.
    ///
    /// # Errors
    /// If the model has no such blocks, or a file is missing or is not what its header says.
    pub fn weights_of(&self, span: Span) -> Result<Vec<WeightsHash>, CheckpointError> {
        if !self.blocks().covers(span) {
            return Err(CheckpointError::Span { span, blocks: self.config.num_hidden_layers });
        }
        self.supply(span)?;
        span.blocks().map(|block| self.weights_of_block(block)).collect()
    }

    /// The hash of one block's weights, whose files are there.
    pub(crate) fn weights_of_block(&self, block: u32) -> Result<WeightsHash, CheckpointError> {
        if let Some(hash) = self.hashes.known(block) {
            return Ok(hash);
        }
        let tensors = self.tensors_of_block(block);
        let kept = self.hashes.directory.as_ref().map(|directory| directory.join(kept_name(block, &tensors)));
        let read = |path: &PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
        if let Some(hash) = kept.as_ref().and_then(read) {
            return Ok(self.hashes.learn(block, hash));
        }
        let hash = self.hash(&tensors)?;
        if let Some(path) = kept
            && let Err(error) = write(&path, hash)
        {
            tracing::debug!("the hash of block {block} is not kept in {}: {error}", path.display());
        }
        Ok(self.hashes.learn(block, hash))
    }

    /// Everything that is stored of a block, in the order of the names that are the same wherever it is stored.
    fn tensors_of_block(&self, block: u32) -> Vec<OfBlock<'_>> {
        let starts = self.starts(&[self.config.names.of_block(block, "")]);
        let of_block = |(stored, file)| {
            let of = |start: &String| str::strip_prefix(stored, start.as_str());
            let name =
                starts.iter().find_map(of).filter(|name| !BUFFERS.iter().any(|buffer| name.ends_with(buffer)))?;
            Some(OfBlock { name: name.to_owned(), stored, file })
        };
        let mut tensors: Vec<OfBlock<'_>> = self.index.stored().filter_map(of_block).collect();
        tensors.sort_by(|one, other| one.name.cmp(&other.name));
        tensors
    }

    /// Reads all bytes of the tensors, as many at a time as there are threads, and gives them back: blocks are widened from the system's cache then.
    fn hash(&self, tensors: &[OfBlock<'_>]) -> Result<WeightsHash, CheckpointError> {
        let of_tensor = |tensor: &OfBlock<'_>| {
            let (file, header, range) = self.index.raw(tensor.stored)?;
            file.want(&range);
            let hash = blake3::hash(file.bytes(range.clone()));
            file.release(&range);
            let (dtype, name) = (header.dtype.escape_default(), tensor.name.escape_default());
            Ok(format!("{name} {dtype} {:?} {}\n", header.shape, hash.to_hex()))
        };
        let lines: Vec<String> = tensors.par_iter().map(of_tensor).collect::<Result<_, CheckpointError>>()?;
        let hash = blake3::hash((HASHED.to_owned() + &lines.concat()).as_bytes());
        Ok(WeightsHash(std::array::from_fn(|at| hash.as_bytes()[at])))
    }
}

/// The name of the file with a block's hash: another one when anything of the block's files or their names changes.
fn kept_name(block: u32, tensors: &[OfBlock<'_>]) -> String {
    let mut text = format!("{HASHED}{block}\n");
    let files: BTreeSet<&Path> = tensors.iter().map(|tensor| tensor.file).collect();
    files.into_iter().for_each(|file| text += &file_as_text(file));
    tensors.iter().for_each(|tensor| text += &format!("{}\n", tensor.stored));
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

/// A file with its size and time.
pub(super) fn file_as_text(path: &Path) -> String {
    let meta = fs::metadata(path).ok();
    let length = meta.as_ref().map_or(0, fs::Metadata::len);
    let time = meta.and_then(|meta| meta.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    format!("{} {length} {}\n", path.display(), time.unwrap_or_default().as_nanos())
}

fn write(path: &Path, hash: WeightsHash) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    std::io::Write::write_all(&mut file, format!("{hash}\n").as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests;
