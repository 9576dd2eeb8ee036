//! Vocabularies that llama.cpp's converter made of tokenizers, against what transformers makes of those (`tests/oracle/gguf_tokenizers.py`).

use std::path::PathBuf;

use super::*;
use crate::chat::ChatTemplate;
use crate::text::TextTokenizer;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/gguf/tokenizers").join(name)
}

fn cases() -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(path("cases.json")).unwrap()).unwrap()
}

#[test]
fn tokens_and_texts_are_those_of_the_tokenizers_that_vocabularies_were_made_from() {
    let cases = cases();
    assert!(cases.len() > 8);
    for (name, cases) in cases {
        let (file, pre) = name.split_once(' ').map_or((name.as_str(), None), |(file, pre)| (file, Some(pre)));
        let mut vocabulary = GgufVocabulary::read(&path(&format!("{file}.gguf"))).unwrap();
        vocabulary.pre = pre.map_or(vocabulary.pre, |pre| Some(pre.to_owned()));
        // The flag that the converter wrote for this file holds for all names.
        let tokenizer = TextTokenizer::of_parts(of(&vocabulary).unwrap(), &vocabulary.path).unwrap();
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"].as_str().unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn every_name_makes_a_tokenizer_and_others_are_refused_by_name() {
    let mut vocabulary = GgufVocabulary::read(&path("bpe.gguf")).unwrap();
    for name in splits::names() {
        vocabulary.pre = Some(name.to_owned());
        let (tokenizer, _) = of(&vocabulary).unwrap();
        assert!(!tokenizer.encode_fast("It's 12345 of them.", false).unwrap().get_ids().is_empty(), "{name}");
    }
    vocabulary.pre = Some("kimi-k2".to_owned());
    let error = of(&vocabulary).unwrap_err().to_string();
    assert!(error.contains("bpe.gguf: `tokenizer.ggml.pre` is kimi-k2") && error.contains("llama-bpe"), "{error}");
    vocabulary.model = "t5".to_owned();
    assert!(of(&vocabulary).unwrap_err().to_string().contains("`tokenizer.ggml.model` is t5"));
}

#[test]
fn ends_and_templates_are_the_files() {
    let tokenizer = TextTokenizer::load(&path("spm.gguf")).unwrap();
    assert_eq!((tokenizer.eos().unwrap(), tokenizer.stop_tokens()), (2, &[2][..]));
    assert_eq!(tokenizer.roles()[0], ("bos_token", "<s>".to_owned()));
    let template = ChatTemplate::load(&path("spm.gguf"), None).unwrap();
    assert_eq!(template.source(), "{{ bos_token }}{{ messages[0].content }}");
    assert!(ChatTemplate::load(&path("bpe.gguf"), None).unwrap_err().to_string().contains("tokenizer.chat_template"));
    let mut vocabulary = GgufVocabulary::read(&path("bpe.gguf")).unwrap();
    for (id, name) in [(2, "<|end|>"), (3, "<|return|>")] {
        vocabulary.tokens[id] = name.to_owned();
        vocabulary.kinds[id] = TokenKind::Control;
    }
    assert_eq!(ends(&vocabulary), [1, 2]);
    vocabulary.tokens[4] = "<|call|>".to_owned();
    vocabulary.kinds[4] = TokenKind::Control;
    assert_eq!(ends(&vocabulary), [1, 3, 4]);
}

/// llama.cpp's own vocabularies of real models, with the texts of its tests and the tokens that transformers has for them: its folder `models`, which
/// `PETALS_GGUF_VOCABULARIES` names. They have some ten megabytes.
#[test]
fn vocabularies_of_real_models_have_the_tokens_that_llama_cpp_tests() {
    let Some(folder) = std::env::var_os("PETALS_GGUF_VOCABULARIES") else { return };
    for name in ["llama-bpe", "llama-spm", "phi-3", "qwen2", "gpt-2", "falcon", "mpt", "starcoder", "refact"] {
        let path = Path::new(&folder).join(format!("ggml-vocab-{name}.gguf"));
        let text = |end| std::fs::read_to_string(path.with_extension(format!("gguf.{end}"))).unwrap();
        let tokenizer = TextTokenizer::load(&path).unwrap();
        let (input, output) = (text("inp"), text("out"));
        let (texts, lines) = (input.split("\n__ggml_vocab_test__\n"), output.lines());
        let (mut compared, mut wrong) = (0, 0);
        for (text, line) in texts.zip(lines) {
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let got = tokenizer.encode_continuation(text).unwrap();
            compared += 1;
            if got != expected {
                wrong += 1;
                println!("{name}: {text:?}: {got:?}, not {expected:?}");
            }
        }
        println!("{name}: {wrong} of {compared} wrong");
        assert!(compared > 40 && wrong == 0, "{name}: {wrong} of {compared} wrong");
    }
}
