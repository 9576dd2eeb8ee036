use std::fs;

use petals_protocol::{Injection, WeightChange};

use super::*;
use crate::adapter::labels::{Label, LabelMap};
use crate::adapter::manifest::TextRules;
use crate::adapter::tests::named as model;

fn card(model: &AdaptedModel, injection: Injection, labels: Option<LabelMap>, details: &CardDetails) -> String {
    let shape = TableShape {
        injection,
        weights: WeightChange::None,
        scale: 1.0,
        blocks: 3,
        prefix_len: 2,
        widths: model.widths,
        labels: labels.as_ref().map(LabelMap::len),
    };
    let manifest = AdapterManifest {
        version: AdapterManifest::VERSION,
        model: Some(model.id.clone()),
        mode: shape.mode(),
        injection,
        prefix_len: 2,
        task: shape.task(),
        labels,
        step: 17,
        text: TextRules::default(),
        weights: None,
    };
    text(&manifest, &shape, model, details)
}

fn details() -> CardDetails {
    let data = |file: &str, examples| Some(CardData { file: file.into(), examples });
    CardDetails {
        data: data("train: \"a\" | b.jsonl", 90),
        held_out: data("dev.jsonl", 10),
        settings: BTreeMap::from([("--lr".to_owned(), "0.01".to_owned())]),
        scores: vec![
            CardScore { metric: "accuracy", name: "Accuracy", value: 0.9375 },
            CardScore { metric: "loss", name: "Loss", value: 1.25e-5 },
        ],
        measured_at: 15,
    }
}

#[test]
fn a_card_says_what_the_adapter_is_and_how_well_it_does() {
    let labels = LabelMap::from_labels(["no", "<b>yes"].map(|label| Label::Text(label.into()))).unwrap();
    let card = card(&model("tiny", "models/tiny"), Injection::None, Some(labels), &details());
    let front =
        "---\nbase_model: \"tiny\"\nlibrary_name: peft\npipeline_tag: text-classification\ntags:\n- \"petals-tune\"\n";
    assert!(card.starts_with(front), "{card}");
    for part in [
        "    dataset:\n      type: \"dev.jsonl\"\n",
        "    - type: accuracy\n      name: Accuracy\n      value: 0.937500\n",
        "      value: 1.2500e-5\n---\n",
        "| trained on | train: \"a\" \\| b.jsonl, 90 examples |",
        "| classes, in the order of the head | \"&lt;b&gt;yes\", \"no\" |",
        "On held-out data, after 15 steps.",
        "| --lr | 0.01 |",
        "AutoModelForSequenceClassification.from_pretrained(\"tiny\", num_labels=2)",
        "petals-tune eval --data FILE --model BASE_MODEL",
    ] {
        assert!(card.contains(part), "{part} is missing in {card}");
    }
}

#[test]
fn without_measurements_there_is_no_model_index_and_without_a_kind_of_peft_no_code_for_it() {
    let card = card(&model("tiny", "tiny"), Injection::Replace, None, &CardDetails::default());
    assert!(!card.contains("model-index") && !card.contains("from peft"), "{card}");
    assert!(card.contains("no PEFT counterpart") && card.contains("pipeline_tag: text-generation"), "{card}");
}

#[test]
fn the_base_model_is_called_as_the_hub_calls_it() {
    for (name, path, expected) in [
        ("Llama", "/home/me/models/Llama", "Llama"),
        ("meta/Llama", "Llama", "meta/Llama"),
        ("Llama", "/cache/hub/models--meta--Llama/snapshots/0123abcd", "meta/Llama"),
        ("other", "/cache/hub/models--meta--Llama/snapshots/0123abcd", "other"),
        ("gpt2", "/cache/hub/models--gpt2/snapshots/0123abcd", "gpt2"),
    ] {
        assert_eq!(base::hub_name(&model(name, path)), expected, "{path}");
    }
}

#[test]
fn a_readme_of_somebody_else_stays() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(FILE);
    let read = || fs::read(&path).unwrap();
    let ours = card(&model("tiny", "tiny"), Injection::None, None, &CardDetails::default());
    write(root.path(), &ours).unwrap();
    write(root.path(), &ours.replace("17 steps", "18 steps")).unwrap();
    assert!(String::from_utf8_lossy(&read()).contains("18 steps"), "ours is written anew");
    let edited = ours.replace(&format!("{MARK}\n"), "");
    let quoting = format!("# Mine\n\nIt says `{MARK}`.\n");
    for theirs in [edited.as_bytes(), quoting.as_bytes(), b"", b"\xff\xfe"] {
        fs::write(&path, theirs).unwrap();
        write(root.path(), &ours).unwrap();
        assert_eq!(read(), theirs);
    }
}
