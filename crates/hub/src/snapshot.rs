//! A revision in the cache: what it has, and files of it brought when they are wanted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::cache::{Folder, hold};
use crate::checked::Checked;
use crate::error::HubError;
use crate::http::{Asked, Attempts, Http, Trouble, cut};
use crate::listing::{Listed, Listing};
use crate::nearby::Nearby;
use crate::progress::Progress;
use crate::reference::ModelName;
use crate::settings::Settings;

mod coming;
mod shared;

pub use shared::SharedContent;

/// How often files that others remove as fast as they come are fetched.
const TURNS: usize = 3;

/// Is told what happens.
type Tell = dyn Fn(&Progress) + Send + Sync;

/// The hub, and its cache on this machine.
#[derive(Clone)]
pub struct Hub {
    http: Arc<Http>,
    cache: PathBuf,
    offline: bool,
    most: Option<u64>,
    tell: Arc<Tell>,
    nearby: Option<Arc<dyn Nearby>>,
    checked: Arc<Checked>,
}

/// A revision of a model in the cache, with the files that were asked for so far.
///
/// What it has brought is not removed to make room while it lives, but for [`Self::fetch_in_turn`].
#[derive(Debug)]
pub struct Snapshot {
    hub: Hub,
    name: ModelName,
    commit: String,
    directory: PathBuf,
    folder: Folder,
    /// What the hub says that it has; `None` if the hub was not asked.
    files: Option<BTreeMap<String, Listed>>,
    held: Mutex<Held>,
}

/// Locks on what is used.
#[derive(Debug, Default)]
struct Held {
    always: Vec<File>,
    /// Of the last requests that come in turn.
    in_turn: VecDeque<(BTreeSet<String>, Vec<File>)>,
}

impl Held {
    /// Whether these files are held already; then they are not the oldest any more. Else the last but one request is given up for them.
    fn again(&mut self, wanted: &BTreeSet<String>) -> bool {
        let at = self.in_turn.iter().position(|(files, _)| files == wanted);
        match at.and_then(|at| self.in_turn.remove(at)) {
            Some(again) => {
                self.in_turn.push_back(again);
                true
            }
            None => {
                while self.in_turn.len() > 1 {
                    self.in_turn.pop_front();
                }
                false
            }
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { http, cache, offline, most, .. } = self;
        f.debug_struct("Hub")
            .field("endpoint", &http.endpoint())
            .field("cache", cache)
            .field("offline", offline)
            .field("most", most)
            .finish()
    }
}

impl Hub {
    /// A hub that nobody hears of.
    ///
    /// # Errors
    /// If the certificates of the settings cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, HubError> {
        let http = Arc::new(Http::new(settings)?);
        Ok(Self {
            http,
            cache: settings.cache.clone(),
            offline: settings.offline,
            most: None,
            tell: Arc::new(|_| {}),
            nearby: None,
            checked: Arc::default(),
        })
    }

    /// The same, in whose cache all models together may have at most so many bytes.
    #[must_use]
    pub fn with_max_disk(self, most: Option<u64>) -> Self {
        Self { most, ..self }
    }

    /// The same, which tells what happens.
    #[must_use]
    pub fn with_progress(self, tell: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        Self { tell: Arc::new(tell), ..self }
    }

    /// The same with somebody who is asked for large files before the hub is.
    #[must_use]
    pub fn with_nearby(self, nearby: Arc<dyn Nearby>) -> Self {
        Self { nearby: Some(nearby), ..self }
    }

    /// Asks the hub what a revision is and has. If it cannot be asked, what is in the cache has to do.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn snapshot(&self, name: &ModelName) -> Result<Snapshot, HubError> {
        let folder = Folder::new(&self.cache, name);
        let cached = folder.commit_of(name.revision());
        let of = |commit: String, files| Snapshot {
            hub: self.clone(),
            name: name.clone(),
            directory: folder.snapshot(&commit),
            commit,
            folder: folder.clone(),
            files,
            held: Mutex::default(),
        };
        if self.offline {
            let Some(commit) = cached else {
                let missing = format!("revision {}", name.revision());
                return Err(HubError::Offline {
                    name: name.to_string(),
                    missing,
                    several: false,
                    cache: self.cache.clone(),
                });
            };
            return Ok(of(commit, None));
        }
        // Somebody who has it need not wait long for a hub that is not there.
        let attempts = if cached.is_some() { 1 } else { u32::MAX };
        match Listing::ask(&self.http, name, attempts, |reason, wait| self.tell_wait(name, reason, wait)) {
            Ok(Listing { commit, files }) => {
                folder.note_commit(name.revision(), &commit)?;
                Ok(of(commit, Some(files)))
            }
            Err(error) => match cached {
                Some(commit) if error.is_passing() => {
                    tracing::warn!(
                        "the hub cannot be asked what {name} is now, the copy in the cache is used: {error}"
                    );
                    Ok(of(commit, None))
                }
                _ => Err(error),
            },
        }
    }

    fn tell_wait(&self, name: &ModelName, reason: String, wait: Duration) {
        (self.tell)(&Progress::Waiting { model: name.to_string(), reason, retry_in_s: wait.as_secs_f64() });
    }
}

impl Snapshot {
    /// Its folder in the cache.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its commit.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// What it was asked for as.
    pub fn name(&self) -> &ModelName {
        &self.name
    }

    /// The cache that it is in.
    pub(crate) fn cache(&self) -> &Path {
        &self.hub.cache
    }

    /// Whether the hub was asked what it has.
    pub(crate) fn is_listed(&self) -> bool {
        self.files.is_some()
    }

    /// Whether it has a file: as the hub says, or, if that was not asked, whether it is here.
    pub fn has(&self, file: &str) -> bool {
        match &self.files {
            Some(files) => files.contains_key(file),
            None => self.directory.join(file).is_file(),
        }
    }

    /// The names of its files, as far as they are known.
    pub fn files(&self) -> Vec<String> {
        match &self.files {
            Some(files) => files.keys().cloned().collect(),
            None => {
                let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
                entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
        }
    }

    /// Bytes of a file, if the hub told.
    pub fn size(&self, file: &str) -> Option<u64> {
        self.files.as_ref()?.get(file)?.size
    }

    /// Brings files, and keeps them while this lives.
    ///
    /// # Errors
    /// [`HubError`] of the first one that cannot be had.
    pub fn fetch<S: AsRef<str>>(&self, files: impl IntoIterator<Item = S>) -> Result<(), HubError> {
        let wanted: BTreeSet<String> = files.into_iter().map(|file| file.as_ref().to_owned()).collect();
        let locks = self.bring(&wanted)?;
        self.held().always.extend(locks);
        Ok(())
    }

    /// Brings files in the place of those of the last but one request of this kind, which may be removed then: what a server serves, and what it
    /// is about to serve.
    ///
    /// # Errors
    /// [`HubError`] of the first one that cannot be had.
    pub fn fetch_in_turn<S: AsRef<str>>(&self, files: impl IntoIterator<Item = S>) -> Result<(), HubError> {
        let wanted: BTreeSet<String> = files.into_iter().map(|file| file.as_ref().to_owned()).collect();
        if self.held().again(&wanted) {
            return Ok(());
        }
        let locks = self.bring(&wanted)?;
        self.held().in_turn.push_back((wanted, locks));
        Ok(())
    }

    /// The first bytes of a file, without bringing it.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn read_start(&self, file: &str, length: u64) -> Result<Vec<u8>, HubError> {
        let path = self.directory.join(file);
        if path.is_file() {
            let mut bytes = Vec::new();
            let read = File::open(&path).and_then(|opened| opened.take(length).read_to_end(&mut bytes));
            return read.map(|_| bytes).map_err(HubError::cache("read", path));
        }
        if self.files.is_none() {
            return Err(self.missing(&[file]));
        }
        let (http, never) = (&self.hub.http, AtomicBool::new(false));
        let url = http.file_url(&self.name, &self.commit, file);
        let asked = Asked { name: &self.name, file: Some(file) };
        let mut attempts = Attempts::new(http.patience, &never);
        loop {
            let answer = http.get(asked, &url, Some(&format!("bytes=0-{}", length.saturating_sub(1))));
            let read = answer.and_then(|answer| {
                let mut bytes = Vec::new();
                match answer.body.into_reader().take(length).read_to_end(&mut bytes) {
                    Ok(_) => Ok(bytes),
                    Err(error) => Err(cut(&url, error.to_string())),
                }
            });
            match read {
                Ok(bytes) => return Ok(bytes),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Beyond) => return Ok(Vec::new()),
                Err(Trouble::Passing { error, wait }) => {
                    attempts.wait(error, wait, |reason, wait| self.hub.tell_wait(&self.name, reason, wait))?;
                }
            }
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings files and takes them into use.
    fn bring(&self, wanted: &BTreeSet<String>) -> Result<Vec<File>, HubError> {
        for _ in 0..TURNS {
            let missing: Vec<&str> = wanted.iter().map(String::as_str).filter(|file| !self.is_here(file)).collect();
            if !missing.is_empty() {
                self.download(wanted, &missing)?;
            }
            let locks: Option<Vec<File>> = wanted.iter().map(|file| hold(&self.directory.join(file))).collect();
            if let Some(locks) = locks {
                return Ok(locks);
            }
        }
        // Somebody else makes room for something of his own again and again.
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        Err(self.missing(&wanted))
    }

    /// Whether a file is here with the length that the hub says.
    fn is_here(&self, file: &str) -> bool {
        let there = fs::metadata(self.directory.join(file));
        there.is_ok_and(|there| there.is_file() && self.size(file).is_none_or(|size| size == there.len()))
    }

    fn missing(&self, files: &[&str]) -> HubError {
        HubError::Offline {
            name: self.name.to_string(),
            missing: files.join(", "),
            several: files.len() > 1,
            cache: self.hub.cache.clone(),
        }
    }
}
