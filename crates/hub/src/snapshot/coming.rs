//! Files that are to come: room for them, and several of them at a time.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Snapshot;
use crate::disk::{Need, make_room};
use crate::download::{Content, Shared};
use crate::error::HubError;
use crate::http::{Asked, Attempts, Trouble};
use crate::listing::Listed;
use crate::progress::Progress;

/// Files that are fetched at a time.
const SIDE_BY_SIDE: usize = 4;
/// Time between two words about bytes that came.
const SHOWN: Duration = Duration::from_millis(250);

/// A file that is to come.
#[derive(Debug)]
struct Known {
    file: String,
    etag: String,
    size: Option<u64>,
}

impl Snapshot {
    /// Makes room for what is missing of `wanted` and fetches it.
    pub(super) fn download(&self, wanted: &BTreeSet<String>, missing: &[&str]) -> Result<(), HubError> {
        let Some(files) = &self.files else { return Err(self.missing(missing)) };
        let mut coming = Vec::new();
        for file in missing {
            let listed = files.get(*file).cloned().ok_or_else(|| HubError::NoFile {
                name: self.name.to_string(),
                file: (*file).to_owned(),
                page: self.hub.http.page(&self.name),
            })?;
            coming.push(self.known(listed)?);
        }
        let begun = |file: &&Known| fs::metadata(self.folder.incomplete(&file.etag)).map_or(0, |part| part.len());
        // Sizes are what a stranger says.
        let bytes = coming.iter().filter_map(|file| file.size).fold(0, u64::saturating_add);
        if let Some(most) = self.hub.most {
            let here = wanted.iter().filter_map(|file| self.directory.join(file).canonicalize().ok());
            let ours = |file: &Known| [self.folder.blob(&file.etag), self.folder.incomplete(&file.etag)];
            let stay: HashSet<PathBuf> = here.chain(coming.iter().flat_map(ours)).collect();
            let there: u64 = coming.iter().map(|file| begun(&file).min(file.size.unwrap_or(0))).sum();
            let model = self.name.to_string();
            let need = Need { model: &model, bytes: bytes.saturating_sub(there), stay: &stay };
            make_room(&self.hub.cache, most, &need, |progress| (self.hub.tell)(&progress))?;
        }
        self.download_all(&coming, bytes)
    }

    /// A file with what it is called in the cache, for which the hub is asked if it did not say so with the others.
    fn known(&self, listed: Listed) -> Result<Known, HubError> {
        let (http, never) = (&self.hub.http, AtomicBool::new(false));
        let url = http.file_url(&self.name, &self.commit, &listed.name);
        let mut listed = listed;
        if listed.etag.is_none() {
            let mut attempts = Attempts::new(http.patience, &never);
            let headers = loop {
                match http.head(Asked { name: &self.name, file: Some(&listed.name) }, &url) {
                    Ok(headers) => break headers,
                    Err(Trouble::Lasting(error)) => return Err(error),
                    Err(Trouble::Beyond) => return Err(HubError::Nonsense { url, what: "416 to a HEAD".to_owned() }),
                    Err(Trouble::Passing { error, wait }) => {
                        attempts.wait(error, wait, |reason, wait| self.hub.tell_wait(&self.name, reason, wait))?;
                    }
                }
            };
            listed = listed.completed(&headers);
        }
        let Listed { name, etag, size } = listed;
        match etag {
            Some(etag) => Ok(Known { file: name, etag, size }),
            None => Err(HubError::Nonsense { url, what: "nothing of what the file is called (ETag)".to_owned() }),
        }
    }

    fn download_all(&self, coming: &[Known], bytes: u64) -> Result<(), HubError> {
        let (started, model) = (Instant::now(), self.name.to_string());
        let (done, given) = (AtomicU64::new(0), AtomicU64::new(0));
        let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(0));
        let last = Mutex::new(None::<Instant>);
        let coming_now = || Progress::Coming {
            model: model.clone(),
            files: coming.len(),
            done_bytes: done.load(Ordering::Relaxed),
            bytes,
        };
        (self.hub.tell)(&coming_now());
        let shown = || {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_none_or(|last| last.elapsed() >= SHOWN) {
                *last = Some(Instant::now());
                (self.hub.tell)(&coming_now());
            }
        };
        let waits = |reason: String, wait: Duration| self.hub.tell_wait(&self.name, reason, wait);
        let shared = Shared {
            http: &self.hub.http,
            folder: &self.folder,
            nearby: self.hub.nearby.as_deref(),
            checked: &self.hub.checked,
            done: &done,
            given: &given,
            stop: &stop,
            shown: &shown,
            tells: &*self.hub.tell,
            waits: &waits,
        };
        let failure = Mutex::new(None::<HubError>);
        let work = || {
            while let Some(known) = coming.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Known { file, etag, size } = known;
                let content = Content { name: &self.name, commit: &self.commit, file, etag, size: *size };
                let fetched = shared.fetch(&content).and_then(|()| self.folder.link(&self.commit, file, etag));
                if let Err(error) = fetched {
                    // The first one is the one that counts: the others end because of it.
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| (0..coming.len().min(SIDE_BY_SIDE)).for_each(|_| drop(scope.spawn(work))));
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        (self.hub.tell)(&Progress::Done {
            model: model.clone(),
            commit: self.commit.clone(),
            files: coming.len(),
            bytes: done.load(Ordering::Relaxed),
            from_peers: given.load(Ordering::Relaxed),
            seconds: started.elapsed().as_secs_f64(),
        });
        Ok(())
    }
}
