use std::fs;

use serde_json::json;

use super::*;
use crate::device::{Device, Dtype};
use crate::fixture;

mod found;
mod layouts;
mod needed;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn refusal(dir: &fixture::Dir) -> String {
    let checkpoint = match Checkpoint::open(dir.path()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return error.to_string(),
    };
    checkpoint.load_span(span(0, 3), &Device::cpu(), Dtype::F32).unwrap_err().to_string()
}

#[test]
fn a_fingerprint_does_not_depend_on_files_but_on_the_architecture() {
    let (single, sharded) = (fixture::single(), fixture::sharded());
    let print = |dir: &fixture::Dir| Checkpoint::open(dir.path()).unwrap().fingerprint();
    let before = print(&single);
    assert_eq!(before, print(&sharded));
    let mut config = fixture::config();
    config["rms_norm_eps"] = json!(1e-6);
    fs::write(single.path().join("config.json"), config.to_string()).unwrap();
    assert_ne!(before, print(&single));
}

#[test]
fn shards_that_are_not_needed_may_be_missing() {
    let dir = fixture::sharded();
    for gone in ["shard-0.safetensors", "shard-2.safetensors"] {
        fs::remove_file(dir.path().join(gone)).unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let stack = checkpoint.load_span(span(1, 2), &Device::cpu(), Dtype::F32).unwrap();
    assert_eq!(stack.weight_bytes(), checkpoint.span_bytes(span(1, 2), Dtype::F32));
    assert!(checkpoint.load_client(Dtype::F32).is_ok());
    let error = checkpoint.load_span(span(0, 2), &Device::cpu(), Dtype::F32).unwrap_err().to_string();
    assert!(error.contains("shard-0.safetensors is not there") && error.contains("download it"), "{error}");
}

#[test]
fn missing_and_misshapen_tensors_are_refused_by_name_and_file() {
    let dir = fixture::single();
    let path = dir.path().join("model.safetensors");
    let mut tensors = fixture::tensors();
    tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().0 = vec![12, 20];
    fixture::write_file(&path, &tensors);
    let error = refusal(&dir);
    assert!(error.contains("model.layers.1.mlp.up_proj.weight") && error.contains("[12, 20]"), "{error}");
    tensors.remove("model.layers.0.self_attn.q_norm.weight");
    fixture::write_file(&path, &tensors);
    let error = refusal(&dir);
    assert!(error.contains("no tensor `model.layers.0.self_attn.q_norm.weight`"), "{error}");
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn blocks_that_the_model_does_not_have_are_refused() {
    let dir = fixture::single();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = checkpoint.load_span(span(2, 4), &Device::cpu(), Dtype::F32).unwrap_err();
    assert_eq!(error.to_string(), "the model has 3 blocks, so there is no span 2..4");
}

#[test]
fn a_span_is_checked_by_the_tensors_that_it_is_loaded_from() {
    let dir = fixture::single();
    let all = fixture::tensors();
    let path = dir.path().join("model.safetensors");
    for name in all.keys().filter(|name| name.starts_with("model.layers.1.")) {
        let mut tensors = all.clone();
        tensors.remove(name);
        fixture::write_file(&path, &tensors);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let loaded = checkpoint.load_span(span(1, 3), &Device::cpu(), Dtype::F32).unwrap_err().to_string();
        assert_eq!(checkpoint.check_span(span(1, 3)).unwrap_err().to_string(), loaded, "{name}");
        assert!(loaded.contains(name), "{loaded}");
        assert!(checkpoint.check_span(span(2, 3)).is_ok(), "{name}");
    }
    let sharded = fixture::sharded();
    fs::remove_file(sharded.path().join("shard-0.safetensors")).unwrap();
    assert!(Checkpoint::open(sharded.path()).unwrap().check_span(span(0, 3)).is_ok());
}

#[test]
fn corrupt_files_are_errors_and_not_panics() {
    let dir = fixture::single();
    let path = dir.path().join("model.safetensors");
    let good = fs::read(&path).unwrap();
    let with_header = |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let entry = |offsets: &str| {
        with_header(&format!(
            r#"{{"model.layers.0.self_attn.q_proj.weight":{{"dtype":"F32","shape":[24,12],"data_offsets":{offsets}}}}}"#
        ))
    };
    let broken = [
        Vec::new(),
        vec![7],
        u64::MAX.to_le_bytes().to_vec(),
        with_header("{"),
        with_header(r#"{"x":{"dtype":"F32"}}"#),
        good[..good.len() - 4].to_vec(),
        entry("[0,1152]"),
        entry("[18446744073709551615,18446744073709550463]"),
        entry("[1152,0]"),
    ];
    for bytes in broken {
        fs::write(&path, bytes).unwrap();
        assert!(!refusal(&dir).is_empty());
    }
}

#[test]
fn an_index_cannot_point_outside_of_its_directory() {
    let dir = fixture::sharded();
    for file in ["../shard-0.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b"] {
        let index = json!({"weight_map": {"model.norm.weight": file}});
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        assert!(refusal(&dir).contains("is not the name of a file beside it"), "{file}");
    }
}

#[test]
fn a_directory_without_weights_or_configuration_is_refused() {
    let dir = fixture::single();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(refusal(&dir).contains("neither model.safetensors nor"));
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(refusal(&dir).contains("config.json"));
}
