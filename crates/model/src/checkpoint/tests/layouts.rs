//! The ways in which the same model may lie in a directory.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::ClientModel;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn open(dir: &fixture::Dir) -> Checkpoint {
    Checkpoint::open(dir.path()).unwrap()
}

fn client(dir: &fixture::Dir) -> ClientModel {
    open(dir).load_client(Dtype::F32).unwrap()
}

/// Logits of some hidden states, which the head makes.
fn logits(dir: &fixture::Dir) -> Vec<f32> {
    client(dir).lm_logits(&fixture::noise(7, 24)).unwrap()
}

fn tied() -> serde_json::Value {
    let mut config = fixture::config();
    config["tie_word_embeddings"] = json!(true);
    config
}

/// Names as a model's base class saves them.
fn without_prefix(tensors: Tensors) -> Tensors {
    tensors.into_iter().map(|(name, t)| (name.strip_prefix("model.").map(str::to_owned).unwrap_or(name), t)).collect()
}

/// Recorded before anything but the prefixed layout was read: servers and clients of all versions must find each other.
#[test]
fn fingerprints_are_what_they_always_were() {
    let recorded = [
        ("demo/model", "42809f9d9e6d95db"),
        ("tests/goldens/llama-gqa/model", "f6c9c57f04fe13e4"),
        ("tests/goldens/llama3-rope/model", "6a0965b4423bb7ae"),
        ("tests/goldens/llama-linear-rope/model", "a971919e10b56732"),
        ("tests/goldens/mistral/model", "f1e08a57ff18196d"),
        ("tests/goldens/qwen2/model", "3411fdffe3c1a9db"),
        ("tests/goldens/qwen3/model", "eeb193d6860c764b"),
    ];
    for (model, print) in recorded {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(model);
        assert_eq!(Checkpoint::open(path).unwrap().fingerprint().to_string(), print, "{model}");
    }
}

#[test]
fn the_prefix_of_names_is_optional_and_changes_nothing() {
    let (with, bare) = (fixture::single(), fixture::model(&fixture::config(), &without_prefix(fixture::tensors())));
    assert_eq!(open(&with).fingerprint(), open(&bare).fingerprint());
    assert_eq!(logits(&with), logits(&bare));
    assert_eq!(client(&with).embed(&[3, 39]).unwrap(), client(&bare).embed(&[3, 39]).unwrap());
    let load = |dir| open(dir).load_span(span(0, 3), &Device::cpu(), Dtype::F32).unwrap();
    assert_eq!(load(&with).weight_bytes(), load(&bare).weight_bytes());
    assert!(open(&bare).check_span(span(0, 3)).is_ok());
}

#[test]
fn the_language_model_of_a_wrapper_is_found_under_either_of_its_names() {
    let plain = logits(&fixture::single());
    let old = |name: &str| format!("language_model.{name}");
    let new = |name: &str| match name.strip_prefix("model.") {
        Some(bare) => format!("model.language_model.{bare}"),
        None => name.to_owned(),
    };
    for rename in [&old as &dyn Fn(&str) -> String, &new] {
        let mut wrapper =
            json!({"model_type": "some_vl", "vision_config": {"hidden_size": 4}, "tie_word_embeddings": false});
        wrapper["text_config"] = fixture::config();
        let mut tensors: Tensors = fixture::tensors().into_iter().map(|(name, t)| (rename(&name), t)).collect();
        tensors.insert("vision_tower.patches.weight".to_owned(), (vec![2, 2], vec![0.0; 4]));
        let dir = fixture::model(&wrapper, &tensors);
        assert_eq!(logits(&dir), plain);
        assert_eq!(open(&dir).load_span(span(0, 3), &Device::cpu(), Dtype::F32).unwrap().span(), span(0, 3));
        open(&dir).check_span(span(0, 3)).unwrap();
    }
}

#[test]
fn a_server_needs_no_head_and_a_client_says_that_it_does() {
    let mut tensors = without_prefix(fixture::tensors());
    tensors.remove("lm_head.weight");
    let dir = fixture::model(&fixture::config(), &tensors);
    assert!(open(&dir).load_span(span(0, 3), &Device::cpu(), Dtype::F32).is_ok());
    assert_eq!(open(&dir).fingerprint(), open(&fixture::single()).fingerprint());
    let error = open(&dir).load_client(Dtype::F32).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no head (`lm_head.weight`)") && text.contains("`tie_word_embeddings`"), "{text}");
    assert!(text.ends_with(error.remedy()), "{text}");
}

#[test]
fn a_tied_table_is_read_from_whichever_name_it_has() {
    let both = fixture::tensors();
    let table = both["model.embed_tokens.weight"].clone();
    let (mut embeddings, mut head) = (both.clone(), both.clone());
    embeddings.remove("lm_head.weight");
    head.remove("model.embed_tokens.weight");
    head.insert("lm_head.weight".to_owned(), table);
    let [both, embeddings, head] = [both, embeddings, head].map(|tensors| fixture::model(&tied(), &tensors));
    let expected = logits(&embeddings);
    // transformers 4.57 ties whatever else is stored.
    assert_eq!(logits(&both), expected);
    assert_eq!(logits(&head), expected);
    assert_eq!(client(&head).embed(&[5]).unwrap(), client(&embeddings).embed(&[5]).unwrap());
    assert_eq!(open(&both).fingerprint(), open(&embeddings).fingerprint());
    assert_eq!(open(&head).fingerprint(), open(&embeddings).fingerprint());
}

#[test]
fn tensors_that_the_model_does_not_have_are_ignored_whatever_they_are() {
    let dir = fixture::single();
    let path = dir.path().join("model.safetensors");
    let good = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&good[8..8 + length]).unwrap();
    header["vision.table"] = json!({"dtype": "I64", "shape": [1], "data_offsets": [0, 8]});
    header["model.layers.0.mlp.scale"] = json!({"dtype": "F8_E4M3", "shape": [4, 1], "data_offsets": [8, 12]});
    let text = header.to_string();
    fs::write(&path, [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &good[8 + length..]].concat()).unwrap();
    assert_eq!(logits(&dir), logits(&fixture::single()));
    assert!(open(&dir).load_span(span(0, 3), &Device::cpu(), Dtype::F32).is_ok());
}

#[test]
fn a_single_file_goes_before_an_index_beside_it() {
    let dir = fixture::single();
    fs::write(dir.path().join("model.safetensors.index.json"), r#"{"weight_map": {"x": "gone.safetensors"}}"#).unwrap();
    assert_eq!(open(&dir).fingerprint(), open(&fixture::single()).fingerprint());
    assert_eq!(logits(&dir), logits(&fixture::single()));
}

#[test]
fn of_a_tensor_in_two_shards_the_one_that_the_index_names_counts() {
    let dir = fixture::sharded();
    let mut other = fixture::tensors();
    other.retain(|name, _| name == "lm_head.weight" || name.starts_with("model.layers.0."));
    other.values_mut().for_each(|(_, values)| values.fill(9.0));
    fixture::write_file(&dir.path().join("shard-0.safetensors"), &other);
    assert_eq!(logits(&dir), logits(&fixture::single()));
}

#[test]
fn a_tensor_is_found_in_another_shard_than_the_index_says() {
    let dir = fixture::sharded();
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    let files: std::collections::BTreeSet<String> =
        map.values().map(|file| file.as_str().unwrap().to_owned()).collect();
    assert!(files.len() > 1);
    // Each name points to the file behind that which has it.
    for file in map.values_mut() {
        let next = files.iter().cycle().skip_while(|other| *file != **other).nth(1).unwrap();
        *file = json!(next);
    }
    fs::write(&path, index.to_string()).unwrap();
    assert_eq!(logits(&dir), logits(&fixture::single()));
    assert!(open(&dir).check_span(span(0, 3)).is_ok());
    index["weight_map"]["model.layers.0.extra.weight"] = json!(files.first());
    fs::write(&path, index.to_string()).unwrap();
    let error = open(&dir).locate("model.layers.0.extra.weight", &[4, 4]).unwrap_err().to_string();
    assert!(
        error.contains("no tensor `model.layers.0.extra.weight`, though model.safetensors.index.json says"),
        "{error}"
    );
}

#[test]
fn a_revision_in_the_cache_has_the_name_of_its_repository() {
    let cache = tempfile::tempdir().unwrap();
    let named = |folder: &str| {
        let path = cache.path().join(folder);
        fs::create_dir_all(&path).unwrap();
        for entry in fs::read_dir(fixture::single().path()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
        }
        Checkpoint::open(&path).unwrap().model_id(None).unwrap().name().to_owned()
    };
    assert_eq!(named("models--org--some-model/snapshots/0123abcd"), "org/some-model");
    assert_eq!(named("models--gpt2/snapshots/0123abcd"), "gpt2");
    assert_eq!(named("org/snapshots/0123abcd"), "0123abcd");
    assert_eq!(named("some-model"), "some-model");
}

#[cfg(unix)]
#[test]
fn files_may_be_links_to_blobs_with_hashes_for_names() {
    let whole = fixture::sharded();
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/0123456789abcdef"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for (number, entry) in fs::read_dir(whole.path()).unwrap().enumerate() {
        let entry = entry.unwrap();
        let blob = format!("{number:064x}");
        fs::copy(entry.path(), blobs.join(&blob)).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), snapshot.join(entry.file_name())).unwrap();
    }
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(checkpoint.fingerprint(), open(&whole).fingerprint());
    assert!(checkpoint.load_client(Dtype::F32).is_ok() && checkpoint.check_span(span(0, 3)).is_ok());
    // The folder above, which people give as well.
    let error = Checkpoint::open(cache.path()).unwrap_err().to_string();
    assert!(error.contains("no config.json, but `snapshots`") && error.contains("revision"), "{error}");
}
