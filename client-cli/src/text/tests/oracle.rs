//! Tokenizers of many kinds, compared with what Python's tokenizers and transformers make of them
//! (`tests/oracle/tokenizers_text.py`).

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use super::*;

const GOLDENS: &str = include_str!("../../../../tests/goldens/data/tokenizers.json");
const ENDS: &str = include_str!("../../../../tests/goldens/configs/end-tokens.json");

fn goldens() -> Value {
    serde_json::from_str(GOLDENS).unwrap()
}

fn model(goldens: &Value, kind: &Value) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let tokenizer = &goldens["tokenizers"][kind.as_str().unwrap()];
    fs::write(root.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    root
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn text_that_comes_token_by_token_is_what_the_tokens_add_to_the_prompts_text() {
    let goldens = goldens();
    let cases = goldens["decoding"].as_array().unwrap();
    assert!(cases.len() > 500);
    for case in cases {
        let root = model(&goldens, &case["kind"]);
        let clean = case["clean"].as_bool().unwrap();
        let config = serde_json::json!({ "clean_up_tokenization_spaces": clean });
        fs::write(root.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let tokenizer = TextTokenizer::load(root.path()).unwrap();
        let (prompt, tokens) = (ids(&case["prompt"]), ids(&case["ids"]));
        let expected = case["text"].as_str().unwrap();
        let mut stream = TextStream::new(&tokenizer, &prompt, []);
        let mut text: String = tokens.iter().map(|&token| stream.push(&[token]).unwrap()).collect();
        text += &stream.finish().unwrap();
        assert_eq!(text, expected, "token by token: {case}");
        let mut stream = TextStream::new(&tokenizer, &prompt, []);
        let whole = stream.push(&tokens).unwrap() + &stream.finish().unwrap();
        assert_eq!(whole, expected, "all at once: {case}");
    }
}

#[test]
fn tokens_that_other_files_name_are_those_of_transformers() {
    let goldens = goldens();
    let cases = goldens["completed"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let root = model(&goldens, &case["kind"]);
        for (name, content) in case["files"].as_object().unwrap() {
            fs::write(root.path().join(name), content.to_string()).unwrap();
        }
        let tokenizer = TextTokenizer::load(root.path()).unwrap();
        let what = format!("{} {}", case["kind"], case["name"]);
        assert_eq!(tokenizer.eos().ok().map(u64::from), case["eos"].as_u64(), "{what}");
        for text in case["texts"].as_array().unwrap() {
            let written = text["text"].as_str().unwrap();
            let encoded = tokenizer.encode(written).unwrap();
            assert_eq!(encoded, ids(&text["ids"]), "{what}: {written}");
            assert_eq!(tokenizer.encode_continuation(written).unwrap(), ids(&text["bare"]), "{what}: {written}");
            assert_eq!(tokenizer.decode(&encoded).unwrap(), text["decoded"].as_str().unwrap(), "{what}: {written}");
        }
    }
}

#[test]
fn texts_end_where_they_do_in_transformers() {
    let goldens: Value = serde_json::from_str(ENDS).unwrap();
    let cases = goldens["cases"].as_array().unwrap();
    assert!(cases.len() > 100);
    for (number, case) in cases.iter().enumerate() {
        let root = tests::word_model();
        let path = root.path().join("generation_config.json");
        match case["generation"].as_str() {
            // Python reads neither a mark in front nor what has one; both happens to files that were edited by hand.
            Some(text) if number % 2 == 1 => fs::write(path, format!("\u{feff}{text}")).unwrap(),
            Some(text) => fs::write(path, text).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let config = ModelConfig::from_json(case["config"].as_str().unwrap()).unwrap();
        let tokenizer = TextTokenizer::load(root.path()).unwrap().ending_as(&config);
        for version in ["4", "5"] {
            // An id below zero stands for none.
            let mut expected: Vec<u32> =
                case[version].as_array().unwrap().iter().filter_map(Value::as_u64).map(|id| id as u32).collect();
            let first = expected.first().copied();
            expected.sort_unstable();
            assert_eq!(tokenizer.stop_tokens(), expected, "{}", case["name"]);
            assert_eq!(tokenizer.eos().ok(), first, "{}", case["name"]);
        }
    }
}
