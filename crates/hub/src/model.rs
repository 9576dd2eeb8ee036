//! What `--model` was given, as a directory with the files that are needed of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use petals_model::Checkpoint;
use petals_protocol::Span;

use crate::error::{HubError, SourceError};
use crate::reference::ModelName;
use crate::snapshot::{Hub, Snapshot};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
/// What a client reads beside `tokenizer.json`, where the model has it.
const OF_CLIENT: [&str; 7] = [
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Tokenizers of other kinds, which are named in the error that there is no `tokenizer.json`.
const OTHER_TOKENIZERS: [&str; 5] = ["tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt"];
/// The folder of templates that have names.
const TEMPLATES: &str = "additional_chat_templates/";
/// Longest header of a file of tensors; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// GGUFs that an error names.
const NAMED: usize = 8;

/// Where a model is: in a directory or a file of its own, or in the hub's cache.
#[derive(Debug, Clone)]
pub struct ModelSource {
    path: PathBuf,
    snapshot: Option<Arc<Snapshot>>,
}

impl ModelSource {
    /// Finds a model by what a person wrote: a directory or GGUF that is there, or else its name on the hub, of which the configuration is fetched and
    /// no weights (of a GGUF all of it). Anything else is taken as a path, about which whoever opens it has more to say.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn find(model: &Path, hub: impl FnOnce() -> Result<Hub, HubError>) -> Result<Self, HubError> {
        let local = || Self { path: model.to_owned(), snapshot: None };
        let name = match model.to_str() {
            Some(text) if !model.exists() => ModelName::parse(text),
            _ => None,
        };
        let Some(name) = name else { return Ok(local()) };
        let snapshot = hub()?.snapshot(&name)?;
        if let Some(file) = name.file() {
            snapshot.fetch(parts(file))?;
            return Ok(Self { path: snapshot.directory().join(file), snapshot: Some(Arc::new(snapshot)) });
        }
        if !snapshot.has(SINGLE) && !snapshot.has(INDEX) {
            return Err(no_weights(&snapshot));
        }
        snapshot.fetch([CONFIG])?;
        if !snapshot.has(SINGLE) {
            snapshot.fetch([INDEX])?;
        }
        Ok(Self { path: snapshot.directory().to_owned(), snapshot: Some(Arc::new(snapshot)) })
    }

    /// The directory, or the GGUF.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The revision in the hub's cache, if the model was given by its name.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_deref()
    }

    /// Opens the model. Weights of one from the hub are fetched when they are asked for, those of blocks in the place of those that were loaded
    /// before the last ones.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn checkpoint(&self) -> Result<Checkpoint, SourceError> {
        let Some(snapshot) = self.snapshot.clone().filter(|snapshot| snapshot.name().file().is_none()) else {
            return Ok(Checkpoint::open(&self.path)?);
        };
        let checkpoint = if snapshot.has(SINGLE) && !self.path.join(SINGLE).is_file() {
            Checkpoint::open_before_weights(&self.path, &header(&snapshot)?)?
        } else {
            Checkpoint::open(&self.path)?
        };
        Ok(checkpoint.with_files_from(move |files: &BTreeSet<String>| {
            snapshot.fetch_in_turn(files).map_err(|error| Box::new(error) as Box<_>)
        }))
    }

    /// Brings what a client needs: embeddings, norm and head, tokenizer, chat templates and settings of generation. Does nothing to a model that is not from
    /// the hub.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn fetch_client(&self) -> Result<(), SourceError> {
        self.fetch_with(|checkpoint| checkpoint.client_files())
    }

    /// As [`Self::fetch_client`], with the weights of some blocks.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn fetch_client_and(&self, blocks: Span) -> Result<(), SourceError> {
        self.fetch_with(|checkpoint| {
            let mut files = checkpoint.client_files();
            // What the model does not have is told by whoever loads it.
            files.extend(checkpoint.blocks().intersect(blocks).into_iter().flat_map(|own| checkpoint.span_files(own)));
            files
        })
    }

    /// Brings all weights, and what [`Self::fetch_client`] brings.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn fetch_all(&self) -> Result<(), SourceError> {
        self.fetch_with(|checkpoint| checkpoint.all_files())
    }

    fn fetch_with(&self, weights: impl FnOnce(&Checkpoint) -> BTreeSet<String>) -> Result<(), SourceError> {
        let Some(snapshot) = self.snapshot.as_deref().filter(|snapshot| snapshot.name().file().is_none()) else {
            return Ok(());
        };
        let mut files = weights(&self.checkpoint()?);
        files.extend(OF_CLIENT.into_iter().filter(|file| snapshot.has(file)).map(str::to_owned));
        if !snapshot.has(TOKENIZER) {
            files.extend(OTHER_TOKENIZERS.into_iter().filter(|file| snapshot.has(file)).map(str::to_owned));
        }
        files.extend(
            snapshot.files().into_iter().filter(|file| file.starts_with(TEMPLATES) && file.ends_with(".jinja")),
        );
        Ok(snapshot.fetch(files)?)
    }
}

/// The header of a model's only file of weights.
fn header(snapshot: &Snapshot) -> Result<Vec<u8>, HubError> {
    let start = snapshot.read_start(SINGLE, 8)?;
    let length = start.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // What is no header is told so by whoever reads it.
    snapshot.read_start(SINGLE, 8 + length.min(MAX_HEADER))
}

/// A GGUF, or all files of one that was split: `name-00001-of-00003.gguf`.
fn parts(file: &str) -> Vec<String> {
    let numbered = || {
        let (stem, end) = file.split_at_checked(file.len().checked_sub(".gguf".len())?)?;
        let (rest, of) = stem.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let five = |digits: &str| (digits.len() == 5).then(|| digits.parse::<u32>().ok()).flatten();
        (five(number)? == 1).then_some(())?;
        Some((1..=five(of)?.min(1 << 10)).map(|number| format!("{name}-{number:05}-of-{of}{end}")).collect())
    };
    numbered().unwrap_or_else(|| vec![file.to_owned()])
}

/// What a repository without safetensors has in their place.
fn no_weights(snapshot: &Snapshot) -> HubError {
    let (name, files) = (snapshot.name(), snapshot.files());
    let ending = |end: &str| files.iter().filter(|file| file.to_ascii_lowercase().ends_with(end)).collect::<Vec<_>>();
    let (ggufs, pickles) = (ending(".gguf"), ending(".bin"));
    let refused =
        |found: &str, remedy: String| HubError::NoWeights { name: name.to_string(), found: found.to_owned(), remedy };
    if files.iter().any(|file| file == "adapter_config.json") {
        let remedy = "give --model the model that it was made for, and the adapter's directory to --adapter".to_owned();
        return refused("is an adapter", remedy);
    }
    if let [first, ..] = ggufs.as_slice() {
        let named: Vec<&str> = ggufs.iter().take(NAMED).map(|file| file.as_str()).collect();
        let remedy = format!("choose one, such as --model {}/{first}; it has {}", name.repository(), named.join(", "));
        return refused("has GGUFs and no safetensors", remedy);
    }
    if !pickles.is_empty() {
        let remedy = "use another revision or copy of it, with safetensors".to_owned();
        return refused(
            "has its weights as pickles, which are not read, since reading them runs what is in them",
            remedy,
        );
    }
    let remedy = format!("see that it is a language model with {SINGLE} or {INDEX}");
    match snapshot.is_listed() {
        true => refused("has no weights in safetensors", remedy),
        false => HubError::Offline {
            name: name.to_string(),
            missing: format!("{SINGLE} or {INDEX}"),
            several: false,
            cache: snapshot.cache().to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_gguf_is_all_its_files() {
        assert_eq!(parts("q/x-Q8_0.gguf"), ["q/x-Q8_0.gguf"]);
        assert_eq!(
            parts("x-00001-of-00003.gguf"),
            ["x-00001-of-00003.gguf", "x-00002-of-00003.gguf", "x-00003-of-00003.gguf"]
        );
        assert_eq!(parts("x-00002-of-00003.gguf"), ["x-00002-of-00003.gguf"]);
    }

    #[test]
    fn what_is_here_wins_and_paths_are_never_asked_for() {
        let here = tempfile::tempdir().unwrap();
        let never = || -> Result<Hub, HubError> { panic!("the hub was asked") };
        for path in [here.path(), Path::new("/nonexistent/model"), Path::new("model"), Path::new("./org/name")] {
            let source = ModelSource::find(path, never).unwrap();
            assert_eq!((source.path(), source.snapshot().is_none()), (path, true));
        }
    }
}
