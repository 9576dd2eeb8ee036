//! The key of a private swarm: whoever does not have it cannot even say hello.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER_PERMISSIVE;
use libp2p::identity::ed25519;
use libp2p::pnet::PreSharedKey;

/// A key file has 95 bytes; anything much longer is another file.
const MAX_FILE_LEN: u64 = 1024;

/// A pre-shared key, in the file format of other libp2p programs (`/key/swarm/psk/1.0.0/`).
#[derive(Clone, Copy)]
pub struct SwarmKey([u8; 32]);

/// Why there is no swarm key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwarmKeyError {
    /// The file cannot be read.
    #[error("cannot read the swarm key {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be made.
    #[error("cannot create the swarm key {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{0} is not a swarm key: it has the lines /key/swarm/psk/1.0.0/, /base16/ and 64 hexadecimal digits; make one with \
         `petals-node keygen --swarm-key FILE`"
    )]
    NotAKey(PathBuf),
    /// Others of this machine may read the file.
    #[error(
        "the swarm key {path} can be read by everybody on this machine (mode {mode:o}): make it private with `chmod o-rwx`"
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

impl SwarmKey {
    /// A fresh key.
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        // An ed25519 secret is nothing but 32 random bytes.
        bytes.copy_from_slice(ed25519::SecretKey::generate().as_ref());
        Self(bytes)
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`SwarmKeyError`] if it cannot be read, is no key, or can be read by everybody on this machine.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, SwarmKeyError> {
        let path = path.as_ref();
        let unreadable = |source| SwarmKeyError::Read { path: path.into(), source };
        let mut text = String::new();
        let file = fs::File::open(path).map_err(unreadable)?;
        let mode = mode(&file.metadata().map_err(unreadable)?);
        match file.take(MAX_FILE_LEN).read_to_string(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(SwarmKeyError::NotAKey(path.into()));
            }
            Err(error) => return Err(unreadable(error)),
        }
        // The parser slices what it is given at fixed bytes.
        if !text.is_ascii() {
            return Err(SwarmKeyError::NotAKey(path.into()));
        }
        let not_a_key = || SwarmKeyError::NotAKey(path.into());
        let key: PreSharedKey = text.parse().map_err(|_| not_a_key())?;
        // The type shows its bytes in the file's format alone.
        let file = key.to_key_file();
        let digits = file.lines().nth(2).unwrap_or_default();
        let bytes = HEXLOWER_PERMISSIVE.decode(digits.trim().as_bytes()).map_err(|_| not_a_key())?;
        let key = Self(bytes.try_into().map_err(|_| not_a_key())?);
        // A group may be meant to have it, such as that of a service.
        if mode & 0o007 != 0 {
            return Err(SwarmKeyError::Permissions { path: path.into(), mode });
        }
        Ok(key)
    }

    /// Writes a key file that only its owner can read. Never overwrites one.
    ///
    /// # Errors
    /// [`SwarmKeyError::Write`], also if the file exists.
    pub fn create(&self, path: impl AsRef<Path>) -> Result<(), SwarmKeyError> {
        let path = path.as_ref();
        let failed = |source| SwarmKeyError::Write { path: path.into(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        // Mode 0600 from its first moment.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(self.pre_shared().to_key_file().as_bytes())
            .and_then(|()| file.as_file().sync_all())
            .map_err(failed)?;
        file.persist_noclobber(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// What tells keys apart without giving them away.
    pub fn fingerprint(&self) -> String {
        self.pre_shared().fingerprint().to_string()
    }

    pub(crate) fn pre_shared(&self) -> PreSharedKey {
        PreSharedKey::new(self.0)
    }
}

impl std::fmt::Debug for SwarmKey {
    /// Shows the fingerprint only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SwarmKey").field(&self.fingerprint()).finish()
    }
}

#[cfg(unix)]
fn mode(metadata: &fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o777
}

#[cfg(not(unix))]
fn mode(_: &fs::Metadata) -> u32 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/swarm.key");
        let key = SwarmKey::generate();
        key.create(&path).unwrap();
        assert_eq!(SwarmKey::load(&path).unwrap().fingerprint(), key.fingerprint());
        assert!(fs::read_to_string(&path).unwrap().starts_with("/key/swarm/psk/1.0.0/\n/base16/\n"));
        assert_ne!(SwarmKey::generate().fingerprint(), key.fingerprint());
        assert!(matches!(key.create(&path), Err(SwarmKeyError::Write { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            for (mode, taken) in [(0o640, true), (0o644, false), (0o604, false), (0o600, true)] {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                let loaded = SwarmKey::load(&path);
                assert_eq!(loaded.is_ok(), taken, "{mode:o}: {loaded:?}");
                assert!(taken || loaded.unwrap_err().to_string().contains("chmod o-rwx"));
            }
        }
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let umlauts = format!("/key/swarm/psk/1.0.0/\n/base16/\n{}", "aä".repeat(32));
        for text in ["", "/key/swarm/psk/1.0.0/\n/base16/\nabc", "/key/swarm/psk/1.0.0/\n/base64/\n", &umlauts, "\u{0}"]
        {
            fs::write(&path, text).unwrap();
            let error = SwarmKey::load(&path).unwrap_err();
            assert!(matches!(&error, SwarmKeyError::NotAKey(named) if *named == path), "{error}");
        }
        fs::write(&path, [0xff; 16]).unwrap();
        assert!(matches!(SwarmKey::load(&path), Err(SwarmKeyError::NotAKey(_))));
        assert!(matches!(SwarmKey::load(folder.path().join("y")), Err(SwarmKeyError::Read { .. })));
    }
}
