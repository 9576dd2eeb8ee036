//! Versions of what is said on a block stream, and which of them two nodes have in common.
//!
//! Who opens a stream offers every version that it speaks, the newest first, as names of libp2p protocols; who accepts it picks the first
//! that it speaks too. So nodes of two versions that follow each other work together while a swarm is upgraded, in the older of the two.
//!
//! A version differs from the one before it by additions alone for as long as both are spoken: messages of the older one have the same
//! bytes in the newer one, and what was added is not said to a peer with which the older one was agreed on. A change that is no addition
//! leaves every earlier version behind, and with it their rows in [`WireVersion::SPOKEN`].

use std::fmt;

/// What the names of the protocols begin with; the number of the version follows.
const PROTOCOL: &str = "/petals-rs/blocks/";

/// A version of the messages on block streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireVersion(u16);

impl WireVersion {
    /// Passes, chains and sessions.
    pub const PASSES: Self = Self(3);
    /// Adds [`crate::Request::KeysValues`].
    pub const KEYS_VALUES: Self = Self(4);
    /// Those that this version of the software speaks, the newest first.
    pub const SPOKEN: [Self; 2] = [Self::KEYS_VALUES, Self::PASSES];

    /// The name of the libp2p protocol.
    pub fn protocol(self) -> String {
        format!("{PROTOCOL}{}", self.0)
    }

    /// The version that a protocol's name stands for, if it is one of block streams, spoken here or not.
    pub fn of_protocol(name: &str) -> Option<Self> {
        name.strip_prefix(PROTOCOL)?.parse().ok().map(Self)
    }

    /// Versions in a sentence: `3`, `3 and 4`, `2, 3 and 4`.
    pub fn list(versions: &[Self]) -> String {
        let mut numbers: Vec<u16> = versions.iter().map(|version| version.0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        match numbers.split_last() {
            None => "none".to_owned(),
            Some((last, [])) => last.to_string(),
            Some((last, others)) => {
                let others: Vec<String> = others.iter().map(u16::to_string).collect();
                format!("{} and {last}", others.join(", "))
            }
        }
    }
}

impl fmt::Display for WireVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_named_and_read_back() {
        for version in WireVersion::SPOKEN {
            assert_eq!(WireVersion::of_protocol(&version.protocol()), Some(version));
        }
        assert_eq!(
            WireVersion::of_protocol("/petals-rs/blocks/17").map(|version| version.to_string()),
            Some("17".into())
        );
        for other in ["/petals-rs/blocks/", "/petals-rs/blocks/x", "/petals-rs/blocks/70000", "/petals-rs/kad/1", ""] {
            assert_eq!(WireVersion::of_protocol(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_is_offered_first_and_lists_are_sentences() {
        assert!(WireVersion::SPOKEN.is_sorted_by(|newer, older| newer > older));
        assert_eq!(WireVersion::list(&WireVersion::SPOKEN), "3 and 4");
        assert_eq!(WireVersion::list(&[WireVersion(4), WireVersion(2), WireVersion(3), WireVersion(2)]), "2, 3 and 4");
        assert_eq!((WireVersion::list(&[]), WireVersion::list(&[WireVersion(9)])), ("none".into(), "9".into()));
    }
}
