//! The hash that a content must have.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The hash that a content must have.
pub(super) enum Check {
    /// Large files are called by their SHA-256.
    Sha256(Sha256),
    /// Small ones as git calls them: by the SHA-1 of their length and content. Without a length known before, at the end.
    Git(Sha1),
    /// The hub does not say.
    None,
}

impl Check {
    pub(super) fn new(etag: &str, size: Option<u64>) -> Self {
        let is_hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (etag.len(), size) {
            (64, _) if is_hex => Self::Sha256(Sha256::new()),
            (40, Some(size)) if is_hex => Self::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
            _ => Self::None,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
            Self::None => {}
        }
    }

    /// What differs, if anything does.
    pub(super) fn finish(self, etag: &str) -> Option<String> {
        let (kind, found) = match self {
            Self::Sha256(hash) => ("SHA-256", hex(&hash.finalize())),
            Self::Git(hash) => ("git's SHA-1", hex(&hash.finalize())),
            Self::None => return None,
        };
        (!found.eq_ignore_ascii_case(etag)).then(|| format!("{kind} {found} in place of {etag}"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_checked_by_the_name_that_the_hub_gives_them() {
        let check = |etag: &str, bytes: &[u8]| {
            let mut check = Check::new(etag, Some(bytes.len() as u64));
            check.update(bytes);
            check.finish(etag)
        };
        // printf hello | git hash-object --stdin; printf hello | sha256sum
        let git = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!((check(git, b"hello"), check(sha256, b"hello"), check("v1", b"hello")), (None, None, None));
        assert!(check(git, b"hellO").is_some_and(|what| what.contains(git)));
        assert!(check(sha256, b"hell").is_some_and(|what| what.contains("SHA-256")));
    }
}
