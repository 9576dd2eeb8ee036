//! A hub with one model, and a cache.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use petals_e2e::{Goldens, HubServer, write_shards};
use petals_hub::{Hub, ModelName, ModelSource, Patience, Progress, Settings, Token};
use tempfile::TempDir;

/// The model's name.
pub(crate) const MODEL: &str = "org/tiny";
/// Embeddings, four blocks, and final norm with the head if it has one of its own.
pub(crate) const SHARDS: usize = 6;

/// A hub with a model of four blocks, and a cache on this machine.
pub(crate) struct Place {
    pub(crate) server: HubServer,
    /// What was published.
    pub(crate) model: TempDir,
    pub(crate) commit: String,
    pub(crate) cache: TempDir,
    told: Arc<Mutex<Vec<Progress>>>,
}

/// The name of a shard.
pub(crate) fn shard(number: usize) -> String {
    format!("model-{number:05}-of-{SHARDS:05}.safetensors")
}

impl Place {
    /// A hub with the model in several files.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let model = tempfile::tempdir()?;
        let count = write_shards(&Goldens::load("llama-gqa")?.model(), model.path())?;
        anyhow::ensure!(count == SHARDS, "{count} shards");
        Self::of(model)
    }

    /// A hub with the model in `model`.
    pub(crate) fn of(model: TempDir) -> anyhow::Result<Self> {
        let server = HubServer::start()?;
        let commit = server.publish(MODEL, "main", model.path())?;
        Ok(Self { server, model, commit, cache: tempfile::tempdir()?, told: Arc::default() })
    }

    pub(crate) fn settings(&self) -> Settings {
        let patience = Patience {
            connect: Duration::from_secs(5),
            silence: Duration::from_millis(500),
            first_wait: Duration::from_millis(20),
            longest_wait: Duration::from_millis(100),
            longest_asked: Duration::from_secs(5),
            attempts: 4,
        };
        Settings {
            endpoint: self.server.endpoint(),
            cache: self.cache.path().to_owned(),
            token: None,
            certificates: None,
            offline: false,
            patience,
        }
    }

    /// The hub as somebody with these settings sees it.
    pub(crate) fn hub_with(&self, change: impl FnOnce(&mut Settings)) -> Hub {
        let mut settings = self.settings();
        change(&mut settings);
        let told = self.told.clone();
        Hub::new(&settings)
            .expect("no certificates were given")
            .with_progress(move |progress| told.lock().unwrap_or_else(PoisonError::into_inner).push(progress.clone()))
    }

    pub(crate) fn hub(&self) -> Hub {
        self.hub_with(|_| ())
    }

    /// The same for somebody with a token.
    pub(crate) fn hub_as(&self, token: &str) -> Hub {
        self.hub_with(|settings| settings.token = Some(Token::new(token, "HF_TOKEN")))
    }

    /// The model by its name.
    pub(crate) fn source(&self) -> anyhow::Result<ModelSource> {
        Ok(ModelSource::find(Path::new(MODEL), || Ok(self.hub()))?)
    }

    /// What was told of progress.
    pub(crate) fn told(&self) -> Vec<Progress> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The folder of the model in the cache.
    pub(crate) fn folder(&self) -> PathBuf {
        self.cache.path().join("models--org--tiny")
    }

    /// Where a file of the snapshot is.
    pub(crate) fn cached(&self, file: &str) -> PathBuf {
        self.folder().join("snapshots").join(&self.commit).join(file)
    }

    /// What a file's content is called in the cache, by the name that its link leads to.
    pub(crate) fn blob(&self, file: &str) -> anyhow::Result<PathBuf> {
        Ok(self.cached(file).canonicalize()?)
    }

    /// Whether a file in the cache has the bytes that were published.
    pub(crate) fn assert_equal(&self, file: &str) -> anyhow::Result<()> {
        let (got, expected) = (std::fs::read(self.cached(file))?, std::fs::read(self.model.path().join(file))?);
        assert!(got == expected, "{file}: {} bytes in place of {}", got.len(), expected.len());
        Ok(())
    }

    /// Contents that have not come whole.
    pub(crate) fn incomplete(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.folder().join("blobs"))? {
            found.push(entry?.path());
        }
        found.retain(|path| path.extension().is_some_and(|end| end == "incomplete"));
        Ok(found)
    }
}

/// A name on the hub.
pub(crate) fn name(text: &str) -> ModelName {
    ModelName::parse(text).expect("a name")
}
