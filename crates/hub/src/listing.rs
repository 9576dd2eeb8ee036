//! What a revision of a repository has, as the hub tells it.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::HeaderMap;

use crate::error::HubError;
use crate::http::{Asked, Attempts, Http, Trouble, cut, text};
use crate::reference::{ModelName, is_commit, is_file_name};

/// Longest listing that is read. Those of the largest repositories have a few MB.
const MAX_LISTING: u64 = 64 << 20;
/// Longest name of a blob.
const MAX_ETAG: usize = 128;

/// A file of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its name in the repository.
    pub(crate) name: String,
    /// What it is called in the cache: the SHA-256 of large files, git's name of small ones. `None` if the hub did not tell.
    pub(crate) etag: Option<String>,
    /// Its length, if the hub told it.
    pub(crate) size: Option<u64>,
}

/// A revision.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: BTreeMap<String, Listed>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Asks the hub what a revision is and has, `attempts` times at most.
    pub(crate) fn ask(
        http: &Http,
        name: &ModelName,
        attempts: u32,
        mut say: impl FnMut(String, Duration),
    ) -> Result<Self, HubError> {
        let (url, never) = (http.listing_url(name), AtomicBool::new(false));
        let mut patience = http.patience;
        patience.attempts = patience.attempts.min(attempts);
        let mut attempts = Attempts::new(patience, &never);
        loop {
            match Self::ask_once(http, name, &url) {
                Ok(listing) => return Ok(listing),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing { error, wait }) => attempts.wait(error, wait, &mut say)?,
                Err(Trouble::Beyond) => {
                    return Err(HubError::Nonsense { url, what: "416 to a question without a range".to_owned() });
                }
            }
        }
    }

    fn ask_once(http: &Http, name: &ModelName, url: &str) -> Result<Self, Trouble> {
        let answer = http.get(Asked { name, file: None }, url, None)?;
        let nonsense = |what: String| Trouble::Lasting(HubError::Nonsense { url: url.to_owned(), what });
        let mut bytes = Vec::new();
        let read = answer.body.into_reader().take(MAX_LISTING + 1).read_to_end(&mut bytes);
        read.map_err(|error| cut(url, error.to_string()))?;
        if bytes.len() as u64 > MAX_LISTING {
            return Err(nonsense(format!("more than {MAX_LISTING} bytes")));
        }
        let info: Info =
            serde_json::from_slice(&bytes).map_err(|error| nonsense(format!("no list of files: {error}")))?;
        if !is_commit(&info.sha) {
            return Err(nonsense(format!("that its commit is `{}`", info.sha.escape_debug())));
        }
        let mut files = BTreeMap::new();
        for sibling in info.siblings {
            // Somebody's file that leads elsewhere is nothing that a model needs.
            if !is_file_name(&sibling.rfilename) {
                tracing::warn!("{name} has a file `{}`, which is passed over", sibling.rfilename.escape_debug());
                continue;
            }
            let listed = Listed::from(sibling);
            files.insert(listed.name.clone(), listed);
        }
        Ok(Self { commit: info.sha, files })
    }
}

impl From<Sibling> for Listed {
    fn from(sibling: Sibling) -> Self {
        let Sibling { rfilename, size, blob_id, lfs } = sibling;
        let (etag, size) = match lfs {
            Some(lfs) => (lfs.sha256, lfs.size.or(size)),
            None => (blob_id, size),
        };
        Self { name: rfilename, etag: etag.filter(|etag| is_etag(etag)), size }
    }
}

impl Listed {
    /// The same with what the headers of the file say, if the listing did not.
    pub(crate) fn completed(self, headers: &HeaderMap) -> Self {
        let linked = text(headers, "x-linked-etag");
        let etag = linked.clone().or_else(|| text(headers, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        // The length of a redirect is not that of the file.
        let size =
            text(headers, "x-linked-size").or_else(|| text(headers, "content-length").filter(|_| linked.is_none()));
        Self {
            etag: self.etag.or(etag.filter(|etag| is_etag(etag))),
            size: self.size.or(size.and_then(|size| size.parse().ok())),
            name: self.name,
        }
    }
}

/// Whether a blob may be called that: it becomes the name of a file.
fn is_etag(etag: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_ETAG).contains(&etag.len())
        && etag.bytes().all(plain)
        && !etag.starts_with('.')
        && !etag.ends_with(".incomplete")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(etag: Option<&str>, size: Option<u64>) -> Listed {
        Listed { name: "f".to_owned(), etag: etag.map(str::to_owned), size }
    }

    #[test]
    fn large_files_have_the_hash_of_lfs_and_small_ones_that_of_git() {
        let of = |json: serde_json::Value| Listed::from(serde_json::from_value::<Sibling>(json).unwrap());
        let small = of(serde_json::json!({"rfilename": "f", "blobId": "ab12", "size": 3}));
        assert_eq!(small, listed(Some("ab12"), Some(3)));
        let lfs = serde_json::json!({"sha256": "cd34", "size": 5, "pointerSize": 134});
        let large = of(serde_json::json!({"rfilename": "f", "blobId": "ab12", "size": 5, "lfs": lfs}));
        assert_eq!(large, listed(Some("cd34"), Some(5)));
        assert_eq!(of(serde_json::json!({"rfilename": "f"})), listed(None, None));
        assert_eq!(of(serde_json::json!({"rfilename": "f", "blobId": "../x"})), listed(None, None));
    }

    #[test]
    fn headers_tell_what_a_listing_does_not() {
        let completed = |headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            listed(None, None).completed(&headers)
        };
        let linked =
            [("etag", "\"1\""), ("x-linked-etag", "\"beef\""), ("x-linked-size", "9"), ("content-length", "120")];
        assert_eq!(completed(&linked), listed(Some("beef"), Some(9)));
        assert_eq!(completed(&[("etag", "W/\"cafe\""), ("content-length", "4")]), listed(Some("cafe"), Some(4)));
        assert_eq!(completed(&[("etag", "\"../../x\"")]), listed(None, None));
    }
}
