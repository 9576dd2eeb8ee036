//! Which files are needed of a checkpoint, and who brings those that are not there.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use petals_protocol::Span;

use super::{Checkpoint, CheckpointError, SupplyError};

/// Brings files of the checkpoint's directory.
type Bring = dyn Fn(&BTreeSet<String>) -> Result<(), SupplyError> + Send + Sync;

/// Who brings files that are not there.
#[derive(Clone)]
pub(super) struct Supply(Arc<Bring>);

impl fmt::Debug for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Supply")
    }
}

impl Checkpoint {
    /// The same checkpoint, for which `bring` is asked for files by their names before blocks are read from them. It may take its time; files that are
    /// there it takes into use.
    #[must_use]
    pub fn with_files_from(
        self,
        bring: impl Fn(&BTreeSet<String>) -> Result<(), SupplyError> + Send + Sync + 'static,
    ) -> Self {
        Self { supply: Some(Supply(Arc::new(bring))), ..self }
    }

    /// Has the files of `span` brought, if somebody brings them. Done by whatever loads blocks; before that it is for whoever wants to know that
    /// they are there.
    ///
    /// # Errors
    /// [`CheckpointError::Supply`].
    pub fn supply(&self, span: Span) -> Result<(), CheckpointError> {
        match &self.supply {
            Some(Supply(bring)) => bring(&self.span_files(span)).map_err(CheckpointError::Supply),
            None => Ok(()),
        }
    }

    /// The files with tensors of `span`, by their names in the directory.
    pub fn span_files(&self, span: Span) -> BTreeSet<String> {
        let below: Vec<String> = span.blocks().map(|block| self.config.names.of_block(block, "")).collect();
        self.files_below(&below)
    }

    /// The files with what [`Self::load_client`] reads, by their names in the directory.
    pub fn client_files(&self) -> BTreeSet<String> {
        let names = self.config.names;
        let module = |name: &str| format!("{name}.");
        let mut below = vec![module(&names.embeddings()), module(&names.final_norm())];
        if self.config.embedding.norm {
            below.push(module(&names.embedding_norm()));
        }
        // Of a tied table that is there under both names the embeddings are read.
        if !self.config.head.tied || !self.has_matrix(&names.embeddings()) {
            below.push(module(names.head()));
        }
        self.files_below(&below)
    }

    /// All files of weights, by their names in the directory.
    pub fn all_files(&self) -> BTreeSet<String> {
        self.files_below(&[String::new()])
    }

    /// The files with tensors whose names begin so, in any of the ways in which names may be stored.
    fn files_below(&self, below: &[String]) -> BTreeSet<String> {
        let starts = self.starts(below);
        let wanted = |name: &str| starts.iter().any(|start| name.starts_with(start.as_str()));
        let file = |(name, path): (&str, &std::path::Path)| {
            wanted(name).then(|| path.file_name().map(|file| file.to_string_lossy().into_owned())).flatten()
        };
        self.index.stored().filter_map(file).collect()
    }

    /// All beginnings of names that stand for these, in any of the ways in which names may be stored.
    pub(super) fn starts(&self, below: &[String]) -> BTreeSet<String> {
        let base = self.config.names.base();
        let mut starts = BTreeSet::new();
        for whole in below {
            starts.insert(whole.clone());
            starts.insert(format!("language_model.{whole}"));
            if let Some(bare) = whole.strip_prefix(base) {
                starts.insert(bare.to_owned());
                starts.insert(format!("model.language_model.{bare}"));
            }
        }
        starts
    }
}
