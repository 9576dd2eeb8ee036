//! Files as they are found, with what the `datasets` library makes of them: what it reads is read, or refused with what to do.

use super::*;
use crate::data::problem::MAX_LINE_LEN;

fn causal(name: &str, content: &[u8]) -> Result<Vec<Example>, String> {
    let fixture = Fixture::new();
    match fixture.load(name, content, &given(Task::CausalLm)) {
        Ok(dataset) => Ok(dataset.examples),
        Err(_) => Err(fixture.refused(name, content, &given(Task::CausalLm))),
    }
}

#[test]
fn numbers_that_only_python_writes_are_missing_values() {
    let a = vec![next(&[0, 3], 1)];
    let lines = b"{\"text\": \"a\", \"score\": NaN, \"x\": [-Infinity, Infinity]}\n{\"text\": NaN}\n";
    assert_eq!(causal("d.jsonl", lines).unwrap(), a);
    assert_eq!(causal("d.json", b"[{\"text\": \"a\", \"score\": NaN}, {\"text\": NaN}]").unwrap(), a);
    assert_eq!(causal("d.jsonl", b"{\"text\": \"NaN a\", \"score\": NaN}\n").unwrap(), [next(&[0, 2, 3], 1)]);
    assert!(causal("d.jsonl", b"{\"text\": \"a\", \"score\": nan}\n").unwrap_err().contains("not JSON"));
    let fixture = Fixture::new();
    let rows = "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"a\", \"label\": NaN}\n";
    let message = fixture.refused("d.jsonl", rows, &given(Task::SeqCls));
    assert!(message.starts_with("d.jsonl:2: `label` is empty"), "{message}");
}

#[test]
fn a_column_that_is_there_twice_is_refused() {
    let message = causal("d.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"a\", \"x\": 1, \"text\": \"b\"}\n").unwrap_err();
    assert!(message.starts_with("d.jsonl:2: the line has `text` twice"), "{message}");
    let message = causal("d.json", b"[{\"text\": \"a\", \"text\": \"b\"}]").unwrap_err();
    assert!(message.starts_with("d.json:item 1: the line has `text` twice"), "{message}");
}

#[test]
fn a_quotation_mark_that_is_never_closed_does_not_swallow_the_rest_of_the_file() {
    for (csv, line) in [("label,text\n1,a\n2,\"b\n3,c\n", 3), ("label,text\n1,a\n2,\"b\n3,c", 3), ("text\n\"a\n", 2)] {
        let message = causal("d.csv", csv.as_bytes()).unwrap_err();
        assert!(message.starts_with(&format!("d.csv:{line}: a quotation mark")), "{message}");
    }
    assert!(causal("d.csv", b"\"text\na\n").unwrap_err().contains("the header has a quotation mark"));
    assert_eq!(causal("d.csv", b"text\n\"a\n\n\"").unwrap(), [next(&[0, 3], 1)], "closed at the end of the file");
    assert_eq!(causal("d.csv", b"text\n\"b\"\"\"\n\na").unwrap().len(), 2);
}

#[test]
fn records_without_an_end_are_refused_before_they_fill_the_memory() {
    let long = "x".repeat(MAX_LINE_LEN + (1 << 20));
    let files = [
        ("d.csv", format!("text\na\n\"{long}"), "d.csv:3"),
        ("d.json", format!("[{{\"text\": \"a\"}}, {{\"text\": \"{long}"), "d.json:item 2"),
        ("d.jsonl", format!("{{\"text\": \"a\"}}\n{{\"text\": \"{long}"), "d.jsonl:2"),
    ];
    for (name, content, place) in files {
        let message = causal(name, content.as_bytes()).unwrap_err();
        assert!(message.starts_with(&format!("{place}: the line is longer than")), "{message}");
    }
}

#[test]
fn zero_bytes_are_no_text() {
    for (name, content) in [
        ("d.jsonl", &b"{\"text\": \"a\"}\n{\"text\": \"a\0\"}\n"[..]),
        ("d.csv", b"text\na\nb\0c\n"),
        ("t.txt", b"a\na\0b"),
    ] {
        let message = causal(name, content).unwrap_err();
        assert!(message.contains("the line has a zero byte at") && message.contains("UTF-16"), "{message}");
    }
    assert_eq!(causal("d.jsonl", b"{\"text\": \"a \\u0000\"}").unwrap().len(), 1, "one that was asked for");
}

#[test]
fn what_is_no_json_says_what_files_are_taken_for() {
    let message = causal("data", b"text,label\na,1\n").unwrap_err();
    assert!(message.starts_with("data:1: ") && message.contains("names do not end with .csv"), "{message}");
    assert!(causal("d.jsonl", b"{\"text\": \"a\",}\n").unwrap_err().contains("trailing comma"));
    assert!(causal("d.json", b"[{\"text\": \"a\"},]").unwrap_err().contains("trailing comma"));
}

#[test]
fn preferences_and_ratings_are_refused_by_name_unless_columns_are_said() {
    let fixture = Fixture::new();
    let refused = |row: serde_json::Value| fixture.refused("d.jsonl", row.to_string(), &given(Task::CausalLm));
    let turn = |role: &str| json!([{"role": role, "content": "a"}]);
    for row in [
        json!({"prompt": "a", "chosen": " b", "rejected": " c"}),
        json!({"chosen": "b", "rejected": "c"}),
        json!({"prompt": turn("user"), "chosen": turn("assistant"), "rejected": turn("assistant")}),
    ] {
        assert!(refused(row).contains("preferences (DPO"));
    }
    let rated = json!({"prompt": "a", "completion": " b", "label": false});
    assert!(refused(rated.clone()).contains("KTO"));
    let table = fixture.refused("d.csv", "prompt,completion,label\na,b,True\n", &given(Task::CausalLm));
    assert!(table.contains("KTO"), "{table}");
    let columns = |completion: &str| Columns {
        prompt: Some("prompt".to_owned()),
        completion: Some(completion.to_owned()),
        ..Columns::default()
    };
    let load = |row: serde_json::Value, completion: &str| {
        let said = Given { columns: columns(completion), ..given(Task::CausalLm) };
        fixture.load("d.jsonl", row.to_string(), &said).unwrap().examples
    };
    let learnt = [next(&[0, 3, 4], 2)];
    assert_eq!(load(json!({"prompt": "a", "chosen": " b", "rejected": " c"}), "chosen"), learnt);
    assert_eq!(load(rated, "completion"), learnt);
    let scored = json!({"prompt": "a", "completion": " b", "label": 3});
    assert_eq!(fixture.load("d.jsonl", scored.to_string(), &given(Task::CausalLm)).unwrap().examples, learnt);
}

#[test]
fn columns_of_other_names_are_read_or_named() {
    assert_eq!(causal("d.jsonl", b"{\"content\": \"a b\", \"path\": \"x\"}").unwrap(), [next(&[0, 3, 4], 1)]);
    let message = causal("d.jsonl", b"{\"question\": \"a\", \"answer\": \"b\"}").unwrap_err();
    assert!(message.contains("--prompt-column question --completion-column answer"), "{message}");
    assert!(causal("d.jsonl", b"{\"body\": \"a\"}").unwrap_err().contains("--text-column"));
    let mixed =
        causal("d.jsonl", b"{\"prompt\": \"a\", \"completion\": [{\"role\": \"assistant\", \"content\": \"b\"}]}");
    assert!(mixed.unwrap_err().contains("`prompt` is a text and `completion` a list of messages"));
    let mixed = causal("d.jsonl", b"{\"prompt\": [{\"role\": \"user\", \"content\": \"b\"}], \"completion\": \"a\"}");
    assert!(mixed.unwrap_err().contains("`completion` is a text and `prompt` a list of messages"));
}
