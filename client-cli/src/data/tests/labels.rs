//! Labels as they are found in the wild.

use super::*;

fn classes(labels: &[&str]) -> Result<Dataset, String> {
    let fixture = Fixture::new();
    let rows: Vec<String> = labels.iter().map(|label| format!(r#"{{"text": "a", "label": {label}}}"#)).collect();
    let path = "d.jsonl";
    let loaded = fixture.load(path, rows.join("\n"), &given(Task::SeqCls));
    loaded.map_err(|_| fixture.refused(path, rows.join("\n"), &given(Task::SeqCls)))
}

fn numbers(labels: &[&str]) -> (Vec<Label>, Vec<usize>) {
    let dataset = classes(labels).unwrap();
    let counts = dataset.of_each_class();
    (dataset.labels.unwrap().labels().to_vec(), counts)
}

#[test]
fn classes_are_in_ascending_order_of_their_labels() {
    let dataset = classes(&["10", "9", "10"]).unwrap();
    let targets: Vec<Target> = dataset.examples.iter().map(|example| example.target.clone()).collect();
    assert_eq!(targets, [Target::Class(1), Target::Class(0), Target::Class(1)]);
    assert_eq!(dataset.labels.unwrap().labels(), [9, 10].map(Label::Number));
}

#[test]
fn whole_floats_and_booleans_are_numbers() {
    let zero_and_one: Vec<Label> = [0, 1].map(Label::Number).into();
    assert_eq!(numbers(&["1.0", "0.0", "1.0"]), (zero_and_one.clone(), vec![1, 2]));
    assert_eq!(numbers(&["true", "false"]), (zero_and_one.clone(), vec![1, 1]));
    assert_eq!(numbers(&["true", "0", "1.0"]), (zero_and_one, vec![1, 2]));
    assert_eq!(numbers(&["-1e0", "3"]).0, [-1, 3].map(Label::Number));
}

#[test]
fn space_around_labels_is_no_other_class() {
    let dataset = classes(&[r#""positive""#, r#""positive ""#, r#"" negative\n""#]).unwrap();
    assert_eq!(dataset.labels.as_ref().unwrap().len(), 2);
    assert_eq!((dataset.of_each_class(), dataset.counts.trimmed_labels), (vec![1, 2], 2));
}

#[test]
fn labels_that_are_no_classes_are_refused_by_line() {
    let cases = [
        (["1", "1.5"], "d.jsonl:2: `label` is 1.5: expected an integer or a text. Numbers with a fraction"),
        (["1", "null"], "d.jsonl:2: `label` is empty: give the row a label"),
        (["\"x\"", "\" \""], "d.jsonl:2: `label` is empty"),
        (["1", "[1]"], "d.jsonl:2: `label` is a list"),
        (["1", "{}"], "d.jsonl:2: `label` is an object"),
        (["1", "1e300"], "d.jsonl:2: `label` is 1e"),
        (["1", "18446744073709551615"], "d.jsonl:2: `label` is 18446744073709551615"),
        (["1", "\"x\""], "d.jsonl:2: the label \"x\" is of another kind than 1 before it"),
    ];
    for (labels, problem) in cases {
        let message = classes(&labels).unwrap_err();
        assert!(message.starts_with(problem), "{message}");
    }
    let one = classes(&["\"positive\"", "\"positive\""]).unwrap_err();
    assert_eq!(one, "all labels in d.jsonl are \"positive\": a classifier needs at least two different ones");
    let many: Vec<String> = (0..10_001).map(|label| label.to_string()).collect();
    let many = classes(&many.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_err();
    assert!(many.contains("10001") && many.contains("Regression"), "{many}");
}

#[test]
fn labels_of_tables_are_numbers_if_all_of_them_are() {
    let fixture = Fixture::new();
    let load = |rows: &str, labels: Option<LabelMap>| {
        let given = Given { labels, ..given(Task::SeqCls) };
        fixture.load("d.csv", format!("text,label\n{rows}"), &given).map(|dataset| dataset.labels.unwrap())
    };
    assert_eq!(load("a,1\nb, 0\n", None).unwrap().labels(), [0, 1].map(Label::Number));
    let texts = ["1", "x"].map(|label| Label::Text(label.into()));
    assert_eq!(load("a,1\nb,x\n", None).unwrap().labels(), texts);
    let known = LabelMap::from_labels(texts).unwrap();
    assert!(load("a,1\na,1\n", Some(known)).is_ok(), "held-out data have the kind of the training data");
    assert!(load("a,\n", None).is_err(), "a label that is missing");
}

#[test]
fn held_out_data_use_the_classes_of_the_training_data() {
    let fixture = Fixture::new();
    let known = LabelMap::from_labels(["no", "so", "yes"].map(|l| Label::Text(l.into()))).unwrap();
    let rules = Given { labels: Some(known), ..given(Task::SeqCls) };
    let dataset = fixture.load("dev.jsonl", "{\"text\": \"a\", \"label\": \"yes\"}\n", &rules).unwrap();
    assert_eq!(dataset.examples[0].target, Target::Class(2));
    assert_eq!(
        fixture.refused("dev.jsonl", "{\"text\": \"a\", \"label\": \"maybe\"}\n", &rules),
        r#"dev.jsonl:1: the label "maybe" is not one of those trained on: "no", "so", "yes""#
    );
}
