//! What people have in a model's directory that is none.

use super::*;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3600000\n";

fn says(dir: &fixture::Dir, words: &[&str]) {
    let error = refusal(dir);
    for word in words {
        assert!(error.contains(word), "`{word}` is missing in: {error}");
    }
}

#[test]
fn git_lfs_pointers_are_called_so_in_every_place() {
    let files = ["config.json", "model.safetensors.index.json", "shard-1.safetensors"];
    for file in files {
        let dir = fixture::sharded();
        fs::write(dir.path().join(file), POINTER).unwrap();
        says(&dir, &[file, "git-lfs pointer", "`git lfs pull`"]);
    }
    let dir = fixture::single();
    fs::write(dir.path().join("model.safetensors"), POINTER).unwrap();
    says(&dir, &["model.safetensors is a git-lfs pointer", "`git lfs pull`"]);
}

#[test]
fn a_download_that_has_not_ended_is_called_so_wherever_it_stopped() {
    let dir = fixture::single();
    let path = dir.path().join("model.safetensors");
    let good = fs::read(&path).unwrap();
    for length in [0, 4, 8, 9, 200, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        says(&dir, &["model.safetensors has ", &format!(" {length} of at least"), "download it again"]);
    }
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    says(&dir, &[&format!("{} of at least {} bytes", good.len() - 1, good.len())]);
}

#[test]
fn other_formats_under_the_name_are_named() {
    let dir = fixture::single();
    let path = dir.path().join("model.safetensors");
    let starts: [(&[u8], &str); 3] = [
        (b"<!DOCTYPE html><title>404", "web page"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "GGUF"),
        (b"PK\x03\x04aaaaaaaa", "pickle"),
    ];
    for (start, what) in starts {
        fs::write(&path, start).unwrap();
        says(&dir, &["is no safetensors file", what]);
    }
}

#[test]
fn what_lies_in_the_place_of_weights_is_named_with_a_way_out() {
    let cases = [
        ("pytorch_model.bin", ["pickles", "save_pretrained"]),
        ("pytorch_model-00001-of-00002.bin", ["pickles", "save_pretrained"]),
        ("adapter_config.json", ["an adapter", "base_model_name_or_path"]),
        ("model-00001-of-00002.safetensors", ["without the index", "model.safetensors.index.json"]),
        ("consolidated.00.pth", ["layout of the makers", "Hugging Face's layout"]),
        ("llama.Q4_K_M.gguf", ["a model in GGUF is a file", "give --model that file itself"]),
        ("Model.safetensors", ["but `Model.safetensors`", "rename it to model.safetensors"]),
        ("weights.safetensors", ["not the name", "rename it"]),
        ("model.safetensors.incomplete", ["download which has not ended", "again"]),
        ("readme.txt", ["neither model.safetensors nor", "--model"]),
    ];
    for (file, words) in cases {
        let dir = fixture::single();
        fs::rename(dir.path().join("model.safetensors"), dir.path().join(file)).unwrap();
        says(&dir, &["neither model.safetensors nor model.safetensors.index.json"]);
        says(&dir, &words);
    }
    let dir = fixture::single();
    fs::rename(dir.path().join("config.json"), dir.path().join("Config.json")).unwrap();
    says(&dir, &["no config.json, but `Config.json`", "rename it to config.json"]);
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_called_so() {
    for file in ["config.json", "model.safetensors"] {
        let dir = fixture::single();
        fs::remove_file(dir.path().join(file)).unwrap();
        std::os::unix::fs::symlink("../blobs/gone", dir.path().join(file)).unwrap();
        says(&dir, &[file, "a link to a file that is not there"]);
    }
}

#[test]
fn dtypes_that_are_not_read_are_named_with_their_tensor() {
    for (dtype, bytes) in [("F64", 8), ("F8_E4M3", 1), ("I32", 4), ("U8", 1)] {
        let dir = fixture::single();
        let path = dir.path().join("model.safetensors");
        let end = 24 * 12 * bytes;
        let name = "model.layers.1.self_attn.q_proj.weight";
        let header = json!({name: {"dtype": dtype, "shape": [24, 12], "data_offsets": [0, end]}}).to_string();
        fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; end]].concat()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let error = checkpoint.locate(name, &[24, 12]).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")) && error.contains(&format!("is {dtype}: only F32")), "{error}");
    }
}

#[test]
fn what_there_is_in_the_place_of_a_tensor_is_named() {
    let renamed = |rename: fn(&str) -> String| {
        let tensors = fixture::tensors().into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
        fixture::model(&fixture::config(), &tensors)
    };
    let gptq = renamed(|name| name.replace("proj.weight", "proj.qweight"));
    says(&gptq, &["no tensor `model.layers.0.", "`model.layers.0.self_attn.q_proj.qweight`", "quantised"]);
    let wrapped = renamed(|name| format!("backbone.{name}"));
    says(
        &wrapped,
        &["no tensor `model.layers.0.", "but `backbone.model.layers.0.", "a prefix that such models do not have"],
    );
}

#[test]
fn a_configuration_that_is_no_text_or_too_long_is_refused() {
    let dir = fixture::single();
    fs::write(dir.path().join("config.json"), b"\xff\xfe{\0}\0").unwrap();
    says(&dir, &["config.json", "not UTF-8"]);
    fs::write(dir.path().join("config.json"), vec![b' '; MAX_CONFIG as usize + 1]).unwrap();
    says(&dir, &["config.json", "more than 16777216 bytes"]);
}
