//! Prompts, completions and conversations against what transformers and TRL make of them (`tests/oracle/training_tokens.py`).

use std::path::Path;

use serde_json::Value;

use super::*;

const GOLDENS: &str = include_str!("../../../../tests/goldens/data/training-tokens.json");
const TOOLS: &str = include_str!("../../../../tests/goldens/data/training-tools.json");

/// A model directory with the tokenizer of the goldens, and a chat template.
fn fixture(template: Option<&str>) -> Fixture {
    let model = tempfile::tempdir().unwrap();
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/llama-gqa/model/tokenizer.json");
    fs::copy(goldens, model.path().join("tokenizer.json")).unwrap();
    fs::write(model.path().join("tokenizer_config.json"), r#"{"bos_token": "<bos>", "eos_token": "<eos>"}"#).unwrap();
    if let Some(template) = template {
        fs::write(model.path().join("chat_template.jinja"), template).unwrap();
    }
    Fixture { tokenizer: TextTokenizer::load(model.path()).unwrap(), model, root: tempfile::tempdir().unwrap() }
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
}

fn only_example(fixture: &Fixture, row: &Value) -> Example {
    let given = Given { vocab_size: 320, ..given(Task::CausalLm) };
    let examples = fixture.load("d.jsonl", row.to_string(), &given).unwrap().examples;
    let [example] = examples.try_into().unwrap();
    example
}

#[test]
fn completions_are_tokenised_as_in_trl() {
    let goldens: Value = serde_json::from_str(GOLDENS).unwrap();
    let cases = goldens["completions"].as_array().unwrap();
    assert!(cases.len() > 5);
    let fixture = fixture(None);
    for case in cases {
        let example = only_example(&fixture, case);
        // The first token of all is never learnt: nothing precedes it.
        let from = (case["learnt_from"].as_u64().unwrap() as usize).max(1);
        assert_eq!(example, next(&numbers(&case["ids"]), from), "{case}");
    }
}

#[test]
fn answers_are_those_of_transformers_with_generation_blocks_and_of_trl_without() {
    let goldens: Value = serde_json::from_str(GOLDENS).unwrap();
    let cases = goldens["conversations"].as_array().unwrap();
    assert!(cases.len() > 8);
    for case in cases {
        for (template, learnt) in [("template", "learnt"), ("plain", "learnt_by_prefix")] {
            let example = only_example(&fixture(case[template].as_str()), &json!({"messages": case["messages"]}));
            assert_eq!(example.tokens, numbers(&case["ids"]), "{case}");
            assert_eq!(mask(&example), numbers(&case[learnt]), "{learnt}: {}", case["messages"]);
        }
    }
}

/// For each token whether it is learnt.
fn mask(example: &Example) -> Vec<u32> {
    let Target::Tokens(spans) = &example.target else { panic!("{:?}", example.target) };
    (0..example.tokens.len()).map(|at| spans.iter().any(|span| span.contains(&at)).into()).collect()
}

#[test]
fn tools_calls_and_variables_are_rendered_as_by_transformers() {
    let goldens: Value = serde_json::from_str(TOOLS).unwrap();
    let cases = goldens["cases"].as_array().unwrap();
    assert!(cases.len() > 15);
    for case in cases {
        for (template, learnt) in [("marked", "learnt"), ("plain", "learnt_by_prefix")] {
            let source = &goldens["templates"][case["template"].as_str().unwrap()][template];
            let example = only_example(&fixture(source.as_str()), &case["row"]);
            assert_eq!(example.tokens, numbers(&case["ids"]), "{template} {}: {}", case["template"], case["row"]);
            assert_eq!(mask(&example), numbers(&case[learnt]), "{learnt} {}: {}", case["template"], case["row"]);
        }
    }
}
