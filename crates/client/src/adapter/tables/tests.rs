use std::convert::Infallible;

use super::*;

const M: usize = 2;
const D: usize = 3;

fn shape(injection: Injection, labels: Option<usize>) -> TableShape {
    TableShape {
        injection,
        weights: WeightChange::None,
        scale: 1.0,
        blocks: 4,
        prefix_len: M,
        widths: BlockWidths::uniform(D),
        labels,
    }
}

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

/// Tables whose values say where they are: `P` counts from 0, `Q_i` from 100 * (i + 1).
fn counted(injection: Injection) -> PromptTables {
    let mut tables = PromptTables::zeros(shape(injection, Some(2)));
    for (table, values) in tables.parts_mut().each_mut() {
        for (i, value) in values.iter_mut().enumerate() {
            let prompt = if table == Table::Deep { 100 * (i / (M * D) + 1) } else { 0 };
            *value = (prompt + i % (M * D)) as f32;
        }
    }
    tables
}

fn init(rule: InitRule, deep: Option<DeepInit>) -> TableInit {
    TableInit { rule, deep, std: 0.02, vocab_size: 50, seed: 7 }
}

/// The embedding of token `t` is `[t, t, t]`.
fn embed(ids: &[u32]) -> Result<Vec<f32>, Infallible> {
    Ok(ids.iter().flat_map(|&id| [id as f32; D]).collect())
}

#[test]
fn prompts_of_a_span_follow_the_injection() {
    let heads = |injection, start, end| {
        let prompts = counted(injection).tables_for(span(start, end));
        prompts.map(|values| values.chunks(M * D).map(|prompt| prompt[0]).collect::<Vec<_>>())
    };
    assert_eq!(heads(Injection::Add, 0, 2), Some(vec![100.0, 200.0]));
    assert_eq!(heads(Injection::Add, 3, 4), Some(vec![400.0]));
    assert_eq!(heads(Injection::Replace, 0, 3), Some(vec![0.0, 100.0, 200.0]));
    assert_eq!(heads(Injection::Replace, 2, 4), Some(vec![200.0, 300.0]));
    assert_eq!(heads(Injection::None, 0, 4), None);
}

#[test]
fn prompt_gradients_arrive_where_prompts_came_from() {
    for injection in [Injection::Add, Injection::Replace] {
        let tables = counted(injection);
        let mut gradients = TableGradients::zeros(*tables.shape());
        for part in [span(0, 1), span(1, 4)] {
            gradients.add_tables(part, &tables.tables_for(part).unwrap()).unwrap();
        }
        assert_eq!(gradients.table(Table::Deep), tables.table(Table::Deep));
        let input = if injection == Injection::Replace { tables.input().to_vec() } else { vec![0.0; M * D] };
        assert_eq!(gradients.table(Table::Input).unwrap(), input);
    }
}

#[test]
fn gradients_of_the_wrong_length_are_refused() {
    let mut gradients = TableGradients::zeros(shape(Injection::Add, None));
    assert!(matches!(gradients.add_tables(span(0, 2), &[0.0; 6]), Err(GradientError::Length { expected: 12, .. })));
    assert!(gradients.add_input(&[0.0; 5]).is_err());
    assert!(gradients.add_score(&[0.0; 6]).is_err());
    let mut plain = TableGradients::zeros(shape(Injection::None, None));
    assert!(plain.add_tables(span(0, 1), &[0.0; 6]).is_err());
}

#[test]
fn gradients_add_up_and_are_clipped_by_their_global_norm() {
    let mut gradients = TableGradients::zeros(shape(Injection::None, Some(1)));
    for _ in 0..2 {
        gradients.add_input(&[1.5, 0.0, 0.0, 0.0, 0.0, 0.0]).unwrap();
        gradients.add_score(&[0.0, 2.0, 0.0]).unwrap();
    }
    assert_eq!(gradients.global_norm(), 5.0);
    assert_eq!(gradients.clip_global_norm(0.0), 5.0);
    assert_eq!(gradients.global_norm(), 5.0);
    assert_eq!(gradients.clip_global_norm(9.0), 5.0);
    assert_eq!(gradients.global_norm(), 5.0);
    gradients.clip_global_norm(1.0);
    assert!((gradients.global_norm() - 1.0).abs() < 1e-6);
    gradients.clear();
    assert_eq!(gradients.global_norm(), 0.0);
}

#[test]
fn a_gradient_that_is_not_finite_is_named() {
    let mut gradients = TableGradients::zeros(shape(Injection::None, Some(1)));
    assert_eq!(gradients.check_finite(), Ok(()));
    gradients.add_score(&[0.0, f32::NAN, 0.0]).unwrap();
    assert_eq!(gradients.check_finite(), Err(GradientError::NotFinite("score.weight".to_owned())));
}

#[test]
fn normal_values_have_the_spread_asked_for_and_depend_on_the_seed_only() {
    let wide = TableShape { widths: BlockWidths::uniform(5000), ..shape(Injection::Replace, Some(2)) };
    let tables = PromptTables::initialise(wide, &init(InitRule::Normal, None), embed).unwrap();
    for (_, values) in tables.clone().parts_mut().each_mut() {
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 1e-3 && (variance.sqrt() - 0.02).abs() < 1e-3, "{mean} {variance}");
    }
    let plain = TableShape { injection: Injection::None, labels: None, ..wide };
    let same_seed = PromptTables::initialise(plain, &init(InitRule::Normal, None), embed).unwrap();
    assert_eq!(same_seed.input(), tables.input());
    let other = TableInit { seed: 8, ..init(InitRule::Normal, None) };
    assert_ne!(PromptTables::initialise(plain, &other, embed).unwrap().input(), tables.input());
}

#[test]
fn deep_prompts_start_as_their_injection_asks() {
    let deep = |injection, deep_init| {
        let rule = init(InitRule::SampleVocab, deep_init);
        let tables = PromptTables::initialise(shape(injection, None), &rule, embed).unwrap();
        tables.table(Table::Deep).unwrap().to_vec()
    };
    assert!(deep(Injection::Add, None).iter().all(|&v| v == 0.0));
    assert!(deep(Injection::Add, Some(DeepInit::Normal)).iter().all(|&v| v != 0.0 && v.abs() < 0.2));
    let sampled = deep(Injection::Replace, None);
    let rows: Vec<&[f32]> = sampled.chunks(D).collect();
    assert!(rows.iter().all(|row| row[0] == row[1] && row[0].fract() == 0.0 && row[0] < 50.0));
    assert!(rows.windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn a_text_is_repeated_and_cut_to_the_prefix() {
    let long = TableShape { prefix_len: 5, ..shape(Injection::Replace, None) };
    let tables = PromptTables::initialise(long, &init(InitRule::Text(vec![9, 4]), None), embed).unwrap();
    let heads: Vec<f32> = tables.input().chunks(D).map(|row| row[0]).collect();
    assert_eq!(heads, [9.0, 4.0, 9.0, 4.0, 9.0]);
    assert!(tables.table(Table::Deep).unwrap().chunks(5 * D).all(|prompt| prompt == tables.input()));
    let empty = PromptTables::initialise(long, &init(InitRule::Text(vec![]), None), embed);
    assert!(matches!(empty, Err(InitError::EmptyText)));
}

#[test]
fn a_run_starts_from_the_tables_it_is_given() {
    let given = counted(Injection::None);
    let mut tables = PromptTables::zeros(shape(Injection::Add, Some(2)));
    assert_eq!(tables.start_from(&given), Ok(vec![Table::Deep]));
    assert_eq!((tables.input(), tables.score()), (given.input(), given.score()));

    let mut longer = PromptTables::zeros(TableShape { prefix_len: 3, ..shape(Injection::None, None) });
    assert!(matches!(longer.start_from(&given), Err(StartError::Shape { table, .. }) if table == "prompt_embeddings"));
    let mut plain = PromptTables::zeros(shape(Injection::None, None));
    assert!(matches!(plain.start_from(&counted(Injection::Add)), Err(StartError::Injection { .. })));
}
