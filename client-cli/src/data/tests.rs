use std::fs;

use petals_client::Label;
use tempfile::TempDir;

use super::*;
use crate::text::tests::word_model;

struct Fixture {
    root: TempDir,
    tokenizer: TextTokenizer,
}

impl Fixture {
    fn new() -> Self {
        let model = word_model();
        Self { tokenizer: TextTokenizer::load(model.path()).unwrap(), root: tempfile::tempdir().unwrap() }
    }

    fn load(&self, name: &str, content: impl AsRef<[u8]>, rules: &DataRules<'_>) -> Result<Dataset, DataError> {
        let path = self.root.path().join(name);
        fs::write(&path, content).unwrap();
        Dataset::load(&path, rules, &self.tokenizer)
    }

    /// The message with the directory taken out.
    fn refused(&self, name: &str, content: impl AsRef<[u8]>, rules: &DataRules<'_>) -> String {
        let message = self.load(name, content, rules).unwrap_err().to_string();
        message.replace(&format!("{}/", self.root.path().display()), "")
    }
}

fn rules(task: Task) -> DataRules<'static> {
    DataRules { task, text: TextRules::default(), labels: None }
}

fn cut(max_length: usize, append_eos: bool) -> DataRules<'static> {
    DataRules { text: TextRules { max_length: Some(max_length), append_eos }, ..rules(Task::CausalLm) }
}

fn next(tokens: &[u32], from: usize) -> Example {
    Example { tokens: tokens.to_vec(), target: Target::NextToken { from } }
}

#[test]
fn texts_and_completions_become_tokens_with_their_losses() {
    let fixture = Fixture::new();
    let data =
        concat!("\u{feff}{\"text\": \"a b\", \"extra\": 1}\r\n", "\n", "{\"prompt\": \"a\", \"completion\": \"b c\"}");
    let dataset = fixture.load("d.jsonl", data, &rules(Task::CausalLm)).unwrap();
    assert_eq!(dataset.examples, [next(&[0, 3, 4], 1), next(&[0, 3, 4, 5], 2)]);
    assert_eq!((dataset.labels, dataset.dropped), (None, 0));
}

#[test]
fn eos_is_appended_before_the_cut_and_lines_without_a_loss_are_dropped() {
    let fixture = Fixture::new();
    let data = concat!(
        "{\"text\": \"a\"}\n",
        "{\"text\": \"a b c\"}\n",
        "{\"prompt\": \"a b c\", \"completion\": \"c\"}\n",
        "{\"prompt\": \"a\", \"completion\": \"c c\"}\n"
    );
    let dataset = fixture.load("d.jsonl", data, &cut(3, true)).unwrap();
    assert_eq!(dataset.examples, [next(&[0, 3, 1], 1), next(&[0, 3, 4], 1), next(&[0, 3, 5], 2)]);
    assert_eq!(dataset.dropped, 1);
    let none = fixture.refused("d.jsonl", "{\"prompt\": \"a b c\", \"completion\": \"c\"}\n", &cut(3, false));
    assert!(none.starts_with("d.jsonl has no usable examples (1 lines left out"), "{none}");
}

#[test]
fn classes_are_in_ascending_order_of_their_labels() {
    let fixture = Fixture::new();
    let data = "{\"text\": \"a\", \"label\": 10}\n{\"text\": \"b\", \"label\": 9}\n{\"text\": \"c\", \"label\": 10}\n";
    let dataset = fixture.load("d.jsonl", data, &rules(Task::SeqCls)).unwrap();
    let classes: Vec<Target> = dataset.examples.iter().map(|example| example.target).collect();
    assert_eq!(classes, [Target::Class(1), Target::Class(0), Target::Class(1)]);
    assert_eq!(dataset.labels.unwrap().labels(), [9, 10].map(Label::Number));
}

#[test]
fn held_out_data_use_the_classes_of_the_training_data() {
    let fixture = Fixture::new();
    let known = LabelMap::from_labels(["no", "so", "yes"].map(|l| Label::Text(l.into()))).unwrap();
    let rules = DataRules { labels: Some(&known), ..rules(Task::SeqCls) };
    let dataset = fixture.load("dev.jsonl", "{\"text\": \"a\", \"label\": \"yes\"}\n", &rules).unwrap();
    assert_eq!(dataset.examples[0].target, Target::Class(2));
    assert_eq!(
        fixture.refused("dev.jsonl", "{\"text\": \"a\", \"label\": \"maybe\"}\n", &rules),
        r#"dev.jsonl:1: the label "maybe" is not one of those trained on: "no", "so", "yes""#
    );
}

#[test]
fn a_bad_line_is_named_with_what_is_wrong() {
    let fixture = Fixture::new();
    let good = r#"{"text": "a", "label": 1}"#;
    let cases = [
        ("{\"text\": \"a\"", "the line is not JSON: EOF"),
        ("[1]", "the line is not a JSON object"),
        (r#"{"label": 1}"#, r#"`text` is missing: expected {"text": …, "label": …}"#),
        (r#"{"text": "a"}"#, r#"`label` is missing: expected {"text": …, "label": …}"#),
        (r#"{"text": 3, "label": 1}"#, "`text` is not a text"),
        (r#"{"text": "", "label": 1}"#, "`text` is empty"),
        (r#"{"text": "a", "label": 1.5}"#, "`label` is 1.5: expected an integer or a text"),
        (r#"{"text": "a", "label": true}"#, "`label` is true: expected an integer or a text"),
        (r#"{"text": "a", "label": "x"}"#, "the label \"x\" is of another kind than 1 before it"),
    ];
    for (line, problem) in cases {
        let message = fixture.refused("d.jsonl", format!("{good}\n\n{line}\n"), &rules(Task::SeqCls));
        assert!(message.starts_with(&format!("d.jsonl:3: {problem}")), "{message}");
    }
    let causal = [
        (r#"{"completion": "a"}"#, r#"`prompt` is missing: expected {"text": …} or {"prompt": …, "completion": …}"#),
        (r#"{"prompt": "a", "completion": ""}"#, "`completion` is empty"),
        (r#"{"text": "a", "prompt": "a"}"#, "the line has `text` and `prompt`"),
    ];
    for (line, problem) in causal {
        let message = fixture.refused("d.jsonl", line, &rules(Task::CausalLm));
        assert!(message.starts_with(&format!("d.jsonl:1: {problem}")), "{message}");
    }
}

#[test]
fn files_that_are_no_data_are_refused() {
    let fixture = Fixture::new();
    let causal = rules(Task::CausalLm);
    let not_utf8 = fixture.refused("d.jsonl", b"{\"text\": \"a b\"}\n{\"text\": \"\xff\"}\n", &causal);
    assert_eq!(not_utf8, "d.jsonl:2: the line is not UTF-8 at byte 10");
    assert_eq!(fixture.refused("t.txt", b"a\nb \xff", &causal), "t.txt:2: the line is not UTF-8 at byte 2");
    let long = fixture.refused("d.jsonl", vec![b'x'; error::MAX_LINE_LEN + 5], &causal);
    assert_eq!(long, "d.jsonl:1: the line is longer than 16777216 bytes");
    assert!(fixture.refused("d.jsonl", "\n \n", &causal).starts_with("d.jsonl has no usable examples"));
    assert!(fixture.refused("t.txt", "\n \n", &causal).starts_with("t.txt has no usable examples"));
    assert!(fixture.refused("t.txt", "a", &rules(Task::SeqCls)).contains("has no labels"));
    let one = fixture.load("d.jsonl", "{\"text\": \"a\", \"label\": 1}\n", &rules(Task::SeqCls));
    assert!(matches!(one, Err(DataError::Labels { .. })));
    let absent = Dataset::load(&fixture.root.path().join("none.jsonl"), &causal, &fixture.tokenizer);
    assert!(matches!(absent, Err(DataError::Read { .. })));
}

#[test]
fn plain_text_is_cut_into_chunks() {
    let fixture = Fixture::new();
    let dataset = fixture.load("t.txt", "a b c\na b\n", &cut(3, true)).unwrap();
    assert_eq!(dataset.examples, [next(&[0, 3, 4], 1), next(&[5, 3, 4], 1)]);
    assert_eq!(dataset.dropped, 1, "a chunk of one token, <eos>, has nothing to predict");
}

#[test]
fn the_digest_changes_with_tokens_and_targets() {
    let digest = |examples: Vec<Example>| Dataset { examples, labels: None, dropped: 0 }.digest();
    let one = digest(vec![next(&[1, 2], 1)]);
    assert_eq!(one, digest(vec![next(&[1, 2], 1)]));
    assert_ne!(one, digest(vec![next(&[1, 3], 1)]));
    assert_ne!(one, digest(vec![next(&[1, 2], 2)]));
    assert_ne!(digest(vec![next(&[1], 1), next(&[2], 1)]), digest(vec![next(&[1, 2], 1)]));
}
