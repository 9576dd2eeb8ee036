//! Files that are damaged, split, or of something else. That sound ones compute what they should is a test of `tests/oracle`.

use std::fs;

use petals_protocol::Span;
use tempfile::TempDir;

use super::*;
use crate::{Checkpoint, Device, Dtype};

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/gguf").join(format!("{name}.gguf"));
    fs::read(path).unwrap()
}

/// A text as files have it.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A key with a value that has its type in front.
fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name), &kind.to_le_bytes()[..], value].concat()
}

fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let counts = [tensors.len() as u64, keys.len() as u64].map(u64::to_le_bytes).concat();
    let mut file = [b"GGUF", &3u32.to_le_bytes()[..], &counts, &keys.concat(), &tensors.concat()].concat();
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}

fn tensor(name: &str, extents: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let extents: Vec<u8> = extents.iter().flat_map(|extent| extent.to_le_bytes()).collect();
    let count = (extents.len() as u32 / 8).to_le_bytes();
    [&text(name), &count[..], &extents, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

fn refusal_of(dir: &TempDir, bytes: &[u8]) -> String {
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(&path).unwrap_err();
    let source = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
    assert!(!error.remedy().is_empty());
    format!("{error} {source}")
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |bytes: &[u8]| refusal_of(&dir, bytes);
    let llama = || key("general.architecture", 8, &text("llama"));
    let whole = file(&[llama()], &[], &[]);
    let mut other = whole.clone();
    other[4] = 1;
    assert!(refusal(&other).contains("version 1 of GGUF"));
    other[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(refusal(&other).contains("begin with the largest byte"));
    assert!(refusal(&whole[..30]).contains("its download has not ended"));
    assert!(refusal(b"").contains("0 of at least 24 bytes"));
    assert!(refusal(b"version https://git-lfs.github.com/spec/v1\n").contains("git-lfs pointer"));
    assert!(refusal(b"PK").contains("2 of at least 4 bytes"));
    assert!(refusal(&file(&[], &[], &[])).contains("it has no `general.architecture`"));
    assert!(refusal(&whole).contains("token_embd.weight"));
    let mamba = refusal(&file(&[key("general.architecture", 8, &text("mamba"))], &[], &[]));
    assert!(mamba.contains("`mamba`") && mamba.contains("qwen3moe"), "{mamba}");
    assert!(refusal(&file(&[llama(), llama()], &[], &[])).contains("twice"));
    assert!(refusal(&file(&[key("a", 99, &[])], &[], &[])).contains("`a`: a value has the unknown type 99"));
    let embeddings = tensor("token_embd.weight", &[4, 2], 0, 0);
    assert!(refusal(&file(&[llama()], std::slice::from_ref(&embeddings), &[0; 31])).contains("bytes, its download"));
    assert!(refusal(&file(&[llama()], &[embeddings], &[0; 32])).contains("it has no `llama.embedding_length`"));
    let odd = tensor("t", &[33, 2], 8, 0);
    assert!(refusal(&file(&[llama()], &[odd], &[0; 99])).contains("no whole blocks of Q8_0"));
    assert!(refusal(&file(&[llama()], &[tensor("t", &[32], 8, 8)], &[0; 99])).contains("does not begin where"));
    assert!(refusal(&file(&[llama()], &[tensor("t", &[1, 1, 1, 1, 1], 0, 0)], &[])).contains("5 extents"));
}

#[test]
fn counts_that_no_file_can_hold_take_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let llama = key("general.architecture", 8, &text("llama"));
    let most = u64::MAX.to_le_bytes();
    let list = |kind: u32| key("a", 9, &[&kind.to_le_bytes()[..], &most].concat());
    for keys in [vec![list(8)], vec![list(0)], vec![list(12)], vec![key("a", 8, &most)], vec![most.to_vec()]] {
        let error = refusal_of(&dir, &file(&keys, &[], &[]));
        assert!(
            error.contains("its download has not ended") || error.contains("has 18446744073709551615 bytes"),
            "{error}"
        );
    }
    let huge = tensor("token_embd.weight", &[1 << 40, 1 << 40, 1 << 40], 0, 0);
    assert!(refusal_of(&dir, &file(std::slice::from_ref(&llama), &[huge], &[])).contains("larger than any file"));
    let far = tensor("token_embd.weight", &[4], 0, u64::MAX - 31);
    assert!(refusal_of(&dir, &file(&[llama], &[far], &[])).contains("larger than any file"));
    let mut counts = file(&[], &[], &[]);
    counts[8..24].fill(0xff);
    assert!(refusal_of(&dir, &counts).contains("its download has not ended"));
}

/// A golden with keys more in front of its own, if it has them, and some of its tensors.
fn rebuilt(dir: &TempDir, more: &[Vec<u8>], own: bool, chosen: impl Fn(usize) -> bool) -> Vec<u8> {
    let bytes = golden("llama");
    let path = dir.path().join("base.gguf");
    fs::write(&path, &bytes).unwrap();
    let whole = Container::open(&path).unwrap();
    let mut reader = reader::Reader::new(&bytes);
    reader.skip(24).unwrap();
    for _ in 0..whole.metadata.len() {
        reader.text(1 << 10).unwrap();
        value::Value::read(&mut reader).unwrap();
    }
    let (mut described, mut data) = (Vec::new(), Vec::new());
    for (_, (name, own)) in whole.tensors.iter().enumerate().filter(|(number, _)| chosen(*number)) {
        let extents: Vec<u64> = own.shape.iter().rev().map(|extent| *extent as u64).collect();
        let kind = if own.dtype == "F16" { 1 } else { 0 };
        described.push(tensor(name, &extents, kind, data.len() as u64));
        data.extend(&bytes[own.bytes.0..own.bytes.1]);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let metadata = if own { &bytes[24..reader.at()] } else { &[][..] };
    let mut file = file(&[more.concat(), metadata.to_vec()], &described, &data);
    let keys = more.len() + if own { whole.metadata.len() } else { 0 };
    file[16..24].copy_from_slice(&(keys as u64).to_le_bytes());
    file
}

#[test]
fn what_is_not_computed_is_refused_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let refusal =
        |name: &str, kind, value: &[u8]| refusal_of(&dir, &rebuilt(&dir, &[key(name, kind, value)], true, |_| true));
    assert!(refusal("llama.attention.sliding_window", 4, &7u32.to_le_bytes()).contains("sliding_window` is 7"));
    assert!(refusal("llama.expert_count", 4, &2u32.to_le_bytes()).contains("it has no `llama.expert_used_count`"));
    assert!(refusal("llama.expert_count", 8, &text("two")).contains("`llama.expert_count` is not a count"));
    let list = [&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &1u32.to_le_bytes(), &2u32.to_le_bytes()].concat();
    assert!(refusal("llama.expert_count", 9, &list).contains("another number for each block"));
    assert!(
        refusal("tokenizer.ggml.eot_token_id", 7, &[1]).contains("`tokenizer.ggml.eot_token_id` is not a token id")
    );
}

/// A model in two files, of which the second one has no metadata but what says that it is one of two.
fn split(dir: &TempDir) -> [PathBuf; 2] {
    [0, 1].map(|part| {
        let path = dir.path().join(format!("tiny-{:05}-of-00002.gguf", part + 1));
        let count = key("split.count", 2, &2u16.to_le_bytes());
        fs::write(&path, rebuilt(dir, &[count], part == 0, |number| number % 2 == part)).unwrap();
        path
    })
}

#[test]
fn a_model_in_several_files_is_that_in_one() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = split(&dir);
    let whole = Checkpoint::open(dir.path().join("base.gguf")).unwrap();
    let parts = Checkpoint::open(&first).unwrap();
    assert_eq!(parts.model_id(None).unwrap().to_string(), format!("tiny@{}", whole.fingerprint()));
    parts.check_span(parts.blocks()).unwrap();
    parts.load_span(parts.blocks(), &Device::cpu(), Dtype::F32).unwrap();
    let [a, b] = [&parts, &whole].map(|model| model.load_client(Dtype::F32).unwrap().embed(&[3, 5]).unwrap());
    assert_eq!(a, b);
    let error = Checkpoint::open(&second).unwrap_err().to_string();
    assert!(error.contains("number 2 of 2 files") && error.contains("tiny-00001-of-00002.gguf"), "{error}");
    fs::remove_file(&second).unwrap();
    let error = Checkpoint::open(&first).unwrap_err().to_string();
    assert!(error.contains("tiny-00002-of-00002.gguf is not there"), "{error}");
}

#[test]
fn no_damage_makes_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    // A generator whose numbers are the same everywhere (Knuth's MMIX).
    let mut state = 1u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut opened, mut all) = (0, 0);
    for name in ["llama", "gemma3", "gpt-oss", "qwen2-q8_0"] {
        let whole = golden(name);
        let header = 6000.min(whole.len());
        for _ in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..1 + next(3) {
                let at = next(header);
                match next(4) {
                    0 => bytes[at] = next(256) as u8,
                    1 => bytes[at] ^= 1 << next(8),
                    2 => bytes.truncate(at + next(whole.len())),
                    _ => {
                        let from = next(header);
                        let length = 8.min(bytes.len().saturating_sub(from.max(at)));
                        bytes.copy_within(from..from + length, at);
                    }
                }
                if bytes.len() < header {
                    break;
                }
            }
            fs::write(&path, bytes).unwrap();
            all += 1;
            let Ok(checkpoint) = Checkpoint::open(&path) else { continue };
            opened += 1;
            let _ = (checkpoint.fingerprint(), checkpoint.check_span(checkpoint.blocks()));
            let _ = checkpoint.load_span(Span::new(0, 1).unwrap(), &Device::cpu(), Dtype::F32);
            let _ = checkpoint.load_client(Dtype::F32).map(|client| client.embed(&[1]));
            let _ = GgufVocabulary::read(&path);
        }
    }
    assert!(opened > all / 20 && opened < all, "{opened} of {all}");
}
