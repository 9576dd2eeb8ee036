//! Files: checkpoints, adapters, training states, key files. They may come from strangers too.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use petals_client::{AdaptedModel, Adapter, Aids, Average, Encoder, Reparam, ReparamKind, TrainingState};
use petals_e2e::Goldens;
use petals_model::{Checkpoint, Device, Dtype, GgufVocabulary};
use petals_swarm::Identity;
use tempfile::TempDir;

use crate::fuzz;

/// Each input is written and read: a fraction of what decoders in memory get, unless asked for more.
const INPUTS: u64 = 20_000;
/// What a file of tables is read into grows in steps; the rest of the files is small.
const MEMORY: usize = 1 << 20;

/// In memory where the system has a place for that.
pub(crate) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory for files")
}

fn goldens() -> Goldens {
    Goldens::load("llama-gqa").expect("goldens")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

fn adapted() -> AdaptedModel {
    let checkpoint = Checkpoint::open(goldens().model()).expect("a checkpoint");
    let id = checkpoint.model_id(Some("golden")).expect("an id");
    AdaptedModel::new(id, String::new(), checkpoint.config())
}

/// What a file is loaded in: another dtype for each change of it.
pub(crate) fn dtype_for(bytes: &[u8]) -> Dtype {
    const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Int8, Dtype::Int4];
    DTYPES[bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>() % DTYPES.len()]
}

#[test]
fn safetensors_of_checkpoints() {
    let directory = directory();
    copy(&Goldens::load("qwen3").expect("goldens").model(), directory.path());
    let file = directory.path().join("model.safetensors");
    let valid = [fs::read(&file).expect("a checkpoint")];
    let memory = MEMORY + valid[0].len();
    fuzz("checkpoints", &valid, INPUTS, memory, |bytes| {
        fs::write(&file, bytes).expect("a written file");
        let Ok(checkpoint) = Checkpoint::open(directory.path()) else { return false };
        let span = "1..2".parse().expect("a span");
        let _ = checkpoint.fingerprint();
        checkpoint.load_span(span, &Device::cpu(), dtype_for(bytes)).is_ok()
    });
}

#[test]
fn ggufs() {
    let directory = directory();
    let file = directory.path().join("model.gguf");
    let folder = goldens().path("../gguf");
    for name in ["llama", "gemma3", "gpt-oss", "qwen2-q8_0"] {
        let valid = [fs::read(folder.join(format!("{name}.gguf"))).expect("a GGUF")];
        let memory = MEMORY + valid[0].len();
        fuzz(&format!("GGUFs: {name}"), &valid, INPUTS / 4, memory, |bytes| {
            fs::write(&file, bytes).expect("a written file");
            let Ok(checkpoint) = Checkpoint::open(&file) else { return false };
            let _ = checkpoint.fingerprint();
            let _ = checkpoint.load_client(Dtype::F32).is_ok();
            checkpoint.load_span("0..1".parse().expect("a span"), &Device::cpu(), dtype_for(bytes)).is_ok()
        });
    }
    for name in ["spm", "bpe"] {
        let valid = [fs::read(folder.join(format!("tokenizers/{name}.gguf"))).expect("a vocabulary")];
        fuzz(&format!("vocabularies: {name}"), &valid, INPUTS / 4, MEMORY, |bytes| {
            fs::write(&file, bytes).expect("a written file");
            GgufVocabulary::read(&file).is_ok()
        });
    }
}

#[test]
fn indices_of_sharded_checkpoints() {
    let directory = directory();
    copy(&goldens().model(), directory.path());
    let file = directory.path().join("model.safetensors.index.json");
    fuzz("indices", &[fs::read(&file).expect("an index")], INPUTS, MEMORY, |bytes| {
        fs::write(&file, bytes).expect("a written file");
        Checkpoint::open(directory.path()).is_ok()
    });
}

#[test]
fn adapters_and_their_manifests() {
    let directory = directory();
    let model = adapted();
    for (name, file) in [
        ("init-add", "adapter_model.safetensors"),
        ("peft-prompt-tuning", "adapter_config.json"),
        ("peft-seq-cls", "adapter_model.safetensors"),
    ] {
        let place = directory.path().join(format!("{name}-{file}"));
        copy(&goldens().path(name), &place);
        let file = place.join(file);
        let valid = [fs::read(&file).expect("a part of an adapter")];
        fuzz(&format!("adapters: {name}"), &valid, INPUTS, MEMORY, |bytes| {
            fs::write(&file, bytes).expect("a written file");
            Adapter::load(&place, &model).is_ok()
        });
    }
    // With a manifest, in the file's metadata and beside it.
    let place = directory.path().join("ours");
    let ours = Adapter::load(&goldens().path("init-add"), &model).expect("an adapter");
    Adapter::new(&model, ours.tables, ours.manifest.labels, ours.manifest.text, 3)
        .save(&place, &model)
        .expect("a saved adapter");
    let file = place.join("adapter_model.safetensors");
    fuzz("adapters: ours", &[fs::read(&file).expect("tables")], INPUTS, MEMORY, |bytes| {
        fs::write(&file, bytes).expect("a written file");
        Adapter::load(&place, &model).is_ok()
    });
}

#[test]
fn training_states() {
    let directory = directory();
    let plain = Adapter::load(&goldens().path("init-add"), &adapted()).expect("an adapter").tables;
    let record = petals_client::TrainingRecord {
        model: adapted().id,
        step: 3,
        total_steps: 20,
        seed: 1,
        labels: None,
        settings: [("--lr".to_owned(), "0.01".to_owned())].into(),
    };
    for (name, made) in [("training states", false), ("training states with networks", true)] {
        let mut tables = plain.clone();
        let optimizer = petals_client::AdamW::new(tables.shape(), 0.01);
        let reparam = Reparam { kind: ReparamKind::PTuningLstm, width: Some(2) };
        let encoder = made.then(|| Encoder::new(reparam, &mut tables, 1).expect("an encoder"));
        let average = made.then(|| Average::new(0.5, &plain));
        record.save(directory.path(), &tables, &optimizer, &Aids { encoder, average }).expect("a saved state");
        let file = directory.path().join("training_state/state.safetensors");
        fuzz(name, &[fs::read(&file).expect("a state")], INPUTS, MEMORY, |bytes| {
            fs::write(&file, bytes).expect("a written file");
            matches!(TrainingState::load(directory.path()), Ok(Some(_)))
        });
    }
}

#[test]
fn key_files() {
    let directory = directory();
    let file = directory.path().join("node.key");
    let made = Identity::load_or_create(&file).expect("a key");
    fuzz("key files", &[fs::read(&file).expect("a key")], INPUTS, MEMORY, |bytes| {
        fs::write(&file, bytes).expect("a written file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
        Identity::load_or_create(&file).is_ok_and(|identity| identity.peer_id() == made.peer_id())
    });
}
