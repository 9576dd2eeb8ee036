use std::fs;

use petals_protocol::{Fingerprint, Injection, Module, Modules, WeightChange};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use super::names::Task;
use super::tables::{InitRule, TableInit, TableShape};
use super::*;

fn model() -> AdaptedModel {
    named("tiny", "models/tiny")
}

/// A model of three blocks by this name, from this place.
pub(super) fn named(name: &str, path: &str) -> AdaptedModel {
    of_family(name, path, json!({"model_type": "llama"}))
}

/// The same of any family: queries four wide, with two heads, and keys two wide where the family can have fewer of them.
pub(super) fn of_family(name: &str, path: &str, own: Value) -> AdaptedModel {
    let mut config = json!({
        "vocab_size": 16, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rotary_pct": 1.0,
    });
    if let (Value::Object(all), Value::Object(own)) = (&mut config, own) {
        all.extend(own);
    }
    let config = ModelConfig::from_json(&config.to_string()).unwrap();
    AdaptedModel::new(ModelId::new(name, Fingerprint([1; 8])).unwrap(), path.to_owned(), &config)
}

fn tables(injection: Injection, labels: Option<usize>) -> PromptTables {
    let shape = TableShape {
        injection,
        weights: WeightChange::None,
        scale: 1.0,
        blocks: 3,
        prefix_len: 2,
        widths: model().widths,
        labels,
    };
    let init = TableInit { rule: InitRule::Normal, deep: None, std: 1.0, vocab_size: 1, seed: 1 };
    PromptTables::initialise(shape, &init, |_| Ok::<_, std::io::Error>(vec![])).unwrap()
}

fn adapter(injection: Injection, labels: Option<usize>) -> Adapter {
    let map = labels.map(|count| LabelMap::numbered(count).unwrap());
    let text = TextRules { max_length: Some(32), append_eos: true };
    Adapter::new(&model(), tables(injection, labels), map, text, 17)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let bytes = fs::read(directory.join(TENSORS_FILE)).unwrap();
    let mut names: Vec<String> =
        SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    names.sort();
    names
}

/// Writes a file of f32 zeros, as a foreign program would.
fn write_foreign(directory: &Path, tensors: &[(&str, &[usize])]) {
    let zeros = vec![0; 4096];
    let views = tensors.iter().map(|(name, shape)| {
        let len = shape.iter().product::<usize>() * 4;
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), &zeros[..len]).unwrap())
    });
    fs::write(directory.join(TENSORS_FILE), safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn every_kind_of_adapter_survives_saving_and_loading() {
    for injection in [Injection::None, Injection::Add, Injection::Replace] {
        for labels in [None, Some(3)] {
            let root = tempfile::tempdir().unwrap();
            let saved = adapter(injection, labels);
            saved.save(root.path(), &model()).unwrap();
            assert_eq!(Adapter::load(root.path(), &model()).unwrap(), saved);
        }
    }
}

/// One of every kind of adapter: what is in front of the text, and what is changed of the weights.
fn of_every_kind(labels: Option<usize>) -> Vec<Adapter> {
    let low_rank = WeightChange::LowRank { rank: 2, modules: Module::ALL.into_iter().collect() };
    let changes = [WeightChange::None, low_rank, WeightChange::Scales { modules: Modules::SCALED }];
    let injections = [Injection::None, Injection::Add, Injection::Replace, Injection::KeysValues];
    let fronts = injections.map(|injection| (injection, 2)).into_iter().chain([(Injection::None, 0)]);
    let all = fronts.flat_map(|front| changes.map(|weights| (front, weights)));
    let kinds = all.filter(|((_, rows), weights)| *rows > 0 || *weights != WeightChange::None);
    kinds
        .map(|((injection, prefix_len), weights)| {
            let scale = if matches!(weights, WeightChange::LowRank { .. }) { 0.75 } else { 1.0 };
            let widths = model().widths;
            let shape = TableShape { injection, weights, scale, blocks: 3, prefix_len, widths, labels };
            let mut tables = PromptTables::zeros(shape);
            for (number, (_, values)) in tables.parts_mut().each_mut().enumerate() {
                values.iter_mut().enumerate().for_each(|(at, value)| *value = (1000 * number + at) as f32);
            }
            let labels = labels.map(|labels| LabelMap::numbered(labels).unwrap());
            Adapter::new(&model(), tables, labels, TextRules::default(), 17)
        })
        .collect()
}

#[test]
fn what_is_beside_the_weights_survives_saving_and_loading_under_the_names_that_peft_has() {
    for saved in of_every_kind(None).into_iter().chain(of_every_kind(Some(3))) {
        let root = tempfile::tempdir().unwrap();
        saved.save(root.path(), &model()).unwrap();
        assert_eq!(Adapter::load(root.path(), &model()).unwrap(), saved, "{}", saved.manifest.mode);
        let kind = json(&root.path().join("adapter_config.json"))["peft_type"].as_str().unwrap().to_owned();
        let expected = match saved.manifest.mode.to_string().as_str() {
            "ptune" => "PROMPT_TUNING",
            "deep_ptune" => "PETALS_DEEP_PROMPT_TUNING",
            "prefix" => "PREFIX_TUNING",
            "lora" => "LORA",
            "ia3" => "IA3",
            _ => "PETALS_MIXED",
        };
        assert_eq!(kind, expected);
        if kind == "LORA" {
            let name = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight";
            assert!(names(root.path()).iter().any(|found| found == name));
        }
    }
}

#[test]
fn a_ptune_classifier_has_the_names_that_peft_wants() {
    let root = tempfile::tempdir().unwrap();
    adapter(Injection::None, Some(3)).save(root.path(), &model()).unwrap();
    assert_eq!(names(root.path()), ["base_model.score.weight", "prompt_embeddings", "score.weight"]);
    let config = json(&root.path().join("adapter_config.json"));
    assert_eq!(config["peft_type"], "PROMPT_TUNING");
    assert_eq!(config["task_type"], "SEQ_CLS");
    assert_eq!((&config["num_virtual_tokens"], &config["token_dim"]), (&Value::from(2), &Value::from(4)));
    assert_eq!(config["base_model_name_or_path"], "models/tiny");
    let manifest = json(&root.path().join("petals_adapter.json"));
    assert_eq!((&manifest["mode"], &manifest["step"]), (&Value::from("ptune"), &Value::from(17)));
    assert_eq!(manifest["labels"], serde_json::json!([0, 1, 2]));
}

#[test]
fn a_deep_adapter_has_the_documented_tensors_and_a_type_that_peft_refuses() {
    let root = tempfile::tempdir().unwrap();
    adapter(Injection::Replace, Some(2)).save(root.path(), &model()).unwrap();
    assert_eq!(names(root.path()), ["intermediate_prompt_embeddings", "prompt_embeddings", "score.weight"]);
    assert_eq!(json(&root.path().join("adapter_config.json"))["peft_type"], "PETALS_DEEP_PROMPT_TUNING");
}

#[test]
fn tables_without_a_manifest_are_known_by_their_shapes() {
    let root = tempfile::tempdir().unwrap();
    let load = |tensors: &[(&str, &[usize])]| {
        write_foreign(root.path(), tensors);
        Adapter::load(root.path(), &model()).map(|adapter| adapter.manifest)
    };
    let plain = load(&[("prompt_embeddings", &[5, 4])]).unwrap();
    assert_eq!((plain.mode, plain.prefix_len, plain.task), (TuningMode::PTUNE, 5, Task::CausalLm));
    let peft = load(&[("prompt_embeddings", &[5, 4]), ("base_model.score.weight", &[2, 4])]).unwrap();
    assert_eq!((peft.task, peft.labels), (Task::SeqCls, Some(LabelMap::numbered(2).unwrap())));
    let add = load(&[("prompt_embeddings", &[2, 4]), ("intermediate_prompt_embeddings", &[3, 2, 4])]).unwrap();
    assert_eq!(add.injection, Injection::Add);
    let replace = load(&[("prompt_embeddings", &[2, 4]), ("intermediate_prompt_embeddings", &[2, 2, 4])]).unwrap();
    assert_eq!(replace.injection, Injection::Replace);
}

#[test]
fn misshapen_and_missing_tensors_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let refused = |tensors: &[(&str, &[usize])]| {
        write_foreign(root.path(), tensors);
        Adapter::load(root.path(), &model()).unwrap_err().to_string()
    };
    assert!(refused(&[("score.weight", &[2, 4])]).contains("no tensor `prompt_embeddings`"));
    assert!(refused(&[("prompt_embeddings", &[2, 5])]).contains("`prompt_embeddings`"));
    assert!(refused(&[("prompt_embeddings", &[0, 4])]).contains("`prompt_embeddings`"));
    let deep = refused(&[("prompt_embeddings", &[2, 4]), ("intermediate_prompt_embeddings", &[4, 2, 4])]);
    assert!(deep.contains("`intermediate_prompt_embeddings`") && deep.contains("[3, 2, 4]"), "{deep}");
    assert!(refused(&[("prompt_embeddings", &[2, 4]), ("score.weight", &[2, 3])]).contains("`score.weight`"));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Adapter::load(empty.path(), &model()), Err(AdapterError::NoAdapter { .. })));
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let root = tempfile::tempdir().unwrap();
    adapter(Injection::None, None).save(root.path(), &model()).unwrap();
    let other = AdaptedModel { id: ModelId::new("tiny", Fingerprint([2; 8])).unwrap(), ..model() };
    assert!(matches!(Adapter::load(root.path(), &other), Err(AdapterError::WrongModel { .. })));
    let renamed = AdaptedModel { id: ModelId::new("other", Fingerprint([1; 8])).unwrap(), ..model() };
    assert!(Adapter::load(root.path(), &renamed).is_ok());
}

#[test]
fn a_manifest_that_contradicts_its_tables_is_refused() {
    let root = tempfile::tempdir().unwrap();
    adapter(Injection::None, Some(3)).save(root.path(), &model()).unwrap();
    let load_with = |change: fn(&mut Value)| {
        let mut manifest = adapter(Injection::None, Some(3)).manifest.to_json();
        change(&mut manifest);
        write_foreign(root.path(), &[("prompt_embeddings", &[2, 4]), ("score.weight", &[3, 4])]);
        fs::write(root.path().join(MANIFEST_FILE), manifest.to_string()).unwrap();
        Adapter::load(root.path(), &model())
    };
    assert!(load_with(|_| ()).is_ok());
    let wrong_prefix = load_with(|manifest| manifest["prefix_len"] = 3.into());
    assert!(matches!(wrong_prefix, Err(AdapterError::Contradiction { what: "prefix length", .. })));
    let wrong_labels = load_with(|manifest| manifest["labels"] = serde_json::json!([0, 1]));
    assert!(matches!(wrong_labels, Err(AdapterError::Contradiction { what: "number of labels", .. })));
    assert!(matches!(load_with(|manifest| manifest["version"] = 2.into()), Err(AdapterError::Version(2))));
    assert!(matches!(load_with(|manifest| manifest["mode"] = 2.into()), Err(AdapterError::Json { .. })));
}

mod foreign;
