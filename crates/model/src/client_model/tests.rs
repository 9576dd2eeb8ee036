use super::*;
use crate::Checkpoint;
use crate::fixture::{self, noise};

const D: usize = 12;

fn client() -> ClientModel {
    let dir = fixture::single();
    Checkpoint::open(dir.path()).unwrap().load_client(crate::Dtype::F32).unwrap()
}

#[test]
fn embeddings_are_rows_of_the_table_even_after_the_file_is_unlinked() {
    let (table, client) = (&fixture::tensors()["model.embed_tokens.weight"].1, client());
    let rows = client.embed(&[39, 0, 39]).unwrap();
    assert_eq!(rows, [&table[39 * D..], &table[..D], &table[39 * D..]].concat());
}

#[test]
fn the_loss_gradient_is_the_derivative_of_the_loss() {
    let client = client();
    let (hidden, labels, direction) = (noise(1, 5 * D), [3, 0, 39, 7, 7], noise(2, 5 * D));
    for smoothing in [0.0, 0.3] {
        let rules = LossRules { smoothing, weights: &[] };
        let at = |h: f32| {
            let moved: Vec<f32> = hidden.iter().zip(&direction).map(|(v, n)| v + h * n).collect();
            client.lm_loss(&moved, &labels, rules).unwrap()
        };
        let predicted: f64 = at(0.0).grad.iter().zip(&direction).map(|(g, n)| f64::from(g * n)).sum();
        let measured = (at(1e-2).loss_sum - at(-1e-2).loss_sum) / 2e-2;
        assert!((predicted - measured).abs() < 1e-3 * measured.abs().max(1.0), "{predicted} for {measured}");
    }
}

#[test]
fn the_loss_is_that_of_the_logits() {
    let client = client();
    let (hidden, labels) = (noise(3, 2 * D), [1, 30]);
    let logits = client.lm_logits(&hidden).unwrap();
    let of_row = |(row, label): (&[f32], &u32)| {
        let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
        sum.ln() - f64::from(row[*label as usize])
    };
    let expected: f64 = logits.chunks(40).zip(&labels).map(of_row).sum();
    assert!((client.lm_loss(&hidden, &labels, LossRules::default()).unwrap().loss_sum - expected).abs() < 1e-5);
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    let client = client();
    let text = |error: HeadError| error.to_string();
    let token = "token 40 is not below the vocabulary's size 40";
    assert_eq!(text(client.embed(&[1, 40]).unwrap_err()), token);
    assert_eq!(text(client.lm_loss(&[0.0; D], &[40], LossRules::default()).unwrap_err()), token);
    assert!(
        text(client.lm_loss(&[0.0; D + 1], &[1], LossRules::default()).unwrap_err())
            .starts_with("hidden has 13 values")
    );
    assert!(text(client.lm_logits(&[0.0; D + 1]).unwrap_err()).starts_with("hidden has 13 values"));
    assert!(text(client.lm_loss(&[f32::NAN; D], &[1], LossRules::default()).unwrap_err()).contains("not finite"));
    let classes =
        |score: &[f32], label| text(client.class_loss(&[0.5; D], score, &[label], LossRules::default()).unwrap_err());
    assert_eq!(classes(&[0.1; 2 * D], 2), "label 2 is not below the number of labels 2");
    assert!(classes(&[0.1; D - 1], 0).starts_with("score has 11 values"));
    let few = LossRules { smoothing: 0.0, weights: &[1.0] };
    let error = text(client.class_loss(&[0.5; D], &[0.1; 2 * D], &[0], few).unwrap_err());
    assert!(error.starts_with("weights has 1 values, expected 2"), "{error}");
}
