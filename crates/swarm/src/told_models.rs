//! The models that a member of the hash table tells others of, on the wire.

use std::collections::BTreeMap;

use petals_protocol::ModelId;

use crate::keys::MAX_BLOCKS;

/// Models that one member tells of.
const MOST_TOLD: usize = 64;

/// Models as one member tells them: a line for each, its id and its number of blocks.
pub(crate) fn written_models<'a>(models: impl Iterator<Item = (&'a ModelId, u32)>) -> Vec<u8> {
    let mut known: BTreeMap<&ModelId, u32> = BTreeMap::new();
    for (model, blocks) in models {
        let most = known.entry(model).or_default();
        *most = blocks.max(*most);
    }
    let lines = known.into_iter().take(MOST_TOLD).map(|(model, blocks)| format!("{model} {blocks}\n"));
    lines.collect::<String>().into_bytes()
}

/// What a stranger tells; what is no model is left out.
pub(crate) fn read_models(bytes: &[u8]) -> Vec<(ModelId, u32)> {
    let text = String::from_utf8_lossy(bytes);
    let parse = |line: &str| {
        let (model, blocks) = line.split_once(' ')?;
        Some((model.parse().ok()?, blocks.parse().ok().filter(|blocks| (1..=MAX_BLOCKS).contains(blocks))?))
    };
    text.lines().take(MOST_TOLD).filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_and_nonsense_is_left_out() {
        let (one, two): (ModelId, ModelId) =
            ("a@0000000000000001".parse().unwrap(), "org/b@0000000000000002".parse().unwrap());
        let told = written_models([(&one, 4), (&two, 8), (&one, 6)].into_iter());
        assert_eq!(read_models(&told), [(one.clone(), 6), (two, 8)]);
        let lies =
            b"\x1b[2J@0000000000000001 4\na@0000000000000001 0\na@0000000000000001 99999\n\xff\na@0000000000000001 7";
        assert_eq!(read_models(lies), [(one, 7)]);
        let many: Vec<ModelId> = (0..100).map(|n| format!("m{n}@0000000000000001").parse().unwrap()).collect();
        let told = written_models(many.iter().map(|model| (model, 1)));
        assert_eq!(read_models(&told).len(), MOST_TOLD);
        assert!(told.len() < 16 * 1024, "it fits into a packet");
    }
}
