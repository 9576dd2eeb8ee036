use std::fs;

use petals_client::Label;
use serde_json::json;
use tempfile::TempDir;

use super::problem::MAX_LINE_LEN;
use super::*;
use crate::text::tests::word_model;

mod archives;
mod conversations;
mod formats;
mod labels;
mod oracle;
mod wild;

/// A model directory with the word tokenizer, and a place for data files.
struct Fixture {
    root: TempDir,
    model: TempDir,
    tokenizer: TextTokenizer,
}

/// What the tests change of the rules.
#[derive(Clone)]
struct Given {
    task: Task,
    text: TextRules,
    labels: Option<LabelMap>,
    columns: Columns,
    vocab_size: usize,
}

impl Fixture {
    fn new() -> Self {
        let model = word_model();
        Self { tokenizer: TextTokenizer::load(model.path()).unwrap(), model, root: tempfile::tempdir().unwrap() }
    }

    fn load(&self, name: &str, content: impl AsRef<[u8]>, given: &Given) -> Result<Dataset, DataError> {
        let path = self.root.path().join(name);
        fs::write(&path, content).unwrap();
        let templates = Templates::new(self.model.path().to_owned(), None);
        let rules = DataRules {
            task: given.task,
            text: given.text,
            labels: given.labels.as_ref(),
            columns: &given.columns,
            templates: &templates,
            vocab_size: given.vocab_size,
        };
        Dataset::load(&path, &rules, &self.tokenizer)
    }

    /// The message with the directory taken out, and all of its causes.
    fn refused(&self, name: &str, content: impl AsRef<[u8]>, given: &Given) -> String {
        let error = self.load(name, content, given).unwrap_err();
        let message = format!("{:#}", anyhow::Error::new(error));
        message.replace(&format!("{}/", self.root.path().display()), "")
    }
}

fn given(task: Task) -> Given {
    Given { task, text: TextRules::default(), labels: None, columns: Columns::default(), vocab_size: 6 }
}

fn cut(max_length: usize, append_eos: bool) -> Given {
    Given { text: TextRules { max_length: Some(max_length), append_eos }, ..given(Task::CausalLm) }
}

fn next(tokens: &[u32], from: usize) -> Example {
    Example { tokens: tokens.to_vec(), target: Target::NextToken { from } }
}

#[test]
fn texts_and_completions_become_tokens_with_their_losses() {
    let fixture = Fixture::new();
    let data =
        concat!("\u{feff}{\"text\": \"a b\", \"extra\": 1}\r\n", "\n", "{\"prompt\": \"a\", \"completion\": \" b c\"}");
    let dataset = fixture.load("d.jsonl", data, &given(Task::CausalLm)).unwrap();
    assert_eq!(dataset.examples, [next(&[0, 3, 4], 1), next(&[0, 3, 4, 5], 2)]);
    assert_eq!((dataset.labels, dataset.counts.left_out(), dataset.counts.longest), (None, 0, 4));
}

#[test]
fn a_token_over_the_border_is_the_completions() {
    let fixture = Fixture::new();
    let rows = json!([{"prompt": "a b", "completion": "b c"}, {"prompt": "a ", "completion": "b"}]);
    let dataset = fixture.load("d.json", rows.to_string(), &given(Task::CausalLm)).unwrap();
    assert_eq!(dataset.examples, [next(&[0, 3, 2, 5], 2), next(&[0, 3, 4], 2)]);
}

#[test]
fn an_empty_prompt_is_no_prompt() {
    let fixture = Fixture::new();
    let rows = concat!("{\"prompt\": \"\", \"completion\": \"a b\"}\n", "{\"prompt\": null, \"completion\": \"c\"}\n");
    let dataset = fixture.load("d.jsonl", rows, &given(Task::CausalLm)).unwrap();
    assert_eq!(dataset.examples, [next(&[0, 3, 4], 1), next(&[0, 5], 1)]);
    // Without a token in front the first one cannot be predicted.
    let path = fixture.model.path().join("tokenizer.json");
    let mut plain: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    plain["post_processor"] = serde_json::Value::Null;
    fs::write(&path, plain.to_string()).unwrap();
    let tokenizer = TextTokenizer::load(fixture.model.path()).unwrap();
    let fixture = Fixture { tokenizer, ..fixture };
    let dataset = fixture.load("d.jsonl", rows, &given(Task::CausalLm)).unwrap();
    assert_eq!((dataset.examples, dataset.counts.without_label), (vec![next(&[3, 4], 1)], 1));
}

#[test]
fn rows_without_text_are_left_out_and_counted() {
    let fixture = Fixture::new();
    let rows = concat!(
        "{\"text\": \"a\", \"label\": 1}\n",
        "{\"text\": \"\", \"label\": 0}\n",
        "{\"text\": \" \\t\\n\", \"label\": 0}\n",
        "{\"text\": null, \"label\": 0}\n",
        "{\"text\": \"b\", \"label\": 0}\n"
    );
    let dataset = fixture.load("d.jsonl", rows, &given(Task::SeqCls)).unwrap();
    assert_eq!((dataset.examples.len(), dataset.counts.empty, dataset.counts.rows), (2, 3, 5));
    let rows = "{\"text\": \"a\"}\n{\"text\": \" \"}\n{\"prompt\": \"a\", \"completion\": \"\"}\n";
    let dataset = fixture.load("d.jsonl", rows, &given(Task::CausalLm)).unwrap();
    assert_eq!((dataset.examples.len(), dataset.counts.empty), (1, 2));
    let none = fixture.refused("d.jsonl", "{\"text\": \"\"}\n{\"text\": \" \"}\n", &given(Task::CausalLm));
    assert_eq!(none, "d.jsonl has no usable examples (2 rows, 2 left out: 2 empty)");
}

#[test]
fn eos_is_appended_before_the_cut_and_rows_without_a_loss_are_counted() {
    let fixture = Fixture::new();
    let data = concat!(
        "{\"text\": \"a\"}\n",
        "{\"text\": \"a <eos>\"}\n",
        "{\"text\": \"a b c\"}\n",
        "{\"prompt\": \"a b c\", \"completion\": \" c\"}\n",
        "{\"prompt\": \"a\", \"completion\": \" c c\"}\n"
    );
    let dataset = fixture.load("d.jsonl", data, &cut(3, true)).unwrap();
    let once = next(&[0, 3, 1], 1);
    assert_eq!(dataset.examples, [once.clone(), once, next(&[0, 3, 4], 1), next(&[0, 3, 5], 2)]);
    let counts = dataset.counts;
    assert_eq!((counts.without_label, counts.cut, counts.longest), (1, 3, 6));
    let none = fixture.refused("d.jsonl", "{\"prompt\": \"a b c\", \"completion\": \" c\"}\n", &cut(3, false));
    assert!(none.starts_with("d.jsonl has no usable examples (1 rows, 1 left out: 1 too short or cut off"), "{none}");
}

#[test]
fn a_bad_row_is_named_with_what_is_wrong() {
    let fixture = Fixture::new();
    let good = r#"{"text": "a", "label": 1}"#;
    let cases = [
        ("{\"text\": \"a\"", "the line is not JSON: EOF"),
        ("[1]", "the line is not a JSON object"),
        (r#"{"label": 1}"#, r#"`text` is missing: expected {"text": …, "label": …}, or names given by --text-column"#),
        (r#"{"review": "a", "label": 1}"#, "`text` is missing"),
        (r#"{"text": "a", "stars": 1}"#, "`label` is missing"),
        (r#"{"text": 3, "label": 1}"#, "`text` is not a text"),
    ];
    for (line, problem) in cases {
        let message = fixture.refused("d.jsonl", format!("{good}\n\n{line}\n"), &given(Task::SeqCls));
        assert!(message.starts_with(&format!("d.jsonl:3: {problem}")), "{message}");
    }
    let named = fixture.refused("d.jsonl", r#"{"text": "a", "stars": 1}"#, &given(Task::SeqCls));
    assert!(named.contains("; the row has ") && named.contains("`text`") && named.contains("`stars`"), "{named}");
    let causal = [
        (r#"{"completion": "a"}"#, "`prompt` is missing: expected "),
        (r#"{"prompt": "a"}"#, "`completion` is missing: expected "),
        (r#"{"prompt": 3, "completion": "a"}"#, "`prompt` is not a text"),
        (r#"{"question": "a"}"#, "no column to learn from: expected "),
        (r#"{"text": "a", "prompt": "a"}"#, "the line has `text` and `prompt`"),
    ];
    for (line, problem) in causal {
        let message = fixture.refused("d.jsonl", line, &given(Task::CausalLm));
        assert!(message.starts_with(&format!("d.jsonl:1: {problem}")), "{message}");
    }
}

#[test]
fn tokens_of_another_models_tokenizer_are_refused_by_line() {
    let fixture = Fixture::new();
    let small = Given { vocab_size: 5, ..given(Task::CausalLm) };
    let message = fixture.refused("d.jsonl", "{\"text\": \"a b\"}\n{\"text\": \"a c\"}\n", &small);
    assert!(message.starts_with("d.jsonl:2: the tokenizer makes token 5"), "{message}");
    assert!(fixture.refused("t.txt", "a c", &small).contains("token 5"));
}

#[test]
fn plain_text_is_cut_into_windows() {
    let fixture = Fixture::new();
    let dataset = fixture.load("t.txt", "a b c\na b\n", &cut(3, true)).unwrap();
    assert_eq!(dataset.examples, [next(&[0, 3, 4], 1), next(&[5, 3, 4], 1)]);
    assert_eq!(dataset.counts.without_label, 1, "a window of one token, <eos>, has nothing to predict");
    assert_eq!(dataset.counts.cut, 0, "nothing is lost by windows");
}

#[test]
fn the_digest_is_that_of_the_examples_before_they_are_cut() {
    let fixture = Fixture::new();
    let digest = |rows: &str, given: &Given| fixture.load("d.jsonl", rows, given).unwrap().digest;
    let rows = "{\"text\": \"a b c\"}\n{\"prompt\": \"a b\", \"completion\": \" c\"}\n";
    let whole = digest(rows, &given(Task::CausalLm));
    assert_eq!(whole, digest(rows, &cut(3, false)), "cut to 3 tokens, and one of them left out");
    assert_ne!(whole, digest(rows, &cut(9, true)));
    assert_ne!(whole, digest("{\"text\": \"a b c\"}\n{\"text\": \"a b c\"}\n", &given(Task::CausalLm)));
    let text = |given: &Given| fixture.load("t.txt", "a b c a b c", given).unwrap().digest;
    assert_eq!(text(&cut(3, false)), text(&cut(5, false)));
}
