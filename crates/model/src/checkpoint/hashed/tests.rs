use super::*;
use crate::device::{Device, Dtype};
use crate::fixture;

fn hashes(path: &Path) -> Vec<WeightsHash> {
    let checkpoint = Checkpoint::open(path).unwrap();
    checkpoint.weights_of(checkpoint.blocks()).unwrap()
}

/// The place of a block's tensor in the only file of a model.
fn change_a_value(dir: &fixture::Dir, tensor: &str) {
    let path = dir.path().join("model.safetensors");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let (_, _, range) = checkpoint.index.raw(tensor).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[range.start] ^= 1;
    // Mapped files are replaced, not written to.
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_block_is_told_from_another_copy_by_one_bit_and_not_by_its_files() {
    let dir = fixture::single();
    let before = hashes(dir.path());
    assert_eq!(before.len(), 3);
    assert!(before[0] != before[1] && before[1] != before[2], "{before:?}");
    assert_eq!(hashes(fixture::single().path()), before, "the same weights elsewhere");
    change_a_value(&dir, "model.layers.1.mlp.up_proj.weight");
    let after = hashes(dir.path());
    assert_eq!([after[0], after[2]], [before[0], before[2]]);
    assert_ne!(after[1], before[1]);
    change_a_value(&dir, "model.layers.1.mlp.up_proj.weight");
    change_a_value(&dir, "lm_head.weight");
    assert_eq!(hashes(dir.path()), before, "the head is no block");
}

#[test]
fn hashes_are_read_back_until_the_files_change() {
    let (dir, kept) = (fixture::single(), tempfile::tempdir().unwrap());
    let open = || Checkpoint::open(dir.path()).unwrap().with_cache_in(kept.path().to_owned());
    let all = open().blocks();
    let before = open().weights_of(all).unwrap();
    let files = || fs::read_dir(kept.path().join("hashes")).unwrap().map(|file| file.unwrap().path());
    assert_eq!(files().count(), 3);
    // What is kept is what is told: nobody reads a gigabyte twice.
    let marked: WeightsHash = "0123456789abcdef01234567".parse().unwrap();
    files().for_each(|path| fs::write(path, marked.to_string()).unwrap());
    assert_eq!(open().weights_of(all).unwrap(), [marked; 3]);
    files().for_each(|path| fs::write(path, "nonsense").unwrap());
    assert_eq!(open().weights_of(all).unwrap(), before);
    std::thread::sleep(std::time::Duration::from_millis(20));
    change_a_value(&dir, "model.layers.0.mlp.up_proj.weight");
    assert_ne!(open().weights_of(all).unwrap()[0], before[0]);
}

#[test]
fn blocks_that_are_loaded_are_hashed_on_the_way() {
    let dir = fixture::single();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let span = Span::new(1, 3).unwrap();
    checkpoint.load_span(span, &Device::cpu(), Dtype::F32).unwrap();
    let known = [checkpoint.hashes.known(0), checkpoint.hashes.known(1), checkpoint.hashes.known(2)];
    assert_eq!(known, [None, Some(hashes(dir.path())[1]), Some(hashes(dir.path())[2])]);
    let beyond = checkpoint.weights_of(Span::new(2, 4).unwrap());
    assert!(matches!(beyond, Err(CheckpointError::Span { .. })));
}
