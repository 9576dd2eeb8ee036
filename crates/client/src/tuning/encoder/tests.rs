use petals_protocol::{BlockWidths, Injection, WeightChange};
use serde_json::Value;

use super::*;

/// What `tests/oracle/encoders.py` recorded of PEFT's modules and torch's autograd.
fn cases() -> Vec<Value> {
    let recorded = include_str!("../../../../../tests/goldens/data/encoders.json");
    let recorded: Value = serde_json::from_str(recorded).unwrap();
    recorded["cases"].as_array().unwrap().clone()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn table(name: &str) -> Table {
    Table::IN_FRONT.into_iter().find(|table| table.tensor_name() == name).unwrap()
}

/// Three rows of width 6 and keys of width 4, on two blocks, with the table that is asked for.
fn shape(table: Table) -> TableShape {
    let injection = match table {
        Table::KeysValues => Injection::KeysValues,
        Table::Deep => Injection::Add,
        _ => Injection::None,
    };
    let widths = BlockWidths { hidden: 6, key: 4, ..BlockWidths::uniform(6) };
    TableShape { injection, weights: WeightChange::None, scale: 1.0, blocks: 2, prefix_len: 3, widths, labels: Some(2) }
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(1e-3f32, |max, value| max.max(value.abs()));
    let close = got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * largest);
    assert!(got.len() == expected.len() && close, "{what}: {got:?} for {expected:?}");
}

#[test]
fn what_encoders_make_and_the_gradients_of_every_parameter_equal_those_of_peft_and_torch() {
    let cases = cases();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let (kind, table) = (case["kind"].as_str().unwrap(), table(case["table"].as_str().unwrap()));
        let reparam =
            Reparam { kind: kind.parse().unwrap(), width: case["width"].as_u64().map(|width| width as usize) };
        let mut tables = PromptTables::zeros(shape(table));
        let mut encoder = Encoder::new(reparam, &mut tables, 0).unwrap();
        let parameters = case["parameters"].as_object().unwrap();
        let net = encoder.nets.iter().find(|net| net.plan.table() == table).unwrap();
        let names: Vec<String> = net.parameters.iter().map(|parameter| parameter.name.clone()).collect();
        assert_eq!(names.len(), parameters.len(), "{kind}: {names:?}");
        for (name, values) in parameters {
            let own = encoder.parameter_mut(table, name).unwrap_or_else(|| panic!("{kind} has no {name}: {names:?}"));
            own.copy_from_slice(&floats(values));
        }
        encoder.make(&mut tables);
        assert_close(kind, tables.table(table).unwrap(), &floats(&case["made"]));

        let mut gradients = TableGradients::zeros(*tables.shape());
        gradients.parts_mut().get_mut(table).unwrap().copy_from_slice(&floats(&case["gradient"]));
        let inner = encoder.backward(&mut gradients);
        assert!(gradients.table(table).unwrap().iter().all(|value| *value == 0.0), "the table is no parameter");
        let at = encoder.nets.iter().position(|net| net.plan.table() == table).unwrap();
        for (name, got) in names.iter().zip(&inner.0[at]) {
            assert_close(&format!("{kind}, {name}"), got, &floats(&case["gradients"][name]));
        }
        let squares: f64 = inner.0[at].iter().flatten().map(|value| f64::from(*value).powi(2)).sum();
        let others: f64 = inner.squares() - squares;
        assert!(others.abs() < 1e-9 * squares, "tables without a gradient give none");
    }
}

#[test]
fn a_bottleneck_begins_beside_the_first_values_and_the_others_anywhere() {
    for kind in ReparamKind::ALL {
        let table = if kind == ReparamKind::PrefixProjection { Table::KeysValues } else { Table::Input };
        let make = |seed| {
            let mut tables = PromptTables::zeros(shape(table));
            tables.table_mut(table).unwrap().fill(0.25);
            let encoder = Encoder::new(Reparam { kind, width: None }, &mut tables, seed).unwrap();
            (tables, encoder)
        };
        let (tables, mut encoder) = make(1);
        assert_eq!(make(1), (tables.clone(), encoder.clone()), "{kind}: equal seeds, equal values");
        assert_ne!(make(2).0, tables, "{kind}");
        let embedding = encoder.parameter_mut(table, "embedding.weight").unwrap();
        assert_eq!(embedding.iter().all(|value| *value == 0.25), kind.keeps_start(), "{kind}");
        if kind.keeps_start() {
            // A layer norm without weights leaves the prompt alone.
            encoder.parameter_mut(table, "module.3.weight").unwrap().fill(0.0);
            let mut made = tables;
            encoder.make(&mut made);
            assert!(made.input().iter().all(|value| *value == 0.25));
        }
    }
}

#[test]
fn encoders_are_refused_where_there_is_nothing_for_them_and_where_they_would_be_too_large() {
    let check = |kind, width, table| Reparam { kind, width }.check(&shape(table)).map_err(|error| error.to_string());
    let refused = check(ReparamKind::PrefixProjection, None, Table::Input).unwrap_err();
    assert!(refused.contains("`prefix-projection`") && refused.contains("for prefix"), "{refused}");
    let refused = check(ReparamKind::PTuningLstm, None, Table::KeysValues).unwrap_err();
    assert!(refused.contains("ptune and deep_ptune"), "{refused}");
    let refused = check(ReparamKind::PTuningMlp, Some(1 << 16), Table::Input).unwrap_err();
    assert!(refused.contains("smaller width"), "{refused}");
    assert!(check(ReparamKind::Mlp, None, Table::KeysValues).is_ok());
    let weights = TableShape { injection: Injection::None, prefix_len: 0, ..shape(Table::Input) };
    assert!(Reparam { kind: ReparamKind::Mlp, width: None }.check(&weights).is_err(), "lora alone has no prompts");
}

#[test]
fn damaged_extents_give_no_encoder_and_no_panic() {
    for (prefix_len, hidden) in [(0, 6), (3, 0), (3, 1), (usize::MAX, 6), (3, usize::MAX)] {
        let widths = BlockWidths { hidden, key: 0, ..BlockWidths::uniform(6) };
        for (kind, injection) in ReparamKind::ALL.into_iter().flat_map(|kind| {
            [Injection::None, Injection::Add, Injection::KeysValues].map(|injection| (kind, injection))
        }) {
            let shape = TableShape { prefix_len, widths, injection, ..shape(Table::Input) };
            let reparam = Reparam { kind, width: Some(usize::MAX) };
            assert!(reparam.check(&shape).is_err());
            let read = |_: EncoderPart, _: &str, _: &[usize]| Err::<Vec<f32>, ()>(());
            let _ = Encoder::from_saved(reparam, &shape, read);
        }
    }
}
