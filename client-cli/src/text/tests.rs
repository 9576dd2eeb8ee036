use std::fs;

use serde_json::{Map, json};
use tempfile::TempDir;

use super::*;

mod oracle;

/// A model directory with a word tokenizer: `<bos>` 0, `<eos>` 1, `<unk>` 2, `a` 3, `b` 4, `c` 5; `<bos>` comes first.
pub(crate) fn word_model() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let bos = json!({ "SpecialToken": { "id": "<bos>", "type_id": 0 } });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0 },
        "padding": null,
        "added_tokens": [special(0, "<bos>"), special(1, "<eos>"), special(2, "<unk>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [bos, { "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<bos>": { "id": "<bos>", "ids": [0], "tokens": ["<bos>"] } }
        },
        "decoder": null,
        "model": {
            "type": "WordLevel", "unk_token": "<unk>",
            "vocab": { "<bos>": 0, "<eos>": 1, "<unk>": 2, "a": 3, "b": 4, "c": 5 }
        }
    });
    fs::write(root.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(root.path().join("generation_config.json"), r#"{"eos_token_id": [1, 4]}"#).unwrap();
    root
}

/// Tokens are bytes, as in GPT-2's and Llama 3's alphabets: token n is byte n, and those from 256 on are `more`.
pub(crate) fn byte_model(more: &[&str]) -> TempDir {
    let printable = |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || byte >= 174;
    let mut others = 256u32..;
    let letters: Vec<char> = (0..256u32)
        .map(|byte| if printable(byte) { byte } else { others.next().unwrap_or_default() })
        .filter_map(char::from_u32)
        .collect();
    let word = |text: &&str| text.bytes().map(|byte| letters[usize::from(byte)]).collect();
    let names = letters.iter().map(char::to_string).chain(more.iter().map(word));
    let vocab = names.zip(0..).map(|(name, id)| (name, json!(id))).collect();
    bpe_model(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }), vocab)
}

/// Words with a mark in front, which is a space except at the start of the text, and single bytes, as in Llama 2.
pub(crate) fn marked_model() -> TempDir {
    let bytes = (0..256u32).map(|byte| (format!("<0x{byte:02X}>"), json!(byte)));
    let vocab = bytes.chain([("▁a".to_owned(), json!(256)), ("▁b".to_owned(), json!(257))]).collect();
    let decoder = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" },
        { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ] });
    bpe_model(decoder, vocab)
}

fn bpe_model(decoder: serde_json::Value, vocab: Map<String, serde_json::Value>) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let model = json!({ "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true });
    let tokenizer = json!({ "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
                            "post_processor": null, "decoder": decoder, "model": model });
    fs::write(root.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    root
}

#[test]
fn text_gets_what_the_post_processor_adds_and_is_not_truncated() {
    let model = word_model();
    let tokenizer = TextTokenizer::load(model.path()).unwrap();
    assert_eq!(tokenizer.encode("a b c a b").unwrap(), [0, 3, 4, 5, 3, 4]);
    assert_eq!(tokenizer.encode_continuation("c a").unwrap(), [5, 3]);
    assert_eq!(tokenizer.decode(&[0, 3, 4, 1]).unwrap(), "a b");
}

#[test]
fn the_tokenizers_own_end_token_is_one_whatever_else_is_said() {
    let model = word_model();
    let ends = || TextTokenizer::load(model.path()).map(|t| (t.eos().ok(), t.stop_tokens().to_vec())).unwrap();
    assert_eq!(ends(), (Some(1), vec![1, 4]));
    fs::write(model.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "c"}}"#).unwrap();
    fs::write(model.path().join("generation_config.json"), r#"{"eos_token_id": 2}"#).unwrap();
    assert_eq!(ends(), (Some(5), vec![2, 5]));
    for file in ["tokenizer_config.json", "generation_config.json"] {
        fs::remove_file(model.path().join(file)).unwrap();
    }
    assert!(matches!(TextTokenizer::load(model.path()).unwrap().eos(), Err(TextError::NoEos)));
}

#[test]
fn tokens_with_a_role_are_those_of_the_files_or_those_that_do_what_the_role_says() {
    let model = word_model();
    let roles = || TextTokenizer::load(model.path()).map(|tokenizer| tokenizer.roles().to_vec()).unwrap();
    let named = |names: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
        names.iter().map(|(role, name)| (*role, (*name).to_owned())).collect()
    };
    assert_eq!(roles(), named(&[("bos_token", "<bos>"), ("eos_token", "<eos>")]));
    fs::write(model.path().join("tokenizer_config.json"), r#"{"bos_token": "a", "pad_token": {"content": "b"}}"#)
        .unwrap();
    assert_eq!(roles(), named(&[("bos_token", "a"), ("pad_token", "b"), ("eos_token", "<eos>")]));
}

#[test]
fn a_missing_or_broken_tokenizer_is_named() {
    let root = tempfile::tempdir().unwrap();
    let refusal = || TextTokenizer::load(root.path()).unwrap_err().to_string();
    let missing = refusal();
    assert!(missing.contains("tokenizer.json does not exist"), "{missing}");
    fs::write(root.path().join("tokenizer.model"), "\x0a").unwrap();
    let other = refusal();
    assert!(other.contains("only tokenizer.model") && other.contains("AutoTokenizer.from_pretrained("), "{other}");
    fs::write(root.path().join("tokenizer.json"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        .unwrap();
    let pointer = refusal();
    assert!(pointer.contains("tokenizer.json is a git-lfs pointer") && pointer.contains("git lfs pull"), "{pointer}");
    fs::write(root.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(TextTokenizer::load(root.path()), Err(TextError::Malformed { .. })));
}

#[test]
fn a_git_lfs_pointer_is_called_so() {
    let model = word_model();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 76399\n";
    fs::write(model.path().join("tokenizer.json"), pointer).unwrap();
    let error = TextTokenizer::load(model.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is a git-lfs pointer") && error.contains("`git lfs pull`"), "{error}");
}

#[test]
fn what_is_wrong_with_a_file_beside_the_tokenizer_is_said() {
    let model = word_model();
    let refusal = |file: &str, content: &str| {
        fs::write(model.path().join(file), content).unwrap();
        let refusal = TextTokenizer::load(model.path()).map(drop).unwrap_err().to_string();
        fs::remove_file(model.path().join(file)).unwrap();
        refusal
    };
    assert!(refusal("tokenizer_config.json", "{").contains("tokenizer_config.json is not JSON"));
    let pointer = "version https://git-lfs.github.com/spec/v1\n";
    assert!(refusal("added_tokens.json", pointer).contains("added_tokens.json is a git-lfs pointer"));
    for (file, content, reason) in [
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#, "the id \"x\""),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"7": 3}}"#, "added_tokens_decoder has a token"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": [1]}"#, "is not an object"),
        ("tokenizer_config.json", r#"{"eos_token": 3}"#, "eos_token has a token"),
        ("added_tokens.json", r#"{"<x>": -1}"#, "the id -1"),
    ] {
        let refusal = refusal(file, content);
        assert!(refusal.contains(file) && refusal.contains(reason), "{refusal}");
    }
}

#[test]
fn end_tokens_are_not_seen_whether_special_or_not() {
    let model = word_model();
    let tokenizer = TextTokenizer::load(model.path()).unwrap();
    let mut stream = TextStream::new(&tokenizer, &[0, 3], []);
    // Token 4, "b", ends a text of this model, and no file calls it special.
    assert_eq!(stream.push(&[5, 4]).unwrap() + &stream.finish().unwrap(), " c");
    let mut stream = TextStream::new(&tokenizer, &[0, 3], ["<eos>".to_owned()]);
    assert_eq!(stream.push(&[5, 1, 3]).unwrap() + &stream.finish().unwrap(), " c");
    assert!(stream.has_stopped(), "a stop string may be a special token");
    assert_eq!(stream.tokens(), [5, 1]);
}

#[test]
fn nothing_to_decode_is_an_empty_text_whatever_the_decoder() {
    let model = word_model();
    let path = model.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["decoder"] = json!({ "type": "BPEDecoder", "suffix": "</w>" });
    fs::write(&path, json.to_string()).unwrap();
    let tokenizer = TextTokenizer::load(model.path()).unwrap();
    for tokens in [&[][..], &[0, 1], &[999]] {
        assert_eq!(tokenizer.decode(tokens).unwrap(), "");
    }
}
