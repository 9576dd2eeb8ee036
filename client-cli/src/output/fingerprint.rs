//! Events of `petals-tune fingerprint`, whose lines for people are a file for `--weights`.

use std::collections::BTreeSet;
use std::fmt::{self, Display};

use petals_client::ModelId;
use serde::Serialize;

use super::{Event, short};

/// Peers that a line names.
const NAMED: usize = 4;

/// Whose weights they are.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Fingerprint {
    /// Model id.
    pub(crate) model: String,
}

/// What the weights of a block are.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BlockWeights {
    /// Which block.
    pub(crate) block: u32,
    /// The hash, if somebody says what it is.
    pub(crate) hash: Option<String>,
    /// Whether servers that have these would be used.
    pub(crate) used: bool,
    /// Who says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peers: Option<Vec<String>>,
    /// In which dtypes they compute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dtypes: Option<BTreeSet<String>>,
}

impl Fingerprint {
    /// Of a model.
    pub(crate) fn of(model: &ModelId) -> Self {
        Self { model: model.to_string() }
    }
}

impl Event for Fingerprint {
    const NAME: &'static str = "fingerprint";
}

impl Event for BlockWeights {
    const NAME: &'static str = "block_weights";
}

impl Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model {}", self.model)
    }
}

impl Display for BlockWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.hash.as_deref().unwrap_or("not told");
        if let Some(peers) = &self.peers {
            let named: Vec<String> = peers.iter().take(NAMED).map(|peer| short(peer)).collect();
            let more = if peers.len() > NAMED { ", …" } else { "" };
            let dtypes: Vec<&str> = self.dtypes.iter().flatten().map(String::as_str).collect();
            let unused = if self.used { "" } else { ", not used" };
            let (block, count) = (self.block, peers.len());
            let line =
                format!("# block {block}: {count} of {} ({}{more}){unused}", dtypes.join(", "), named.join(", "));
            if !self.used || self.hash.is_none() {
                return write!(f, "{line}: {told}");
            }
            writeln!(f, "{line}")?;
        }
        write!(f, "{} {told}", self.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_use_is_no_comment() {
        let peers = Some(vec!["12D3KooWabcdef".to_owned()]);
        let used = BlockWeights {
            block: 3,
            hash: Some("0123456789abcdef01234567".to_owned()),
            used: true,
            peers,
            dtypes: Some(["f32".to_owned()].into()),
        };
        let lines = used.to_string();
        assert_eq!(lines, "# block 3: 1 of f32 (…abcdef)\n3 0123456789abcdef01234567");
        let other = BlockWeights { used: false, ..used.clone() }.to_string();
        assert!(other.starts_with('#') && !other.contains('\n') && other.contains("not used"), "{other}");
        let silent = BlockWeights { hash: None, ..used }.to_string();
        assert!(silent.starts_with('#') && silent.ends_with("not told"), "{silent}");
    }
}
