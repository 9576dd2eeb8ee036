//! Keys of the distributed hash table.

use libp2p::PeerId;
use libp2p::kad::RecordKey;
use petals_protocol::ModelId;
use sha2::{Digest, Sha256};

const BLOCK_PREFIX: &str = "/petals-rs/block/";
const SERVER_PREFIX: &str = "/petals-rs/server/";

/// What a multihash of SHA2-256 begins with: the code of the function and the length of its output.
const SHA2_256: [u8; 2] = [0x12, 32];

/// Blocks a model may have in the directory. The deepest published models have fewer than 200; the bound keeps one
/// server from filling other nodes' tables.
pub(crate) const MAX_BLOCKS: u32 = 1024;

/// The key whose providers are the servers of one block: the multihash of its name. Other libp2p implementations ask for
/// providers by content identifiers, which are multihashes with a type in front, so they can ask for blocks too.
pub(crate) fn block_key(model: &ModelId, block: u32) -> RecordKey {
    let digest = Sha256::digest(format!("{BLOCK_PREFIX}{model}/{block}"));
    RecordKey::from([&SHA2_256[..], &digest[..]].concat())
}

/// Whether this may be a [`block_key`].
pub(crate) fn is_block_key(key: &RecordKey) -> bool {
    let bytes = key.to_vec();
    bytes.len() == SHA2_256.len() + 32 && bytes.starts_with(&SHA2_256)
}

/// The key of what one server says of itself, a readable text.
pub(crate) fn server_key(model: &ModelId, peer: &PeerId) -> RecordKey {
    RecordKey::from(format!("{SERVER_PREFIX}{model}/{peer}").into_bytes())
}

/// The key under which every member of the hash table answers with its own time, see `clock.rs`.
pub(crate) fn clock_key() -> RecordKey {
    RecordKey::new(&"/petals-rs/clock")
}

/// The key under which every member of the hash table answers with the models that it has records of, see `models.rs`.
pub(crate) fn models_key() -> RecordKey {
    RecordKey::new(&"/petals-rs/models")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_keys_are_multihashes_of_names() {
        let model: ModelId = "org/demo@0000000000000001".parse().unwrap();
        let key = block_key(&model, 7);
        // printf /petals-rs/block/org/demo@0000000000000001/7 | sha256sum
        let expected = "066ab2246a7208f4e4588040d535171d14f541da6ddb152d7ffa59c5bbd5bae1";
        let hex: String = key.to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, format!("1220{expected}"));
        assert!(is_block_key(&key) && key != block_key(&model, 8));
        assert!(!is_block_key(&server_key(&model, &PeerId::random())) && !is_block_key(&RecordKey::new(&"")));
    }
}
