//! The same rows in every format, and files that are none.

use super::*;

#[test]
fn rows_are_the_same_in_every_format() {
    let fixture = Fixture::new();
    let load = |name: &str, content: &str| fixture.load(name, content, &given(Task::SeqCls)).unwrap();
    let lines = load("d.jsonl", "{\"text\": \"a b\", \"label\": 1}\n{\"text\": \"c\", \"label\": 0}\n");
    let files = [
        ("d.json", "\u{feff}\n [{\"text\": \"a b\", \"label\": 1},\n {\"text\": \"c\", \"label\": 0}]\n"),
        ("d.csv", "text,label\r\na b,1\r\n\"c\",0\r\n"),
        ("d.csv", "\u{feff}id,label,text\n7,1,a b\n\n8,0,c"),
        ("d.csv", "text;label\na b;1\nc;0\n"),
        ("d.CSV", "text,label\n\"a\nb\",1.0\nc,0.0\n"),
        ("d.tsv", "text\tlabel\na b\t1\nc\t0\n"),
        ("d.csv", "text\tlabel\r\na b\t1\r\nc\t0\r\n"),
        ("d.csv", "text,label,,\na b,1,,\nc,0,,\n"),
    ];
    for (name, content) in files {
        assert_eq!(load(name, content), lines, "{content}");
    }
}

#[test]
fn quoted_fields_have_commas_quotes_and_line_ends() {
    let fixture = Fixture::new();
    let csv = "prompt,completion\n\"a, \"\"b\"\"\",\"c\nc\"\n\n, b\n";
    let dataset = fixture.load("d.csv", csv, &given(Task::CausalLm)).unwrap();
    // `a,` and `"b"c` are no words of the tokenizer, so that the border does not show between the second and `"b"`.
    assert_eq!(dataset.examples, [next(&[0, 2, 2, 5], 3), next(&[0, 4], 1)]);
}

#[test]
fn columns_can_have_other_names() {
    let fixture = Fixture::new();
    let name = |name: &str| Some(name.to_owned());
    let columns = Columns { text: name("review"), label: name("stars"), ..Columns::default() };
    let stars = Given { columns, ..given(Task::SeqCls) };
    let dataset = fixture.load("d.csv", "review,stars,text\na,4,x\nb,5,x\n", &stars).unwrap();
    assert_eq!(dataset.labels.unwrap().labels(), [4, 5].map(Label::Number));
    let message = fixture.refused("d.csv", "text,label\na,1\n", &stars);
    assert!(message.starts_with("d.csv:2: `review` is missing"), "{message}");
    let sentence = fixture.load("d.tsv", "sentence\tlabel\na\tx\nb\ty\n", &given(Task::SeqCls)).unwrap();
    assert_eq!(sentence.examples.len(), 2);
    let columns = Columns { prompt: name("q"), completion: name("a"), ..Columns::default() };
    let asked = Given { columns, ..given(Task::CausalLm) };
    let row = r#"{"q": "a", "a": " b", "text": "ignored"}"#;
    assert_eq!(fixture.load("d.jsonl", row, &asked).unwrap().examples, [next(&[0, 3, 4], 2)]);
}

#[test]
fn files_that_are_no_data_are_refused() {
    let fixture = Fixture::new();
    let causal = given(Task::CausalLm);
    let not_utf8 = fixture.refused("d.jsonl", b"{\"text\": \"a b\"}\n{\"text\": \"\xff\"}\n", &causal);
    assert!(not_utf8.starts_with("d.jsonl:2: the line is not UTF-8 at byte 10"), "{not_utf8}");
    assert!(fixture.refused("t.txt", b"a\nb \xff", &causal).starts_with("t.txt:2: the line is not UTF-8 at byte 2"));
    assert!(fixture.refused("d.csv", b"text\na\n\xff\n", &causal).starts_with("d.csv:3: the line is not UTF-8"));
    let long = fixture.refused("d.jsonl", vec![b'x'; MAX_LINE_LEN + 5], &causal);
    assert!(long.starts_with("d.jsonl:1: the line is longer than 16777216 bytes"), "{long}");
    assert!(fixture.refused("d.jsonl", "\n \n", &causal).starts_with("d.jsonl has no usable examples"));
    assert!(fixture.refused("t.txt", "\n \n", &causal).starts_with("t.txt has no usable examples"));
    assert!(fixture.refused("d.json", "[]", &causal).starts_with("d.json has no usable examples"));
    assert!(fixture.refused("d.csv", "text\n", &causal).starts_with("d.csv has no usable examples"));
    assert!(fixture.refused("t.txt", "a", &given(Task::SeqCls)).contains("has no labels"));
    let absent = fixture.root.path().join("none.jsonl");
    assert!(matches!(Source::open(&absent), Err(DataError::Read { .. })));
    assert!(matches!(Source::open(fixture.root.path()), Err(DataError::Folder { .. })));
    assert!(matches!(Source::open(&fixture.root.path().join("*.jsonl")), Err(DataError::Pattern { .. })));
}

#[test]
fn other_formats_are_named_with_the_way_out() {
    let fixture = Fixture::new();
    let refused = |name: &str, content: &[u8]| fixture.refused(name, content, &given(Task::CausalLm));
    assert!(refused("d.parquet", b"PAR1\x15\x04").contains("orient='records', lines=True"));
    assert!(refused("d.jsonl.zst", b"\x28\xb5\x2f\xfd\x04").contains("compressed by zstd: unpack it with unzstd"));
    assert!(refused("d.jsonl", b"BZh91AY").contains("bunzip2"));
    assert!(
        refused("d.csv", "text,label\na,1\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>().as_slice())
            .contains("UTF-16")
    );
    assert!(refused("d.csv", b"PK\x03\x04\x14").contains("save the sheet as CSV"));
    assert!(refused("t.txt", b"\xff\xfea\x00").contains("UTF-8"));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n";
    assert!(refused("d.jsonl", pointer).contains("git lfs pull"));
}

#[test]
fn lists_and_tables_that_are_wrong_are_refused_where_they_are() {
    let fixture = Fixture::new();
    let refused = |name: &str, content: &str| fixture.refused(name, content, &given(Task::CausalLm));
    assert!(refused("d.json", "[{\"text\": \"a\"},\n 3]").starts_with("d.json:item 2: the line is not a JSON object"));
    assert!(
        refused("d.json", "[{\"text\": \"a\"},\n {\"text\": 1}]").starts_with("d.json:item 2: `text` is not a text")
    );
    let cut_off = refused("d.json", "[{\"text\": \"a\"},\n {\"text\":");
    assert!(cut_off.contains("is not a JSON list") && cut_off.contains("line 2"), "{cut_off}");
    assert!(refused("d.json", "[{\"text\": \"a\"}]\n[{\"text\": \"a\"}]").contains("trailing characters"));
    assert!(refused("d.json", "{\n \"text\": \"a\"\n}").contains("one list of objects"));
    assert!(refused("d.csv", "text,label\na\n").starts_with("d.csv:2: the record has 1 fields, the header 2"));
    assert!(refused("d.csv", "text,text\na,b\n").contains("the column `text` twice"));
    assert!(refused("d.csv", "a b\nb\n").contains("the row has `a b`"));
}
