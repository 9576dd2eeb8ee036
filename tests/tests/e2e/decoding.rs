//! Beam search and speculation against transformers, and against generation without them.

use std::ops::ControlFlow;

use anyhow::Context;
use petals_client::{
    BeamConfig, DraftModel, Dtype, EarlyStopping, Generation, GenerationConfig, Generator, Sampling, SequenceConfig,
    Speculation, beam_search,
};
use petals_e2e::{FAMILIES, Goldens};
use serde_json::Value;
use tokio::sync::Notify;

use crate::sessions::{model, swarm};

const SPLITS: [&[&str]; 3] = [&["0..4"], &["0..2", "2..4"], &["0..1", "1..3", "3..4"]];

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().filter_map(Value::as_u64).map(|id| id as u32).collect()
}

async fn generate(generator: &mut Generator, text: &[u32], config: &GenerationConfig) -> anyhow::Result<Generation> {
    let mut streamed = Vec::new();
    let generation = generator.generate(text, config, |tokens| {
        streamed.extend_from_slice(tokens);
        ControlFlow::Continue(())
    });
    let generation = generation.await?;
    assert_eq!(streamed, generation.tokens, "what was streamed");
    Ok(generation)
}

#[tokio::test(flavor = "multi_thread")]
async fn greedy_and_beam_searches_equal_transformers_with_and_without_prompts() -> anyhow::Result<()> {
    let golden: Value = serde_json::from_slice(&std::fs::read(Goldens::data("decoding.json"))?)?;
    for (number, family) in FAMILIES.into_iter().enumerate() {
        let goldens = Goldens::load(family)?;
        let swarm = swarm(&goldens, SPLITS[number % SPLITS.len()]).await?;
        let prompt = ids(&golden[family]["prompt"]);
        for search in golden[family]["searches"].as_array().context("no searches")? {
            let (mode, options) = (search["mode"].as_str().unwrap_or_default(), &search["options"]);
            let model = model(&goldens, &swarm, mode, SequenceConfig::default())?;
            let float = |name: &str| options[name].as_f64().unwrap_or(1.0) as f32;
            let tokens = match options["num_beams"].as_u64() {
                Some(beams @ 2..) => {
                    let config = BeamConfig {
                        beams: beams as usize,
                        max_new_tokens: 64,
                        stop_tokens: ids(&search["stops"]),
                        length_penalty: float("length_penalty"),
                        early_stopping: match &options["early_stopping"] {
                            Value::Bool(true) => EarlyStopping::First,
                            Value::String(never) if never == "never" => EarlyStopping::Never,
                            _ => EarlyStopping::Heuristic,
                        },
                        repetition_penalty: float("repetition_penalty"),
                    };
                    beam_search(model, &prompt, &config, |_| false).await?.tokens
                }
                _ => {
                    let config = GenerationConfig {
                        sampling: Sampling { repetition_penalty: float("repetition_penalty"), ..Sampling::default() },
                        max_new_tokens: 64,
                        stop_tokens: ids(&search["stops"]),
                        speculation: Speculation::default(),
                    };
                    generate(&mut Generator::new(model, 100), &prompt, &config).await?.tokens
                }
            };
            assert_eq!(tokens, ids(&search["tokens"]), "{family}, {mode}, {}", search["name"]);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn speculation_changes_how_long_it_takes_and_not_the_text() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let swarm = swarm(&goldens, &["0..2", "2..4"]).await?;
    let repeating: Vec<u32> = (0..30).map(|n| 40 + n % 7).collect();
    // A model that is always right, and one that hardly ever is.
    let same = DraftModel::open(&goldens.model(), Dtype::F32)?;
    let other = DraftModel::open(&Goldens::load("mistral")?.model(), Dtype::F32)?;
    let samplings = [
        Sampling::default(),
        Sampling { temperature: 0.3, seed: 5, ..Sampling::default() },
        Sampling {
            temperature: 1.1,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.01,
            repetition_penalty: 1.1,
            seed: 6,
            ..Sampling::default()
        },
    ];
    for mode in ["bare", "add"] {
        for sampling in &samplings {
            let config = |speculation| GenerationConfig {
                sampling: sampling.clone(),
                max_new_tokens: 48,
                stop_tokens: Vec::new(),
                speculation,
            };
            let generator =
                || anyhow::Ok(Generator::new(model(&goldens, &swarm, mode, SequenceConfig::default())?, 100));
            let plain = generate(&mut generator()?, &repeating, &config(Speculation::OFF)).await?;
            assert_eq!((plain.drafted, plain.steps, plain.tokens.len()), (0, 48, 48));
            let lookup = generate(&mut generator()?, &repeating, &config(Speculation::default())).await?;
            assert!(lookup.drafted > 0 && lookup.steps == 48 - lookup.accepted, "{lookup:?}");
            assert_eq!(lookup.tokens, plain.tokens, "{mode}, {sampling:?}");
            for draft in [&same, &other] {
                let both = Speculation { lookup: true, max_draft: 6 };
                for speculation in [Speculation { lookup: false, ..both }, both] {
                    let mut generator = generator()?.with_draft_model(draft.clone());
                    let drafted = generate(&mut generator, &repeating, &config(speculation)).await?;
                    assert_eq!(drafted.tokens, plain.tokens, "{mode}, {sampling:?}");
                    // The model is asked at the first step behind the prompt.
                    assert!(speculation.lookup || drafted.drafted > 0);
                }
            }
        }
        let config = GenerationConfig {
            max_new_tokens: 5,
            speculation: Speculation { lookup: false, max_draft: 6 },
            ..GenerationConfig::default()
        };
        if mode == "bare" {
            let mut generator = Generator::new(model(&goldens, &swarm, mode, SequenceConfig::default())?, 100)
                .with_draft_model(same.clone());
            let sure = generate(&mut generator, &repeating, &config).await?;
            assert_eq!(
                (sure.steps, sure.drafted, sure.accepted),
                (2, 3, 3),
                "the first token, then all others in one step"
            );
        }
    }
    Ok(())
}

/// Their rows meet in the servers' batches and in the client's head, each with as many foreseen tokens as it likes.
#[tokio::test(flavor = "multi_thread")]
async fn texts_side_by_side_become_what_each_would_alone() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = swarm(&goldens, &["0..1", "1..3", "3..4"]).await?;
    let draft = DraftModel::open(&goldens.model(), Dtype::F32)?;
    let bare = model(&goldens, &swarm, "bare", SequenceConfig::default())?;
    let tuned = model(&goldens, &swarm, "add", SequenceConfig::default())?;
    let texts: Vec<_> = (0..9u32)
        .map(|number| {
            let text: Vec<u32> = (0..12 + number).map(|n| 30 + (n * (1 + number / 3)) % (4 + number)).collect();
            let temperature = if number % 2 == 0 { 0.0 } else { 0.8 };
            let config = GenerationConfig {
                sampling: Sampling { temperature, seed: u64::from(number), ..Sampling::default() },
                max_new_tokens: 24 + number as usize,
                stop_tokens: Vec::new(),
                speculation: if number % 3 == 0 { Speculation::OFF } else { Speculation::default() },
            };
            let tables = if number < 5 { None } else { tuned.tables.clone() };
            (text, config, bare.clone().with_tables(tables), (number % 3 == 2).then(|| draft.clone()))
        })
        .collect();
    let mut alone = Vec::new();
    for (text, config, model, _) in &texts {
        let plain = GenerationConfig { speculation: Speculation::OFF, ..config.clone() };
        alone.push(generate(&mut Generator::new(model.clone(), 80), text, &plain).await?.tokens);
    }
    let together = texts.into_iter().map(|(text, config, model, draft)| async move {
        let mut generator = Generator::new(model, 80);
        if let Some(draft) = draft {
            generator = generator.with_draft_model(draft);
        }
        generate(&mut generator, &text, &config).await.map(|generation| (generation.tokens, generation.drafted))
    });
    let together = futures::future::try_join_all(together).await?;
    assert!(together.iter().any(|(_, drafted)| *drafted > 0), "nothing was foreseen");
    for (number, ((tokens, _), alone)) in together.iter().zip(&alone).enumerate() {
        assert_eq!(tokens, alone, "text {number}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_pays_for_what_is_new() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama3-rope")?;
    let swarm = swarm(&goldens, &["0..1", "1..4"]).await?;
    let config = |seed| GenerationConfig {
        sampling: Sampling { temperature: 0.8, seed, ..Sampling::default() },
        max_new_tokens: 10,
        ..GenerationConfig::default()
    };
    let mut generator = Generator::new(model(&goldens, &swarm, "replace", SequenceConfig::default())?, 120);
    let first: Vec<u32> = (10..30).collect();
    let answer = generate(&mut generator, &first, &config(1)).await?;
    let second = [&first[..], &answer.tokens, &[7, 8, 9]].concat();
    let edited = [&first[..15], &[1, 2, 3]].concat();
    let cut = &first[..4];
    // All but the last token of each text is on the servers.
    for (text, reused) in [(&second[..], 29), (&second, 32), (&edited, 15), (&edited, 17), (cut, 3), (&first, 4)] {
        let got = generate(&mut generator, text, &config(2)).await?;
        let fresh = &mut Generator::new(model(&goldens, &swarm, "replace", SequenceConfig::default())?, 120);
        assert_eq!(got.tokens, generate(fresh, text, &config(2)).await?.tokens);
        assert_eq!(got.reused, reused);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_or_stopped_generation_leaves_a_usable_generator() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen2")?;
    let swarm = swarm(&goldens, &["0..2", "2..4"]).await?;
    let text: Vec<u32> = (50..62).collect();
    let config = GenerationConfig { max_new_tokens: 30, ..GenerationConfig::default() };
    let expected =
        generate(&mut Generator::new(model(&goldens, &swarm, "add", SequenceConfig::default())?, 60), &text, &config)
            .await?
            .tokens;
    let mut generator = Generator::new(model(&goldens, &swarm, "add", SequenceConfig::default())?, 60);
    for after in [1, 4, 9] {
        let mut count = 0;
        let stopped = generator.generate(&text, &config, |tokens| {
            count += tokens.len();
            if count >= after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let stopped = stopped.await?;
        assert_eq!(stopped.finish, petals_client::Finish::Stopped);
        assert_eq!(stopped.tokens, expected[..stopped.tokens.len()]);
        // The next step is under way when the call is dropped.
        let (dropped, mut count) = (Notify::new(), 0);
        tokio::select! {
            _ = generator.generate(&text, &config, |tokens| {
                count += tokens.len();
                if count >= after { dropped.notify_one(); }
                ControlFlow::Continue(())
            }) => {}
            () = dropped.notified() => {}
        }
        assert_eq!(generate(&mut generator, &text, &config).await?.tokens, expected, "after {after}");
    }
    let full = generator.generate(&vec![1; 60], &config, |_| ControlFlow::Continue(())).await.unwrap_err();
    assert!(full.to_string().contains("60"), "{full}");
    let rest = generate(&mut generator, &vec![1; 57], &config).await?;
    assert_eq!((rest.tokens.len(), rest.finish), (3, petals_client::Finish::Length));
    Ok(())
}
