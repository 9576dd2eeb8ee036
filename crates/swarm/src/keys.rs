//! Keys of the distributed hash table. They are readable texts: a store can tell what it is asked to keep.

use libp2p::PeerId;
use libp2p::kad::RecordKey;
use petals_protocol::ModelId;

const BLOCK_PREFIX: &str = "/petals-rs/block/";
const SERVER_PREFIX: &str = "/petals-rs/server/";

/// Blocks a model may have in the directory. The deepest published models have fewer than 200; the bound keeps one
/// server from filling other nodes' tables.
pub(crate) const MAX_BLOCKS: u32 = 1024;

/// The key whose providers are the servers of one block.
pub(crate) fn block_key(model: &ModelId, block: u32) -> RecordKey {
    RecordKey::from(format!("{BLOCK_PREFIX}{model}/{block}").into_bytes())
}

/// Reads a [`block_key`]; `None` for anything else.
pub(crate) fn parse_block_key(key: &RecordKey) -> Option<(ModelId, u32)> {
    let text = std::str::from_utf8(key.as_ref()).ok()?;
    let (model, block) = text.strip_prefix(BLOCK_PREFIX)?.rsplit_once('/')?;
    let (model, block) = (model.parse().ok()?, block.parse::<u32>().ok()?);
    // `+7` and `007` parse as well: one block must not have several keys.
    (block < MAX_BLOCKS && block_key(&model, block) == *key).then_some((model, block))
}

/// The key of what one server says of itself.
pub(crate) fn server_key(model: &ModelId, peer: &PeerId) -> RecordKey {
    RecordKey::from(format!("{SERVER_PREFIX}{model}/{peer}").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_block_keys_are_understood() {
        let model: ModelId = "org/demo@0000000000000001".parse().unwrap();
        assert_eq!(parse_block_key(&block_key(&model, 7)), Some((model.clone(), 7)));
        for wrong in ["/petals-rs/block/org/demo@0000000000000001/007", "/petals-rs/block/x/1", "anything", ""] {
            assert_eq!(parse_block_key(&RecordKey::new(&wrong)), None, "{wrong}");
        }
        assert_eq!(parse_block_key(&block_key(&model, MAX_BLOCKS)), None);
        assert_eq!(parse_block_key(&server_key(&model, &PeerId::random())), None);
    }
}
