//! Which files are needed, and files that come when they are asked for.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;

fn names(files: &[&str]) -> BTreeSet<String> {
    files.iter().map(|file| (*file).to_owned()).collect()
}

/// A model in shards of which none is here, and where they are.
fn elsewhere() -> (fixture::Dir, fixture::Dir) {
    let (here, there) = (tempfile::tempdir().unwrap(), fixture::sharded());
    for file in ["config.json", "model.safetensors.index.json"] {
        fs::copy(there.path().join(file), here.path().join(file)).unwrap();
    }
    (here, there)
}

#[test]
fn blocks_and_clients_need_the_files_of_their_own_tensors() {
    let (here, _there) = elsewhere();
    let checkpoint = Checkpoint::open(here.path()).unwrap();
    assert_eq!(checkpoint.span_files(span(0, 1)), names(&["shard-0.safetensors"]));
    assert_eq!(checkpoint.span_files(span(1, 3)), names(&["shard-1.safetensors", "shard-2.safetensors"]));
    assert_eq!(checkpoint.client_files(), names(&["shard-rest.safetensors"]));
    assert_eq!(checkpoint.all_files().len(), 4);
}

#[test]
fn names_may_be_stored_in_any_of_their_ways() {
    let files = |rename: fn(&str) -> String| {
        let (here, _there) = elsewhere();
        let path = here.path().join("model.safetensors.index.json");
        let index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let map = index["weight_map"].as_object().unwrap().iter();
        let map: serde_json::Map<_, _> = map.map(|(name, file)| (rename(name), file.clone())).collect();
        fs::write(&path, json!({"weight_map": map}).to_string()).unwrap();
        let checkpoint = Checkpoint::open(here.path()).unwrap();
        (checkpoint.span_files(span(1, 2)), checkpoint.client_files())
    };
    let expected = (names(&["shard-1.safetensors"]), names(&["shard-rest.safetensors"]));
    assert_eq!(files(|name| name.strip_prefix("model.").unwrap_or(name).to_owned()), expected);
    assert_eq!(files(|name| format!("language_model.{name}")), expected);
    assert_eq!(files(|name| name.replace("model.", "model.language_model.")), expected);
}

#[test]
fn a_tied_head_that_is_stored_twice_is_needed_once() {
    let (here, _there) = elsewhere();
    let mut config = fixture::config();
    config["tie_word_embeddings"] = json!(true);
    fs::write(here.path().join("config.json"), config.to_string()).unwrap();
    let map = json!({"model.embed_tokens.weight": "a.safetensors", "model.norm.weight": "b.safetensors", "lm_head.weight": "c.safetensors"});
    let index = here.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(Checkpoint::open(here.path()).unwrap().client_files(), names(&["a.safetensors", "b.safetensors"]));
    let map = json!({"model.norm.weight": "b.safetensors", "lm_head.weight": "c.safetensors"});
    fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(Checkpoint::open(here.path()).unwrap().client_files(), names(&["b.safetensors", "c.safetensors"]));
}

#[test]
fn files_that_are_not_here_come_when_blocks_are_loaded() {
    let (here, there) = elsewhere();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (noted, from, to) = (asked.clone(), there.path().to_owned(), here.path().to_owned());
    let checkpoint = Checkpoint::open(here.path()).unwrap().with_files_from(move |files| {
        noted.lock().unwrap().push(files.clone());
        files.iter().try_for_each(|file| fs::copy(from.join(file), to.join(file)).map(drop)).map_err(Into::into)
    });
    checkpoint.check_span(span(0, 3)).unwrap();
    assert!(asked.lock().unwrap().is_empty(), "a look fetches nothing");
    let stack = checkpoint.load_span(span(1, 2), &Device::cpu(), Dtype::F32).unwrap();
    checkpoint.load_span_beside(span(1, 3), &stack).unwrap();
    let both = names(&["shard-1.safetensors", "shard-2.safetensors"]);
    assert_eq!(*asked.lock().unwrap(), [names(&["shard-1.safetensors"]), both]);
    fs::remove_file(there.path().join("shard-0.safetensors")).unwrap();
    let error = checkpoint.load_span(span(0, 1), &Device::cpu(), Dtype::F32).unwrap_err();
    assert!(matches!(error, CheckpointError::Supply(_)), "{error}");
}

#[test]
fn a_header_is_enough_to_know_a_model() {
    let (single, before) = (fixture::single(), tempfile::tempdir().unwrap());
    fs::copy(single.path().join("config.json"), before.path().join("config.json")).unwrap();
    let bytes = fs::read(single.path().join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let open = |start: &[u8]| Checkpoint::open_before_weights(before.path(), start);
    let checkpoint = open(&bytes[..header]).unwrap();
    assert_eq!(checkpoint.fingerprint(), Checkpoint::open(single.path()).unwrap().fingerprint());
    assert_eq!(checkpoint.span_files(span(0, 1)), names(&["model.safetensors"]));
    checkpoint.check_span(span(0, 3)).unwrap();
    fs::copy(single.path().join("model.safetensors"), before.path().join("model.safetensors")).unwrap();
    checkpoint.load_span(span(0, 3), &Device::cpu(), Dtype::F32).unwrap();
    for wrong in
        [&b""[..], b"{}", b"version https://git-lfs.github.com/spec/v1", &bytes[..header - 1], b"<!DOCTYPE html>"]
    {
        let error = open(wrong).unwrap_err().to_string();
        assert!(error.contains(&Path::new("model.safetensors").display().to_string()), "{error}");
    }
}

#[test]
fn the_first_block_that_is_here_tells_how_weights_lie() {
    let (here, there) = elsewhere();
    let dtype = || Checkpoint::open(here.path()).unwrap().dtype_on(Dtype::Auto, &Device::cpu()).unwrap();
    assert_eq!(dtype(), Dtype::F32, "nothing is here, and the configuration names no method");
    fs::copy(there.path().join("shard-2.safetensors"), here.path().join("shard-2.safetensors")).unwrap();
    assert_eq!(dtype(), Dtype::F32);
    let mut config = fixture::config();
    config["quantization_config"] =
        json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": true});
    fs::write(here.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(dtype(), Dtype::F32, "modules that were left out have their floats");
    fs::remove_file(here.path().join("shard-2.safetensors")).unwrap();
    assert_eq!(dtype(), Dtype::Int8);
}
