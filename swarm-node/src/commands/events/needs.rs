//! What `petals-node doctor` prints of a model.

use std::fmt;

use serde::Serialize;

use super::Check;

/// What a model needs of the machines that serve it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelNeeds {
    /// `model_type` of its configuration.
    pub family: String,
    /// Whose numbers the blocks of this family were compared with, if anybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked_against: Option<String>,
    /// Longest sequence, prompts included.
    pub max_positions: usize,
    /// What keys and values would be kept in.
    pub kv_dtype: String,
    /// Its blocks, kind by kind.
    pub kinds: Vec<BlockKind>,
    /// What fits here.
    pub fit: BlocksThatFit,
}

/// Blocks that need the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlockKind {
    /// How many there are.
    pub blocks: usize,
    /// Experts of a block, if it is a mixture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<usize>,
    /// Through how many of them a token goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts_used: Option<usize>,
    /// How far its attention reaches, if not to the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Weights of one block.
    pub weights: Vec<BlockBytes>,
    /// Keys and values of one token in one block, in bytes.
    pub cache_token_bytes: u64,
    /// Most that a sequence of the longest length has of them in one block, in bytes: with a window little more than that.
    pub cache_bytes: u64,
    /// What that would be without the window.
    pub cache_bytes_without_window: u64,
}

/// Weights of one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlockBytes {
    /// In this dtype.
    pub dtype: String,
    /// All of them, in bytes.
    pub bytes: u64,
    /// Those that a token is multiplied by, in bytes: less in a mixture.
    pub active_bytes: u64,
}

/// What `serve` would do with this machine's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlocksThatFit {
    /// Where the blocks would be.
    pub device: String,
    /// In which dtype.
    pub dtype: String,
    /// Blocks of the model.
    pub of: u64,
    /// How many fit.
    pub blocks: u64,
    /// How many would fit in dtypes of fewer bits, the widest first.
    pub blocks_in_less: Vec<(String, u64)>,
    /// Whether more can be served all the same, the experts' weights read from their files.
    pub experts_may_stay_in_files: bool,
    /// What a block takes on average, in bytes.
    pub block_bytes: u64,
    /// What weights may take, in bytes.
    pub weight_room: u64,
    /// Beside them for keys and values of sessions, in bytes.
    pub kv_bytes: u64,
    /// How many tokens these are at least, in all blocks that fit: more where windows save some.
    pub kv_tokens: u64,
    /// Beside them for what training leaves between forward and backward, in bytes.
    pub stash_bytes: u64,
    /// Beside them for one pass, in bytes.
    pub pass_bytes: u64,
    /// Beside them for requests and answers, in bytes.
    pub request_bytes: u64,
}

impl fmt::Display for ModelNeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, checked_against, max_positions, kv_dtype, kinds, .. } = self;
        let checked = match checked_against {
            Some(class) => Check::ok("family", format!("{family}, checked against {class}")),
            None => Check::warn(
                "family",
                format!("{family}, of which nobody noted what it was checked against"),
                "compare some logits of `petals-tune logits` with those of transformers",
            ),
        };
        writeln!(f, "{checked}")?;
        for kind in kinds {
            writeln!(f, "{}", Check::ok("blocks", kind.to_string()))?;
        }
        let of_all = |bytes: fn(&BlockKind) -> u64| -> u64 {
            kinds.iter().map(|kind| bytes(kind).saturating_mul(kind.blocks as u64)).fold(0, u64::saturating_add)
        };
        let (longest, without) = (of_all(|kind| kind.cache_bytes), of_all(|kind| kind.cache_bytes_without_window));
        let blocks: usize = kinds.iter().map(|kind| kind.blocks).sum();
        let token = kinds.first().map_or(0, |kind| kind.cache_token_bytes);
        let mut cache = format!(
            "{} for each token in each block, kept in {kv_dtype}; the longest text ({max_positions} tokens) takes {} in all {blocks}",
            size(token),
            size(longest)
        );
        if longest < without {
            cache.push_str(&format!(", for which windows save {}", size(without - longest)));
        }
        write!(f, "{}", Check::ok("cache", cache))
    }
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.blocks, by_dtype(&self.weights, |weights| weights.bytes))?;
        if let Some(window) = self.window {
            write!(f, ", with a window of {window} tokens")?;
        }
        if let (Some(experts), Some(used)) = (self.experts, self.experts_used) {
            let active = by_dtype(&self.weights, |weights| weights.active_bytes);
            write!(f, "; a token goes through {used} of {experts} experts, and meets {active}")?;
        }
        Ok(())
    }
}

/// Some bytes with their dtypes, those that are equal together: `1.00 GiB in f32, 0.50 GiB in bf16 or f16`.
fn by_dtype(weights: &[BlockBytes], bytes: impl Fn(&BlockBytes) -> u64) -> String {
    let groups = weights.chunk_by(|a, b| bytes(a) == bytes(b)).map(|group| {
        let dtypes: Vec<&str> = group.iter().map(|weights| weights.dtype.as_str()).collect();
        format!("{} in {}", size(bytes(&group[0])), dtypes.join(" or "))
    });
    groups.collect::<Vec<_>>().join(", ")
}

/// A number of bytes as people say it.
pub(crate) fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    let unit = |power: i32| bytes / f64::from(1 << power);
    if unit(30) >= 1.0 {
        format!("{:.2} GiB", unit(30))
    } else if unit(20) >= 1.0 {
        format!("{:.1} MiB", unit(20))
    } else {
        format!("{:.1} KiB", unit(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_the_unit_that_suits_them() {
        assert_eq!([size(1536), size(5 << 20), size(3 << 29)], ["1.5 KiB", "5.0 MiB", "1.50 GiB"]);
    }

    #[test]
    fn dtypes_of_one_size_are_told_together() {
        let weights = |dtype: &str, bytes| BlockBytes { dtype: dtype.into(), bytes, active_bytes: bytes };
        let all = [weights("f32", 2 << 20), weights("bf16", 1 << 20), weights("f16", 1 << 20)];
        assert_eq!(by_dtype(&all, |weights| weights.bytes), "2.0 MiB in f32, 1.0 MiB in bf16 or f16");
    }
}
