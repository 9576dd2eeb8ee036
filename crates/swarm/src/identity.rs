//! A node's key: who it is, and what its records are signed with.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libp2p::PeerId;
use libp2p::identity::{DecodingError, KeyType, Keypair};

/// An encoded ed25519 key has 68 bytes; anything much longer is another file.
const MAX_KEY_FILE_LEN: u64 = 1024;

/// A node's ed25519 key pair.
#[derive(Clone)]
pub struct Identity {
    keypair: Keypair,
    /// The key file, locked as long as the identity is in use.
    lock: Option<Arc<File>>,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file exists, but cannot be read.
    #[error("cannot read the identity file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There was no file and none could be made.
    #[error("cannot create the identity file {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Someone other than the owner may read or write the file.
    #[error("the identity file {path} has mode {mode:03o}: others can read the key; run `chmod 600` on it")]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another node on this machine has the identity.
    #[error(
        "the identity file {path} is in use by another node on this machine, and two nodes under one identity overwrite each other's \
         announcements: stop the other one, or give this one an --identity of its own"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{path} is not an identity file: give another path, or delete it to get a new identity")]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What the decoder says, if it got that far.
        source: Option<DecodingError>,
    },
}

impl Identity {
    /// A fresh key that is kept nowhere: for clients and tests.
    pub fn generate() -> Self {
        Self { keypair: Keypair::generate_ed25519(), lock: None }
    }

    /// Reads the key in `path` (libp2p's protobuf encoding of a key pair), or creates the file, readable by its owner
    /// only. Of two processes that create it at the same time both end up with the same key.
    ///
    /// # Errors
    /// [`IdentityError`] if the file cannot be read or made, is readable by others, or is not an ed25519 key.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let path = path.as_ref();
        match File::open(path) {
            Ok(file) => Self::read(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(path),
            Err(source) => Err(IdentityError::Read { path: path.into(), source }),
        }
    }

    /// As [`Self::load_or_create`], for one node alone: as long as this or a clone of it lives, no other process of this machine gets
    /// the key this way. Where files cannot be locked, as on some network file systems, nobody is held off.
    ///
    /// # Errors
    /// As [`Self::load_or_create`], and [`IdentityError::InUse`].
    pub fn load_or_create_locked(path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let path = path.as_ref();
        let identity = Self::load_or_create(path)?;
        let file = File::open(path).map_err(|source| IdentityError::Read { path: path.into(), source })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { lock: Some(Arc::new(file)), ..identity }),
            Err(TryLockError::WouldBlock) => Err(IdentityError::InUse { path: path.into() }),
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, "the identity file cannot be locked");
                Ok(identity)
            }
        }
    }

    /// Whether no other process of this machine can have the key at the same time.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// The public name of this node.
    pub fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    pub(crate) fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    fn read(path: &Path, file: File) -> Result<Self, IdentityError> {
        let unreadable = |source| IdentityError::Read { path: path.into(), source };
        check_permissions(path, &file.metadata().map_err(unreadable)?)?;
        let mut bytes = Vec::new();
        file.take(MAX_KEY_FILE_LEN + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_KEY_FILE_LEN {
            return Err(IdentityError::NotAKey { path: path.into(), source: None });
        }
        let keypair = Keypair::from_protobuf_encoding(&bytes)
            .map_err(|error| IdentityError::NotAKey { path: path.into(), source: Some(error) })?;
        if keypair.key_type() != KeyType::Ed25519 {
            return Err(IdentityError::NotAKey { path: path.into(), source: None });
        }
        Ok(Self { keypair, lock: None })
    }

    fn create(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::Write { path: path.into(), source };
        let identity = Self::generate();
        let bytes = identity.keypair.to_protobuf_encoding().map_err(|error| failed(io::Error::other(error)))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        fs::create_dir_all(folder).map_err(failed)?;
        // A temporary file has mode 0600 from its first moment, and is given its name only when it is complete.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        match file.persist_noclobber(path) {
            Ok(_) => Ok(identity),
            // Another process was faster: its key is the one that stays.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                let file = File::open(path).map_err(|source| IdentityError::Read { path: path.into(), source })?;
                Self::read(path, file)
            }
            Err(error) => Err(failed(error.error)),
        }
    }
}

impl std::fmt::Debug for Identity {
    /// Shows the public half only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.peer_id()).finish()
    }
}

#[cfg(unix)]
fn check_permissions(path: &Path, metadata: &fs::Metadata) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt;
    match metadata.permissions().mode() & 0o777 {
        mode if mode & 0o077 != 0 => Err(IdentityError::Permissions { path: path.into(), mode }),
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
fn check_permissions(_: &Path, _: &fs::Metadata) -> Result<(), IdentityError> {
    Ok(())
}

#[cfg(test)]
mod tests;
