//! One content: fetched, gone on with after an interruption, and checked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::cache::{Folder, make_parent};
use crate::checked::Checked;
use crate::error::HubError;
use crate::http::{Answer, Asked, Attempts, Http, Trouble, cut, text};
use crate::nearby::Nearby;
use crate::progress::Progress;
use crate::reference::ModelName;

mod check;
mod others;

use check::Check;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 18;
/// Time between two looks whether another process has done the work.
const OTHERS: Duration = Duration::from_millis(200);

/// A content that is wanted.
#[derive(Debug)]
pub(crate) struct Content<'a> {
    pub(crate) name: &'a ModelName,
    pub(crate) commit: &'a str,
    pub(crate) file: &'a str,
    /// What it is called in the cache.
    pub(crate) etag: &'a str,
    pub(crate) size: Option<u64>,
}

/// What all downloads of a request share.
pub(crate) struct Shared<'a> {
    pub(crate) http: &'a Http,
    pub(crate) folder: &'a Folder,
    /// Who is asked before the hub.
    pub(crate) nearby: Option<&'a dyn Nearby>,
    /// Contents that have their hashes.
    pub(crate) checked: &'a Checked,
    /// Bytes that are here, of all files.
    pub(crate) done: &'a AtomicU64,
    /// Bytes that came from others than the hub, in this process.
    pub(crate) given: &'a AtomicU64,
    /// Set once one of them has failed.
    pub(crate) stop: &'a AtomicBool,
    /// Shows bytes that came.
    pub(crate) shown: &'a (dyn Fn() + Sync),
    /// Tells what else happens.
    pub(crate) tells: &'a (dyn Fn(&Progress) + Sync),
    /// Shows why nothing comes.
    pub(crate) waits: &'a (dyn Fn(String, Duration) + Sync),
}

/// What has come of a content.
struct Partial {
    path: PathBuf,
    file: File,
    length: u64,
    check: Check,
    /// Others than the hub who gave bytes of it, in this process, and how many.
    givers: Vec<(String, u64)>,
}

impl Shared<'_> {
    /// Fetches a content, unless it is there or another process fetches it meanwhile.
    pub(crate) fn fetch(&self, content: &Content<'_>) -> Result<(), HubError> {
        let blob = self.folder.blob(content.etag);
        make_parent(&blob)?;
        let mut told = false;
        let _lock = loop {
            match self.folder.lock(content.etag)? {
                Some(lock) => break lock,
                None if self.stop.load(Ordering::Relaxed) => return Err(HubError::GivenUp),
                None => {
                    if !std::mem::replace(&mut told, true) {
                        (self.waits)(format!("another process fetches {}", content.file), OTHERS);
                    }
                    std::thread::sleep(OTHERS);
                }
            }
        };
        match fs::metadata(&blob) {
            Ok(there) if content.size.is_none_or(|size| there.len() == size) => {
                self.add(there.len());
                return Ok(());
            }
            // Not what its name says.
            Ok(_) => fs::remove_file(&blob).map_err(HubError::cache("remove", &blob))?,
            Err(_) => {}
        }
        let (mut damaged, mut nearby) = (false, self.nearby);
        loop {
            let mut partial = self.begin(content)?;
            if let Some(nearby) = nearby {
                self.take(content, &mut partial, nearby)?;
            }
            self.complete(content, &mut partial)?;
            let Partial { path, file, length, check, givers } = partial;
            let is_known = !matches!(check, Check::None);
            match check.finish(content.etag) {
                None => {
                    let kept = file.sync_all().and_then(|()| fs::rename(&path, &blob));
                    kept.map_err(|error| self.full(content, &path, length, error, "write"))?;
                    if is_known {
                        self.checked.note(&blob, true);
                    }
                    return Ok(());
                }
                Some(what) => {
                    drop(file);
                    fs::remove_file(&path).map_err(HubError::cache("remove", &path))?;
                    self.done.fetch_sub(length, Ordering::Relaxed);
                    // From here on the hub alone is asked. Bytes of others say nothing of the way to it.
                    if !self.blame(content, givers, nearby.take(), &what) && std::mem::replace(&mut damaged, true) {
                        return Err(HubError::Corrupt {
                            name: content.name.to_string(),
                            file: content.file.to_owned(),
                            what,
                        });
                    }
                    tracing::warn!(
                        "{} of {} has {what}: it is fetched again from its start",
                        content.file,
                        content.name
                    );
                }
            }
        }
    }

    /// Opens what has come of a content, and hashes it.
    fn begin(&self, content: &Content<'_>) -> Result<Partial, HubError> {
        let path = self.folder.incomplete(content.etag);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(HubError::cache("write", &path))?;
        let mut partial =
            Partial { path, file, length: 0, check: Check::new(content.etag, content.size), givers: Vec::new() };
        let there = partial.file.metadata().map_or(0, |of| of.len());
        if content.size.is_some_and(|size| there > size) {
            partial.restart(content).map_err(HubError::cache("write", &partial.path))?;
        }
        let read = partial.read_again(there.min(content.size.unwrap_or(there)), self.stop);
        read.map_err(HubError::cache("read", &partial.path))?;
        self.add(partial.length);
        Ok(partial)
    }

    /// Asks for what is missing until nothing is.
    fn complete(&self, content: &Content<'_>, partial: &mut Partial) -> Result<(), HubError> {
        let url = self.http.file_url(content.name, content.commit, content.file);
        let asked = Asked { name: content.name, file: Some(content.file) };
        let mut attempts = Attempts::new(self.http.patience, self.stop);
        // Without a length only the end of an answer says that all has come.
        while content.size != Some(partial.length) {
            let range = (partial.length > 0).then(|| format!("bytes={}-", partial.length));
            let came = match self.http.get(asked, &url, range.as_deref()) {
                Ok(answer) => {
                    let before = partial.length;
                    let came = self.receive(content, partial, answer);
                    if partial.length > before {
                        attempts.succeeded();
                    }
                    came
                }
                Err(trouble) => Err(Failure::Trouble(trouble)),
            };
            match came {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) | Err(Failure::Trouble(Trouble::Lasting(error))) => return Err(error),
                Err(Failure::Trouble(Trouble::Passing { error, wait })) => attempts.wait(error, wait, self.waits)?,
                Err(Failure::Trouble(Trouble::Beyond)) => {
                    self.restart(content, partial)?;
                    let error =
                        HubError::Nonsense { url: url.clone(), what: "416 to what is missing of a file".to_owned() };
                    attempts.wait(error, Some(Duration::ZERO), self.waits)?;
                }
            }
        }
        Ok(())
    }

    /// Takes the bytes of an answer.
    fn receive(&self, content: &Content<'_>, partial: &mut Partial, answer: Answer) -> Result<(), Failure> {
        let Answer { status, headers, body, url } = answer;
        let (start, whole) = match text(&headers, "content-range").as_deref().and_then(content_range) {
            Some((start, whole)) if status == 206 => (start, whole),
            _ => (0, text(&headers, "content-length").and_then(|length| length.parse().ok())),
        };
        let expected = content.size.or(whole);
        if content.size.zip(whole).is_some_and(|(size, whole)| size != whole) {
            let what = format!(
                "that {} has {} bytes, and before {}",
                content.file,
                whole.unwrap_or(0),
                content.size.unwrap_or(0)
            );
            return Err(Failure::Final(HubError::Nonsense { url, what }));
        }
        if start != partial.length {
            if start != 0 {
                return Err(Failure::Trouble(cut(&url, "it sends other bytes than were asked for")));
            }
            // Whoever does not know ranges sends all of it again.
            self.restart(content, partial).map_err(Failure::Final)?;
        }
        match self.pour(content, partial, &mut body.into_reader(), expected) {
            Ok(()) if expected.is_some_and(|size| partial.length < size) => {
                Err(Failure::Trouble(cut(&url, "the connection ended too early")))
            }
            Ok(()) => Ok(()),
            Err(Poured::Final(error)) => Err(Failure::Final(error)),
            Err(Poured::Read(error)) => Err(Failure::Trouble(cut(&url, error.to_string()))),
            Err(Poured::TooMany) => {
                let what = format!("more bytes of {} than it has", content.file);
                Err(Failure::Final(HubError::Nonsense { url, what }))
            }
        }
    }

    /// Adds bytes to what has come, up to their end.
    fn pour(
        &self,
        content: &Content<'_>,
        partial: &mut Partial,
        bytes: &mut dyn Read,
        expected: Option<u64>,
    ) -> Result<(), Poured> {
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Poured::Final(HubError::GivenUp));
            }
            let count = match bytes.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Poured::Read(error)),
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            if expected.is_some_and(|size| partial.length + count as u64 > size) {
                return Err(Poured::TooMany);
            }
            let written = partial.file.write_all(bytes);
            written
                .map_err(|error| Poured::Final(self.full(content, &partial.path, partial.length, error, "write")))?;
            partial.length += count as u64;
            partial.check.update(bytes);
            self.add(count as u64);
        }
    }

    fn restart(&self, content: &Content<'_>, partial: &mut Partial) -> Result<(), HubError> {
        self.done.fetch_sub(partial.length, Ordering::Relaxed);
        partial.restart(content).map_err(HubError::cache("write", &partial.path))
    }

    fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        (self.shown)();
    }

    fn full(
        &self,
        content: &Content<'_>,
        path: &std::path::Path,
        length: u64,
        error: io::Error,
        what: &'static str,
    ) -> HubError {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => HubError::DiskFull {
                path: path.to_owned(),
                file: content.file.to_owned(),
                left: content.size.unwrap_or(length).saturating_sub(length),
            },
            _ => HubError::Cache { what, path: path.to_owned(), source: error },
        }
    }
}

/// Why the bytes of an answer are not all.
enum Failure {
    Trouble(Trouble),
    Final(HubError),
}

/// Why bytes were not poured to their end.
enum Poured {
    Read(io::Error),
    TooMany,
    Final(HubError),
}

impl Partial {
    fn restart(&mut self, content: &Content<'_>) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.length, self.check) = (0, Check::new(content.etag, content.size));
        self.givers.clear();
        Ok(())
    }

    /// Hashes the first `length` bytes that are there, which is where the rest goes on.
    fn read_again(&mut self, length: u64, stop: &AtomicBool) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        self.file.seek(SeekFrom::Start(0))?;
        while self.length < length && !stop.load(Ordering::Relaxed) {
            let most = usize::try_from(length - self.length).unwrap_or(CHUNK).min(CHUNK);
            let count = self.file.read(buffer.get_mut(..most).unwrap_or_default())?;
            if count == 0 {
                break;
            }
            self.check.update(buffer.get(..count).unwrap_or_default());
            self.length += count as u64;
        }
        self.file
            .set_len(self.length)
            .or_else(|error| if error.kind() == ErrorKind::InvalidInput { Ok(()) } else { Err(error) })?;
        self.file.seek(SeekFrom::Start(self.length)).map(drop)
    }
}

/// Where the bytes of an answer begin, and how many the whole has: `bytes 5-9/10`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, whole) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, whole.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_say_where_they_begin() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 0-9/*"), Some((0, None)));
        assert_eq!(content_range("items 0-9/10"), None);
    }
}
