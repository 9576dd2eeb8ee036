//! What a hub has.

use std::collections::BTreeMap;
use std::path::Path;

use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// A file of a revision.
#[derive(Debug, Clone)]
pub struct File {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Git's name of it, or of its pointer where the bytes are in the store.
    pub blob: String,
    /// The SHA-256 of its bytes, if they are in the store.
    pub lfs: Option<String>,
}

/// Revisions of a model.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    /// Commits of branches and tags.
    pub revisions: BTreeMap<String, String>,
    /// Files of commits.
    pub commits: BTreeMap<String, BTreeMap<String, File>>,
    /// Whether its files are only for those who were let in.
    pub gated: bool,
}

impl File {
    fn new(name: &str, bytes: Vec<u8>) -> Self {
        let git = |bytes: &[u8]| {
            let mut hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
            hash.update(bytes);
            hex(&hash.finalize())
        };
        if !name.ends_with(".safetensors") && !name.ends_with(".gguf") {
            return Self { blob: git(&bytes), bytes, lfs: None };
        }
        let oid = hex(&Sha256::digest(&bytes));
        let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n", bytes.len());
        Self { blob: git(pointer.as_bytes()), bytes, lfs: Some(oid) }
    }

    /// What the hub calls it in `ETag` or `X-Linked-ETag`, and the cache too.
    pub fn etag(&self) -> &str {
        self.lfs.as_deref().unwrap_or(&self.blob)
    }
}

impl Repository {
    /// Adds a revision; returns its commit.
    pub(super) fn add(&mut self, revision: &str, files: BTreeMap<String, File>) -> String {
        let mut hash = Sha1::new();
        for (name, file) in &files {
            hash.update(format!("{name} {}\n", file.blob));
        }
        let commit = hex(&hash.finalize());
        self.revisions.insert(revision.to_owned(), commit.clone());
        self.commits.insert(commit.clone(), files);
        commit
    }

    /// The commit of a revision, and its files.
    pub(super) fn find(&self, revision: &str) -> Option<(&String, &BTreeMap<String, File>)> {
        let commit = self.revisions.get(revision).map_or(revision, String::as_str);
        self.commits.get_key_value(commit)
    }

    /// A content by its name in the store.
    pub(super) fn stored(&self, oid: &str) -> Option<(&String, &File)> {
        self.commits.values().flatten().find(|(_, file)| file.lfs.as_deref() == Some(oid))
    }
}

/// All files of a directory.
pub(super) fn read(directory: &Path) -> anyhow::Result<BTreeMap<String, File>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![(directory.to_owned(), String::new())];
    while let Some((folder, before)) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = format!("{before}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                folders.push((entry.path(), format!("{name}/")));
            } else {
                files.insert(name.clone(), File::new(&name, std::fs::read(entry.path())?));
            }
        }
    }
    Ok(files)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
