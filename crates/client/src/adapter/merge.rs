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
use petals_model::{Projection, Projections};
use petals_protocol::{Module, Modules, WeightChange};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, View, serialize_to_file};

use super::names::TuningMode;
use super::tables::{PromptTables, Table};
use super::weights;

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
    /// The adapter changes what the model does not have as a matrix of its own.
    #[error("the adapter changes {module}, and what it could change of this model is {known}")]
    Module {
        /// The first such matrix.
        module: Module,
        /// What can be adapted, in words.
        known: String,
    },
    /// The model is no folder, but a GGUF, in which blocks would have to be rounded anew.
    #[error("{} is a GGUF: an adapter can be merged into the checkpoint that it was made from, in Hugging Face's layout", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
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
    #[error(
        "the checkpoint in {} has no weight of `{missing}`, which the adapter changes; quantised ones cannot be merged into",
        path.display()
    )]
    Missing {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The first such matrix.
        missing: String,
    },
}

/// Writes the checkpoint in `model` with the change of `tables` folded into its weights to `out`; returns how many of its matrices changed.
/// `projections` says what they are called, and how several matrices lie in one.
///
/// Every other file of the folder is copied, but for weights in other formats. The dtypes stay as they are. A classifier's head stays in the
/// adapter.
///
/// # Errors
/// [`MergeError`]; what was written until then stays and is no model.
pub fn merge(tables: &PromptTables, projections: &Projections, model: &Path, out: &Path) -> Result<usize, MergeError> {
    let shape = tables.shape();
    let modules = match shape.weights {
        WeightChange::LowRank { modules, .. } | WeightChange::Scales { modules } if shape.prefix_len == 0 => modules,
        _ => return Err(MergeError::Kind { mode: shape.mode() }),
    };
    let adaptable = projections.adaptable();
    if let Some(module) = modules.iter().find(|module| !adaptable.contains(*module)) {
        return Err(MergeError::Module { module, known: projections.describe(adaptable) });
    }
    if model.is_file() {
        return Err(MergeError::Gguf { path: model.to_owned() });
    }
    fs::create_dir_all(out).map_err(|source| failed(out, source))?;
    if files(out)?.next().is_some() {
        return Err(MergeError::NotEmpty { path: out.to_owned() });
    }
    let changed: Vec<(&Projection, Modules)> = weights::of(projections, modules).collect();
    let paths = |block| changed.iter().map(move |(projection, _)| projections.path(block, projection));
    let mut left: BTreeSet<String> = (0..shape.blocks).flat_map(paths).collect();
    let wanted = left.len();
    let changes = Changes { tables, projections, changed: &changed };
    let mut last = None;
    for path in files(model)? {
        let path = path?;
        let target = out.join(path.file_name().unwrap_or_default());
        let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        if kind == WEIGHTS {
            changes.merge_file(&path, &target, &mut left)?;
        } else if path.file_name().is_some_and(|name| name == CONFIG) {
            last = Some((path, target));
        } else if !OTHER_WEIGHTS.contains(&kind) {
            fs::copy(&path, &target).map_err(|source| failed(&path, source))?;
        }
    }
    if let Some(missing) = left.first() {
        return Err(MergeError::Missing { path: model.to_owned(), missing: missing.clone() });
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

/// What becomes of weights.
struct Changes<'a> {
    tables: &'a PromptTables,
    projections: &'a Projections,
    /// The projections that change, and which of their matrices do.
    changed: &'a [(&'a Projection, Modules)],
}

impl Changes<'_> {
    /// Writes one file of weights; what is found of those that are `left` to be changed is taken from there.
    fn merge_file(&self, path: &Path, target: &Path, left: &mut BTreeSet<String>) -> Result<(), MergeError> {
        let format = |source| MergeError::Format { path: path.to_owned(), source };
        let file = File::open(path).map_err(|source| failed(path, source))?;
        // SAFETY: as everywhere where checkpoints are read, the file must not change meanwhile.
        #[expect(unsafe_code, reason = "a checkpoint is larger than what this machine may have of memory")]
        let map = unsafe { Mmap::map(&file) }.map_err(|source| failed(path, source))?;
        let (_, metadata) = SafeTensors::read_metadata(&map).map_err(format)?;
        let tensors = SafeTensors::deserialize(&map).map_err(format)?;
        let mut all = Vec::new();
        for (name, view) in tensors.tensors() {
            let change = self.of(&name);
            if let Some(change) = &change {
                let [input, output] = change.extents;
                let fits = if change.bias { view.shape() == [output] } else { view.shape() == [output, input] };
                if !fits || !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                    return Err(MergeError::Weight { name, what: format!("{:?} {:?}", view.dtype(), view.shape()) });
                }
                if !change.bias {
                    left.remove(&change.path);
                }
            }
            all.push((name, Merged { view, change }));
        }
        serialize_to_file(all, metadata.metadata().clone(), target)
            .map_err(|source| MergeError::Format { path: target.to_owned(), source })
    }

    /// What becomes of the tensor of this name, if it changes.
    fn of(&self, name: &str) -> Option<Change<'_>> {
        let (block, projection, kind) = self.projections.find(name)?;
        let (_, modules) = self.changed.iter().find(|(changed, _)| *changed == projection)?;
        let bias = match kind {
            "weight" => false,
            "bias" => true,
            _ => return None,
        };
        let own = |module| Some((projection.rows(module).collect(), Factors::of(self.tables, block, module, bias)?));
        let parts: Vec<_> = modules.iter().filter_map(own).collect();
        let path = self.projections.path(block, projection);
        (!parts.is_empty()).then(|| Change { path, extents: projection.extents(), bias, parts })
    }
}

/// What becomes of one tensor, a weight or its bias.
struct Change<'a> {
    path: String,
    extents: [usize; 2],
    bias: bool,
    /// What happens to which of its rows: those of one matrix each.
    parts: Vec<(Vec<usize>, Factors<'a>)>,
}

enum Factors<'a> {
    /// `[rank, input]`, `[rank, output]` and what their product is multiplied with.
    LowRank(&'a [f32], &'a [f32], f32),
    /// Of what leaves the matrix, `[output]`.
    Rows(&'a [f32]),
    /// Of what enters it, `[input]`.
    Columns(&'a [f32]),
}

impl<'a> Factors<'a> {
    /// Those of one matrix or of its bias; `None` if nothing becomes of it.
    fn of(tables: &'a PromptTables, block: usize, module: Module, bias: bool) -> Option<Self> {
        let shape = tables.shape();
        let own = |table: Table| {
            let len = shape.block_len(table);
            tables.table(table)?.get(block * len..(block + 1) * len)
        };
        match shape.weights {
            WeightChange::None => None,
            // A low-rank product leaves the bias as it is, and so does a vector of what enters.
            WeightChange::LowRank { .. } if bias => None,
            WeightChange::LowRank { .. } => {
                Some(Self::LowRank(own(Table::LowRankA(module))?, own(Table::LowRankB(module))?, shape.scale))
            }
            WeightChange::Scales { .. } if module != Module::Down => Some(Self::Rows(own(Table::Scale(module))?)),
            WeightChange::Scales { .. } if bias => None,
            WeightChange::Scales { .. } => Some(Self::Columns(own(Table::Scale(module))?)),
        }
    }
}

impl Change<'_> {
    /// Changes rows `[output, input]`, or the bias `[output]`, in place.
    fn apply(&self, weight: &mut [f32]) {
        let width = if self.bias { 1 } else { self.extents[0] };
        for (rows, factors) in &self.parts {
            for (number, row) in rows.iter().enumerate() {
                let weights = &mut weight[row * width..][..width];
                match factors {
                    Factors::LowRank(a, b, scale) => {
                        for (a, b) in a.chunks_exact(width.max(1)).zip(b.chunks_exact(rows.len())) {
                            let factor = scale * b[number];
                            weights.iter_mut().zip(a).for_each(|(weight, a)| *weight += factor * a);
                        }
                    }
                    Factors::Rows(scales) => weights.iter_mut().for_each(|weight| *weight *= scales[number]),
                    Factors::Columns(scales) => {
                        weights.iter_mut().zip(*scales).for_each(|(weight, scale)| *weight *= scale);
                    }
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
mod tests;
