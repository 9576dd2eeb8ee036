//! A checkpoint with an adapter's change of the weights folded in, for programs that know no adapters.
//!
//! The products and vectors are those of PEFT's `merge_and_unload`: `W + scale·B·A` (Hu et al. 2021), and for IA3 rows of keys and values,
//! columns of the MLP's last matrix, times their vector (Liu et al. 2022). Files are read in place and written one tensor at a time.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use petals_protocol::{Module, Modules, WeightChange};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, View, serialize_to_file};

use super::names::TuningMode;
use super::tables::{PromptTables, Table};

/// What weights come in, without the dot.
const WEIGHTS: &str = "safetensors";
/// Formats of weights that the merged ones replace.
const OTHER_WEIGHTS: [&str; 6] = ["bin", "pt", "pth", "gguf", "h5", "msgpack"];
/// What makes a folder a model; written last, so that a half-written one is none.
const CONFIG: &str = "config.json";

/// Why a merged checkpoint could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The adapter is not, or not only, a change of weights.
    #[error("only an adapter of lora or ia3 can be merged into weights, and this one is of {mode}")]
    Kind {
        /// What it is.
        mode: TuningMode,
    },
    /// The output is, or would overwrite, something else.
    #[error("{} is not empty: a merged checkpoint is written to a folder of its own", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no whole safetensors file.
    #[error("{} is not a whole safetensors file, or could not be written", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SafeTensorError,
    },
    /// A weight that nothing can be added to.
    #[error(
        "the weight `{name}` is {what}; f32, bf16 and f16 of the shape that the configuration says can be merged into"
    )]
    Weight {
        /// Its name.
        name: String,
        /// Its dtype and shape.
        what: String,
    },
    /// Weights that the adapter changes and the checkpoint does not have.
    #[error("the checkpoint in {} has no weight of `{missing}`, which the adapter changes", path.display())]
    Missing {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The first such matrix.
        missing: String,
    },
}

/// Writes the checkpoint in `model` with the change of `tables` folded into its weights to `out`; returns how many matrices changed.
///
/// Every other file of the folder is copied, but for weights in other formats. The dtypes stay as they are. A classifier's head stays in the
/// adapter.
///
/// # Errors
/// [`MergeError`]; what was written until then stays and is no model.
pub fn merge(tables: &PromptTables, model: &Path, out: &Path) -> Result<usize, MergeError> {
    let shape = tables.shape();
    let modules = match shape.weights {
        WeightChange::LowRank { modules, .. } | WeightChange::Scales { modules } if shape.prefix_len == 0 => modules,
        _ => return Err(MergeError::Kind { mode: shape.mode() }),
    };
    fs::create_dir_all(out).map_err(|source| failed(out, source))?;
    if files(out)?.next().is_some() {
        return Err(MergeError::NotEmpty { path: out.to_owned() });
    }
    let mut left: BTreeSet<(usize, Module)> =
        (0..shape.blocks).flat_map(|block| modules.iter().map(move |module| (block, module))).collect();
    let wanted = left.len();
    let mut last = None;
    for path in files(model)? {
        let path = path?;
        let target = out.join(path.file_name().unwrap_or_default());
        let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        if kind == WEIGHTS {
            merge_file(tables, modules, &path, &target, &mut left)?;
        } else if path.file_name().is_some_and(|name| name == CONFIG) {
            last = Some((path, target));
        } else if !OTHER_WEIGHTS.contains(&kind) {
            fs::copy(&path, &target).map_err(|source| failed(&path, source))?;
        }
    }
    if let Some((block, module)) = left.first() {
        return Err(MergeError::Missing { path: model.to_owned(), missing: format!("layers.{block}.….{module}") });
    }
    if let Some((path, target)) = last {
        fs::copy(&path, &target).map_err(|source| failed(&path, source))?;
    }
    Ok(wanted)
}

fn failed(path: &Path, source: io::Error) -> MergeError {
    MergeError::Io { path: path.to_owned(), source }
}

/// The files of a folder, links followed, without those in folders of it.
fn files(folder: &Path) -> Result<impl Iterator<Item = Result<PathBuf, MergeError>>, MergeError> {
    let entries = fs::read_dir(folder).map_err(|source| failed(folder, source))?;
    let folder = folder.to_owned();
    Ok(entries.filter_map(move |entry| match entry {
        Ok(entry) => Some(entry.path()).filter(|path| path.is_file()).map(Ok),
        Err(source) => Some(Err(failed(&folder, source))),
    }))
}

/// Writes one file of weights; what is found of those that are `left` to be changed is taken from there.
fn merge_file(
    tables: &PromptTables,
    modules: Modules,
    path: &Path,
    target: &Path,
    left: &mut BTreeSet<(usize, Module)>,
) -> Result<(), MergeError> {
    let format = |source| MergeError::Format { path: path.to_owned(), source };
    let file = File::open(path).map_err(|source| failed(path, source))?;
    // SAFETY: as everywhere where checkpoints are read, the file must not change meanwhile.
    #[expect(unsafe_code, reason = "a checkpoint is larger than what this machine may have of memory")]
    let map = unsafe { Mmap::map(&file) }.map_err(|source| failed(path, source))?;
    let (_, metadata) = SafeTensors::read_metadata(&map).map_err(format)?;
    let tensors = SafeTensors::deserialize(&map).map_err(format)?;
    let mut all = Vec::new();
    for (name, view) in tensors.tensors() {
        let place = place(&name).filter(|(_, module, _)| modules.contains(*module));
        let change =
            place.filter(|(block, ..)| *block < tables.shape().blocks).and_then(|place| Change::of(tables, place));
        if let Some(change) = &change {
            let [input, output] = change.extents;
            let fits = if change.bias { view.shape() == [output] } else { view.shape() == [output, input] };
            if !fits || !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                return Err(MergeError::Weight { name, what: format!("{:?} {:?}", view.dtype(), view.shape()) });
            }
            if !change.bias {
                left.remove(&change.place);
            }
        }
        all.push((name, Merged { view, change }));
    }
    serialize_to_file(all, metadata.metadata().clone(), target)
        .map_err(|source| MergeError::Format { path: target.to_owned(), source })
}

/// Block, matrix and whether it is its bias, of a tensor's name.
fn place(name: &str) -> Option<(usize, Module, bool)> {
    let mut parts = name.strip_prefix("model.").unwrap_or(name).strip_prefix("layers.")?.split('.');
    let block = parts.next()?.parse().ok()?;
    let (module, kind) = (parts.nth(1)?.parse().ok()?, parts.next()?);
    let bias = match kind {
        "weight" => false,
        "bias" => true,
        _ => return None,
    };
    parts.next().is_none().then_some((block, module, bias))
}

/// What becomes of one matrix or of its bias.
struct Change<'a> {
    place: (usize, Module),
    extents: [usize; 2],
    bias: bool,
    factors: Factors<'a>,
}

enum Factors<'a> {
    /// `[rank, input]`, `[rank, output]` and what their product is multiplied with.
    LowRank(&'a [f32], &'a [f32], f32),
    /// Of what leaves the matrix, `[output]`.
    Rows(&'a [f32]),
    /// Of what enters it, `[input]`.
    Columns(&'a [f32]),
}

impl<'a> Change<'a> {
    fn of(tables: &'a PromptTables, (block, module, bias): (usize, Module, bool)) -> Option<Self> {
        let shape = tables.shape();
        let extents = module.extents(shape.widths);
        let own = |table: Table| {
            let len = shape.block_len(table);
            tables.table(table)?.get(block * len..(block + 1) * len)
        };
        let factors = match shape.weights {
            WeightChange::None => return None,
            // A low-rank product leaves the bias as it is, and so does a vector of what enters.
            WeightChange::LowRank { .. } if bias => return None,
            WeightChange::LowRank { .. } => {
                Factors::LowRank(own(Table::LowRankA(module))?, own(Table::LowRankB(module))?, shape.scale)
            }
            WeightChange::Scales { .. } if module != Module::Down => Factors::Rows(own(Table::Scale(module))?),
            WeightChange::Scales { .. } if bias => return None,
            WeightChange::Scales { .. } => Factors::Columns(own(Table::Scale(module))?),
        };
        Some(Self { place: (block, module), extents, bias, factors })
    }

    /// Changes rows `[output, input]`, or the bias `[output]`, in place.
    fn apply(&self, weight: &mut [f32]) {
        let [input, output] = self.extents;
        let width = if self.bias { 1 } else { input };
        for (row, weights) in weight.chunks_exact_mut(width.max(1)).enumerate() {
            match self.factors {
                Factors::LowRank(a, b, scale) => {
                    for (a, b) in a.chunks_exact(input).zip(b.chunks_exact(output)) {
                        let factor = scale * b[row];
                        weights.iter_mut().zip(a).for_each(|(weight, a)| *weight += factor * a);
                    }
                }
                Factors::Rows(scales) => weights.iter_mut().for_each(|weight| *weight *= scales[row]),
                Factors::Columns(scales) => {
                    weights.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= scale);
                }
            }
        }
    }
}

/// A tensor as it is written: computed when its turn comes.
struct Merged<'a> {
    view: TensorView<'a>,
    change: Option<Change<'a>>,
}

impl View for Merged<'_> {
    fn dtype(&self) -> Dtype {
        self.view.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.view.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.view.data();
        let Some(change) = &self.change else { return Cow::Borrowed(bytes) };
        let halves = || bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes));
        let mut values: Vec<f32> = match self.view.dtype() {
            Dtype::BF16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
            Dtype::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        };
        change.apply(&mut values);
        Cow::Owned(match self.view.dtype() {
            Dtype::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.view.data().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_matrices_are_told_from_others() {
        assert_eq!(place("model.layers.3.self_attn.q_proj.weight"), Some((3, Module::Query, false)));
        assert_eq!(place("layers.0.mlp.down_proj.bias"), Some((0, Module::Down, true)));
        for other in
            ["model.layers.3.self_attn.q_norm.weight", "lm_head.weight", "model.layers.x.mlp.up_proj.weight", ""]
        {
            assert_eq!(place(other), None, "{other}");
        }
    }
}
