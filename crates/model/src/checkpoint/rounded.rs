//! Rounded weights on disk, so that the next start does not round them again: for each projection a file with its columns in blocks.
//!
//! A file belongs to a checkpoint, its size and its time included, to a projection, and to how it is rounded. It is written beside its place and moved
//! there, so that it is whole or not there; what does not look whole is made again. Nothing depends on these files: where they cannot be written, weights
//! are rounded as they are loaded.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::f16;
use memmap2::Mmap;
use rayon::prelude::*;

use super::Checkpoint;
use super::blocks::{self, BLOCK, Bits, Column, Table, WeightColumns};
use super::hashed::{Hashes, file_as_text};

/// Begins every file; its last character changes with the layout and with how weights are rounded.
const MAGIC: &[u8; 16] = b"petals blocks 2\n";
const HEADER: usize = MAGIC.len() + 8 + 8 + 16;
/// Columns that are rounded before they are written.
const TOGETHER: usize = 256;

/// A projection's columns in a mapped file.
#[derive(Debug)]
pub(crate) struct Rounded {
    map: Mmap,
    bits: Bits,
    depth: usize,
}

impl Checkpoint {
    /// The same checkpoint, of which weights that are rounded to eight or four bits, and hashes of weights, are kept in `directory` for the next time.
    #[must_use]
    pub fn with_cache_in(self, directory: PathBuf) -> Self {
        let files: String = self.index.files().into_iter().map(file_as_text).collect();
        let name = blake3::hash(files.as_bytes()).to_hex();
        let rounded = Some(directory.join(&name[..16]));
        Self { rounded, hashes: Hashes::kept_in(directory.join("hashes")), ..self }
    }

    /// The columns `[depth, width]` rounded to `bits`, from disk if they are there, else rounded and put there. `projection` says which they are.
    /// `None` if they are not to be kept, or cannot be.
    pub(crate) fn rounded(
        &self,
        projection: &str,
        shape: [usize; 2],
        bits: Bits,
        columns: &impl WeightColumns,
    ) -> Option<Rounded> {
        let directory = self.rounded.as_ref()?;
        let kind = if bits == Bits::Eight { "int8" } else { "int4" };
        let name = blake3::hash(projection.as_bytes()).to_hex();
        let path = directory.join(kind).join(&name[..32]);
        if let Some(rounded) = open(&path, shape, bits) {
            return Some(rounded);
        }
        if let Err(error) = write(&path, shape, bits, columns) {
            tracing::warn!("rounded weights are not kept in {}: {error}", directory.display());
            return None;
        }
        open(&path, shape, bits)
    }
}

/// Maps a file and checks that it is whole and has what is asked for.
#[allow(unsafe_code)]
fn open(path: &Path, shape @ [depth, width]: [usize; 2], bits: Bits) -> Option<Rounded> {
    let file = File::open(path).ok()?;
    // SAFETY: the map is read-only; files are replaced, never written to in place.
    let map = unsafe { Mmap::map(&file) }.ok()?;
    let whole = map.len() == width.checked_mul(bytes_of_column(depth, bits))?.checked_add(HEADER)?;
    (whole && map[..HEADER] == header(shape, bits)).then_some(Rounded { map, bits, depth })
}

fn write(
    path: &Path,
    shape @ [depth, width]: [usize; 2],
    bits: Bits,
    columns: &impl WeightColumns,
) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    let mut out = BufWriter::new(file.as_file_mut());
    out.write_all(&header(shape, bits))?;
    let length = bytes_of_column(depth, bits);
    let mut part = vec![0; TOGETHER.min(width) * length];
    for first in (0..width).step_by(TOGETHER) {
        let part = &mut part[..TOGETHER.min(width - first) * length];
        part.par_chunks_exact_mut(length).enumerate().for_each_init(
            || (vec![0.0; depth], Column::default()),
            |(values, column), (n, to)| {
                blocks::blocks_of(columns, bits, first + n, values, column);
                encode(bits, column, to);
            },
        );
        out.write_all(part)?;
    }
    out.flush()?;
    drop(out);
    file.persist(path)?;
    Ok(())
}

fn header([depth, width]: [usize; 2], bits: Bits) -> [u8; HEADER] {
    let table: Table = match bits {
        Bits::Eight | Bits::Offset => [0; 16],
        Bits::Four(table) => table,
    };
    let sizes = [depth as u64, width as u64].map(u64::to_le_bytes);
    let mut header = [0; HEADER];
    let parts = MAGIC.iter().copied().chain(sizes.into_iter().flatten()).chain(table.map(|entry| entry as u8));
    header.iter_mut().zip(parts).for_each(|(to, byte)| *to = byte);
    header
}

/// Scales of all blocks, their offsets if they have some, then what the weights are.
fn bytes_of_column(depth: usize, bits: Bits) -> usize {
    depth.div_ceil(BLOCK) * (halves_of_block(bits) * size_of::<f16>() + bits.bytes_of_block())
}

/// Numbers of sixteen bits that a block has.
fn halves_of_block(bits: Bits) -> usize {
    if bits == Bits::Offset { 2 } else { 1 }
}

fn encode(bits: Bits, column: &Column, to: &mut [u8]) {
    let halves = column.scales.iter().chain(&column.offsets);
    let (of_blocks, weights) = to.split_at_mut(halves.clone().count() * size_of::<f16>());
    of_blocks.as_chunks_mut().0.iter_mut().zip(halves).for_each(|(to, half)| *to = half.to_le_bytes());
    match bits {
        Bits::Eight => weights.iter_mut().zip(&column.values).for_each(|(to, value)| *to = *value as u8),
        Bits::Four(_) | Bits::Offset => {
            let pairs = column.values.as_chunks::<2>().0;
            weights.iter_mut().zip(pairs).for_each(|(to, [low, high])| *to = *low as u8 & 15 | (*high as u8) << 4);
        }
    }
}

impl WeightColumns for Rounded {
    fn column(&self, n: usize, values: &mut [f32]) {
        let mut column = Column::default();
        let mut scratch = Vec::new();
        self.blocks(n, &mut scratch, &mut column);
        values.iter_mut().enumerate().for_each(|(at, value)| *value = column.value(self.bits, at));
    }

    fn bits(&self) -> Option<Bits> {
        Some(self.bits)
    }

    fn blocks(&self, n: usize, _: &mut [f32], to: &mut Column) {
        let length = bytes_of_column(self.depth, self.bits);
        let bytes = &self.map[HEADER + n * length..HEADER + (n + 1) * length];
        let blocks = self.depth.div_ceil(BLOCK);
        let (halves, weights) = bytes.split_at(blocks * halves_of_block(self.bits) * size_of::<f16>());
        let mut halves = halves.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes));
        to.clear();
        to.scales.extend(halves.by_ref().take(blocks));
        to.offsets.extend(halves);
        match self.bits {
            Bits::Eight => to.values.extend(weights.iter().map(|&byte| byte as i8)),
            Bits::Four(_) | Bits::Offset => {
                to.values.extend(weights.iter().flat_map(|byte| [byte & 15, byte >> 4]).map(|number| number as i8));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use petals_protocol::{Injection, PassLayout};

    use super::*;
    use crate::device::{Device, Dtype};
    use crate::fixture;
    use crate::{ForwardPass, Keep};

    fn files(directory: &Path) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(directory) else { return vec![directory.to_owned()] };
        entries.flat_map(|entry| files(&entry.unwrap().path())).collect()
    }

    #[test]
    fn the_second_start_reads_what_the_first_one_rounded() {
        let model = fixture::single();
        let open = || Checkpoint::open(model.path()).unwrap();
        for dtype in [Dtype::Int8, Dtype::Int4] {
            // One of its own for each dtype: what the other one keeps is not read.
            let kept = tempfile::tempdir().unwrap();
            let weights = |checkpoint: Checkpoint| {
                let loaded = checkpoint.load_span(checkpoint.blocks(), &Device::cpu(), dtype).unwrap();
                let layout = PassLayout {
                    span: loaded.span(),
                    lengths: vec![5],
                    prefix_len: 0,
                    injection: Injection::None,
                    weights: Default::default(),
                    read_rows: None,
                };
                let pass = ForwardPass { layout: &layout, text: fixture::noise(1, 5 * 12), prefix: None, tables: None };
                loaded.forward(pass, Keep::Nothing).unwrap().text
            };
            let direct = weights(open());
            let first = weights(open().with_cache_in(kept.path().to_owned()));
            let written: Vec<_> = files(kept.path());
            let times = |files: &[PathBuf]| -> Vec<_> {
                files.iter().map(|path| fs::metadata(path).unwrap().modified().unwrap()).collect()
            };
            let before = times(&written);
            assert!(!written.is_empty());
            let second = weights(open().with_cache_in(kept.path().to_owned()));
            assert_eq!((&first, &second), (&direct, &direct), "{dtype}");
            assert_eq!(times(&written), before, "nothing was written again");
            // What is broken is made again.
            let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
            let largest = written.iter().max_by_key(|path| size(path)).unwrap();
            fs::write(largest, b"petals blocks 2\nbut no more").unwrap();
            assert_eq!(weights(open().with_cache_in(kept.path().to_owned())), direct);
            assert!(size(largest) > 100);
        }
        // Where nothing can be written, nothing is kept.
        let nowhere = model.path().join("config.json").join("weights");
        let checkpoint = open().with_cache_in(nowhere);
        assert!(checkpoint.load_span(checkpoint.blocks(), &Device::cpu(), Dtype::Int4).is_ok());
    }
}
