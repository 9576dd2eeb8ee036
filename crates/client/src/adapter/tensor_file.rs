//! Small safetensors files that are read whole: adapters and training states.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};

use super::atomic_file::{WriteError, write_atomically};

/// Tables of this size would not fit a client; a longer file is something else, a whole model for instance.
const MAX_FILE_LEN: u64 = 4 << 30;

/// Why a file of tables cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFileError {
    /// It cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too long to be a file of tables.
    #[error("{} has {len} bytes: too long for prompt tables", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// It is cut off or not a safetensors file.
    #[error("{} is not a whole safetensors file", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SafeTensorError,
    },
    /// A note of git-lfs in place of the file.
    #[error(
        "{} is not the file itself but a pointer of git-lfs to it: run `git lfs pull` there, or download the file",
        path.display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A tensor is not there.
    #[error("{} has no tensor `{name}`{has}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it has instead, in words.
        has: String,
    },
    /// A tensor has another type than numbers with a fraction.
    #[error("tensor `{name}` in {} has dtype {dtype:?}: use f32, f16 or bf16", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
    /// A tensor has other extents than the model or the other tensors ask for.
    #[error("tensor `{name}` in {} has shape {got:?}, expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Shape found.
        got: Vec<usize>,
        /// Shape needed, in words.
        expected: String,
    },
    /// A value is NaN or infinite.
    #[error("tensor `{name}` in {} is not finite at element {index}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// First such element.
        index: usize,
    },
    /// The tables cannot be packed into a file.
    #[error("the tables cannot be written as safetensors")]
    Serialize(#[source] SafeTensorError),
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The bytes of a safetensors file, checked to be whole.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// A tensor in f32, with its extents.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NamedTensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

impl TensorFile {
    pub(crate) fn read(path: &Path) -> Result<Self, TensorFileError> {
        let failed = |source| TensorFileError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes).map_err(failed)?;
        let len = bytes.len() as u64;
        if len > MAX_FILE_LEN {
            return Err(TensorFileError::TooLong { path: path.to_owned(), len });
        }
        if is_lfs_pointer(&bytes) {
            return Err(TensorFileError::LfsPointer { path: path.to_owned() });
        }
        let file = Self { path: path.to_owned(), bytes };
        file.parse()?;
        Ok(file)
    }

    fn parse(&self) -> Result<SafeTensors<'_>, TensorFileError> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|source| TensorFileError::Format { path: self.path.clone(), source })
    }

    /// A text of the file's metadata.
    pub(crate) fn metadata(&self, key: &str) -> Result<Option<String>, TensorFileError> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes)
            .map_err(|source| TensorFileError::Format { path: self.path.clone(), source })?;
        Ok(header.metadata().as_ref().and_then(|texts| texts.get(key).cloned()))
    }

    /// Names of all tensors.
    pub(crate) fn names(&self) -> Result<Vec<String>, TensorFileError> {
        Ok(self.parse()?.names().into_iter().map(str::to_owned).collect())
    }

    /// A tensor in f32, every value finite; `None` if the file does not have it.
    pub(crate) fn find(&self, name: &str) -> Result<Option<NamedTensor>, TensorFileError> {
        let tensors = self.parse()?;
        let Ok(view) = tensors.tensor(name) else { return Ok(None) };
        let path = || self.path.clone();
        let values = to_f32(&view).ok_or_else(|| TensorFileError::Dtype {
            path: path(),
            name: name.to_owned(),
            dtype: view.dtype(),
        })?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(TensorFileError::NotFinite { path: path(), name: name.to_owned(), index });
        }
        Ok(Some(NamedTensor { shape: view.shape().to_vec(), values }))
    }

    /// As [`TensorFile::find`], with exactly these extents.
    pub(crate) fn expect(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TensorFileError> {
        let found = self.find(name)?;
        let tensor = found.ok_or_else(|| self.lacks(name))?;
        if tensor.shape != shape {
            return Err(self.misshapen(name, tensor.shape, format!("{shape:?}")));
        }
        Ok(tensor.values)
    }

    /// The error of a file without this tensor, with what it has.
    pub(crate) fn lacks(&self, name: &str) -> TensorFileError {
        let names: Vec<String> = match self.parse() {
            Ok(tensors) => tensors.names().into_iter().map(str::to_owned).collect(),
            Err(_) => Vec::new(),
        };
        let has = match names.iter().min() {
            Some(first) => format!(": it has {} others, `{first}` for example", names.len()),
            None => ": it is empty".to_owned(),
        };
        TensorFileError::Missing { path: self.path.clone(), name: name.to_owned(), has }
    }

    pub(crate) fn misshapen(&self, name: &str, got: Vec<usize>, expected: String) -> TensorFileError {
        TensorFileError::Shape { path: self.path.clone(), name: name.to_owned(), got, expected }
    }
}

/// Whether these are the first bytes of what git leaves where git-lfs is not installed.
pub(crate) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// Writes tensors (name, extents, values) and texts atomically, as f32 in the form that PEFT reads.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &[(String, Vec<usize>, impl AsRef<[f32]>)],
    mut texts: HashMap<String, String>,
) -> Result<(), TensorFileError> {
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, values)| {
            (name.clone(), shape.clone(), values.as_ref().iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(TensorFileError::Serialize)?;
    texts.insert("format".to_owned(), "pt".to_owned());
    let bytes = safetensors::serialize(views, Some(texts)).map_err(TensorFileError::Serialize)?;
    Ok(write_atomically(path, &bytes)?)
}

fn to_f32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => Some(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        Dtype::F16 => Some(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Some(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_raw(path: &Path, dtype: Dtype, shape: Vec<usize>, bytes: &[u8]) {
        let view = TensorView::new(dtype, shape, bytes).unwrap();
        std::fs::write(path, safetensors::serialize([("t", view)], None).unwrap()).unwrap();
    }

    #[test]
    fn half_precision_is_read_as_f32() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("t.safetensors");
        let f16s: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        write_raw(&path, Dtype::F16, vec![2], &f16s);
        assert_eq!(TensorFile::read(&path).unwrap().expect("t", &[2]).unwrap(), [1.5, -2.0]);
        let bf16s: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        write_raw(&path, Dtype::BF16, vec![1, 2], &bf16s);
        assert_eq!(TensorFile::read(&path).unwrap().expect("t", &[1, 2]).unwrap(), [1.5, -2.0]);
    }

    #[test]
    fn unusable_tensors_are_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("t.safetensors");
        write_raw(&path, Dtype::I32, vec![1], &[0; 4]);
        let file = TensorFile::read(&path).unwrap();
        assert!(matches!(file.find("t"), Err(TensorFileError::Dtype { name, .. }) if name == "t"));
        assert!(matches!(file.expect("u", &[1]), Err(TensorFileError::Missing { name, .. }) if name == "u"));
        write_raw(&path, Dtype::F32, vec![2], &[[0; 4], f32::INFINITY.to_le_bytes()].concat());
        let file = TensorFile::read(&path).unwrap();
        assert!(matches!(file.find("t"), Err(TensorFileError::NotFinite { index: 1, .. })));
        write_raw(&path, Dtype::F32, vec![2], &[0; 8]);
        let file = TensorFile::read(&path).unwrap();
        assert!(matches!(file.expect("t", &[1, 2]), Err(TensorFileError::Shape { got, .. }) if got == [2]));
    }

    #[test]
    fn a_file_that_is_cut_off_or_absent_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("t.safetensors");
        write_raw(&path, Dtype::F32, vec![2], &[0; 8]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(TensorFile::read(&path), Err(TensorFileError::Format { .. })));
        assert!(matches!(TensorFile::read(&root.path().join("none")), Err(TensorFileError::Read { .. })));
    }
}
