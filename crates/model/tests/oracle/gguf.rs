//! Models that llama.cpp's converter made of checkpoints, against what transformers computed with those.
//!
//! `PETALS_GGUFS` chooses another folder of such models than `tests/goldens/gguf`, which has some of those that `gguf_models.py` knows.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use petals_model::{Checkpoint, Device, Dtype, ForwardPass, Keep};
use petals_protocol::{Injection, PassLayout, WeightChange};
use serde_json::{Value, json};

use crate::assert_close;

struct Model {
    file: PathBuf,
    golden: Value,
}

fn models() -> Vec<Model> {
    let kept = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/gguf");
    let folder = env::var_os("PETALS_GGUFS").map_or_else(kept, PathBuf::from);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "gguf"));
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    let golden = |file: &PathBuf| serde_json::from_slice(&fs::read(file.with_extension("json")).unwrap()).unwrap();
    files.into_iter().map(|file| Model { golden: golden(&file), file }).collect()
}

impl Model {
    fn ids(&self) -> Vec<u32> {
        self.golden["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    }

    fn logits(&self) -> Vec<f32> {
        let text = self.golden["logits"].as_str().unwrap().as_bytes().as_chunks::<8>().0;
        let bits = |digits: &[u8; 8]| u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        text.iter().map(|digits| f32::from_bits(bits(digits).swap_bytes())).collect()
    }

    /// The checkpoint that it was made from, without any weight.
    fn origin(&self) -> (tempfile::TempDir, Checkpoint) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), self.golden["config"].to_string()).unwrap();
        let names = self.golden["names"].as_array().unwrap();
        let entry = |name: &Value| {
            (name.as_str().unwrap().to_owned(), json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}))
        };
        let header = Value::Object(names.iter().map(entry).collect()).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        (dir, checkpoint)
    }
}

fn logits(checkpoint: &Checkpoint, ids: &[u32]) -> Vec<f32> {
    let client = checkpoint.load_client(Dtype::F32).unwrap();
    checkpoint.check_span(checkpoint.blocks()).unwrap();
    let stack = checkpoint.load_span(checkpoint.blocks(), &Device::cpu(), Dtype::F32).unwrap();
    let layout = PassLayout {
        span: checkpoint.blocks(),
        lengths: vec![ids.len() as u32],
        prefix_len: 0,
        injection: Injection::None,
        weights: WeightChange::None,
        read_rows: None,
    };
    let text = client.embed(ids).unwrap();
    let pass = ForwardPass { layout: &layout, text, prefix: None, tables: None };
    client.lm_logits(&stack.forward(pass, Keep::Nothing).unwrap().text).unwrap()
}

#[test]
fn ggufs_compute_what_the_checkpoints_do_that_they_were_made_from() {
    for model in models() {
        let name = model.file.file_stem().unwrap().to_str().unwrap();
        let checkpoint = Checkpoint::open(&model.file).unwrap();
        assert_close(name, &logits(&checkpoint, &model.ids()), &model.logits(), 2e-5);
        let in_place = Checkpoint::open(&model.file).unwrap().with_experts_in_files();
        assert_close(name, &logits(&in_place, &model.ids()), &model.logits(), 2e-5);
    }
}

#[test]
fn ggufs_are_the_same_models_in_a_swarm() {
    for model in models() {
        let name = model.file.file_stem().unwrap().to_str().unwrap();
        let (_dir, origin) = model.origin();
        let checkpoint = Checkpoint::open(&model.file).unwrap();
        assert_eq!(checkpoint.config().block, origin.config().block, "{name}");
        assert_eq!(checkpoint.fingerprint(), origin.fingerprint(), "{name}: {:#?}", checkpoint.config());
        assert_eq!(checkpoint.model_id(None).unwrap().to_string(), format!("{name}@{}", origin.fingerprint()));
    }
}
