//! `petals-tune serve`: what it tells of tokens, compared with what transformers computed.

use anyhow::Context;
use petals_e2e::{ApiServer, Goldens, ProcessSwarm};
use serde_json::{Value, json};

use crate::serve::template;

/// Natural logarithms of the softmax, in double precision.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit - highest) - sum.ln()).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// What lm_eval's `local-completions` asks for to know how probable a continuation is.
#[test]
fn echoed_prompts_have_the_probabilities_that_transformers_gives_them() -> anyhow::Result<()> {
    for (family, mode) in [("llama-gqa", None), ("qwen2", Some("replace"))] {
        let goldens = Goldens::load(family)?;
        let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
        let adapter = format!("replace={}", goldens.path("init-replace").display());
        let api = ApiServer::start(swarm.tune("serve")?.args(&["--adapter", &adapter]))?;
        let rows = Goldens::input_ids()?;
        let logits = goldens.tensor(&mode.map_or("logits".to_owned(), |mode| format!("logits.{mode}")));
        let (texts, length) = (rows.len(), rows[0].len());
        let vocabulary = logits.len() / (texts * length);
        let model = mode.map_or("model".to_owned(), |mode| format!("model:{mode}"));
        for max_tokens in [0, 1] {
            let request = json!({
                "model": model, "prompt": rows, "max_tokens": max_tokens, "echo": true, "logprobs": 1, "temperature": 0, "seed": 1234,
            });
            let answer = api.ask("/v1/completions", &request)?;
            let choices = answer["choices"].as_array().context("no choices")?;
            assert_eq!(choices.len(), texts);
            for (row, choice) in choices.iter().enumerate() {
                assert_eq!(choice["index"], row);
                let told = &choice["logprobs"];
                let list = |name: &str| told[name].as_array().cloned().unwrap_or_default();
                let lists = ["tokens", "token_logprobs", "top_logprobs", "text_offset"].map(list);
                assert!(lists.iter().all(|list| list.len() == length + max_tokens), "{told}");
                let [tokens, logprobs, top, offsets] = &lists;
                assert_eq!((&logprobs[0], &top[0]), (&Value::Null, &Value::Null), "nothing is in front of the first");
                for place in 1..length {
                    let at = (row * length + place - 1) * vocabulary;
                    let expected = log_softmax(&logits[at..at + vocabulary]);
                    let own = logprobs[place].as_f64().context("no number")?;
                    assert!((own - expected[rows[row][place] as usize]).abs() < 1e-4, "{family}, {row}, {place}");
                    // Whether the token is the most probable one is read off as lm_eval does it.
                    let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let told = top[place].as_object().context("no object")?.values().filter_map(Value::as_f64);
                    let told = told.fold(f64::NEG_INFINITY, f64::max);
                    assert!((told - best).abs() < 1e-4, "{family}, {row}, {place}");
                }
                let text = choice["text"].as_str().context("no text")?;
                assert!(offsets.windows(2).all(|pair| pair[0].as_u64() <= pair[1].as_u64()) && offsets[0] == 0);
                assert!(tokens.iter().all(Value::is_string) && !text.is_empty());
            }
            assert_eq!(answer["usage"]["completion_tokens"], texts * max_tokens);
        }
        api.stop()?;
    }
    Ok(())
}

#[test]
fn chosen_tokens_have_probabilities_and_alternatives_whole_and_in_pieces() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let api = ApiServer::start(swarm.tune("serve")?.path("--chat-template", &template))?;
    let prompt = goldens.ids("prompt_ids");
    let count = 12;
    let request = json!({"model": "model", "prompt": prompt, "max_tokens": count, "temperature": 0, "logprobs": 3});
    let whole = api.ask("/v1/completions", &request)?;
    let choice = &whole["choices"][0];
    let chosen = floats(&choice["logprobs"]["token_logprobs"]);
    assert_eq!(chosen.len(), count);
    // The same text as a prompt gets the same figures.
    let again: Vec<u32> = prompt.iter().copied().chain(goldens.ids("generate.bare").into_iter().take(count)).collect();
    let echo = json!({"model": "model", "prompt": again, "max_tokens": 0, "echo": true, "logprobs": 0});
    let echoed = floats(&api.ask("/v1/completions", &echo)?["choices"][0]["logprobs"]["token_logprobs"]);
    assert_eq!(echoed.len(), again.len() - 1);
    for (a, b) in chosen.iter().zip(&echoed[prompt.len() - 1..]) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    // Temperature and penalties choose; what is told is the model's own distribution.
    let mut biased = request.clone();
    biased["logit_bias"] = json!({"7": 100});
    biased["temperature"] = json!(2);
    biased["max_tokens"] = json!(1);
    let told = api.ask("/v1/completions", &biased)?["choices"][0]["logprobs"].clone();
    assert!(told["token_logprobs"][0].as_f64().context("no number")? < chosen[0], "{told}");
    let top = told["top_logprobs"][0].as_object().context("no object")?;
    assert!(top.values().filter_map(Value::as_f64).any(|logprob| (logprob - chosen[0]).abs() < 1e-4), "{told}");

    let mut stream = request.clone();
    stream["stream"] = true.into();
    let events = api.post("/v1/completions", &stream)?.events()?;
    let joined = |list: &str| {
        let pieces = events.iter().filter_map(|event| event["choices"][0]["logprobs"][list].as_array());
        json!(pieces.flatten().collect::<Vec<_>>())
    };
    for list in ["tokens", "text_offset"] {
        assert_eq!(joined(list), choice["logprobs"][list], "{list}");
    }
    // Rows are computed together with others the second time, which rounds differently.
    let pieces = floats(&joined("token_logprobs"));
    assert!(pieces.len() == count && pieces.iter().zip(&chosen).all(|(a, b)| (a - b).abs() < 1e-4), "{pieces:?}");

    // Where the prompt writes special tokens out, the text behind it still begins where it begins.
    let spelt = json!({"model": "model", "prompt": "<bos>the cat sa", "max_tokens": 1, "echo": true, "logprobs": 0});
    let spelt = api.ask("/v1/completions", &spelt)?["choices"][0].clone();
    let last = spelt["logprobs"]["text_offset"].as_array().and_then(|offsets| offsets.last().cloned());
    assert_eq!(last, Some(json!("<bos>the cat sa".len())), "{spelt}");

    let messages = json!([{"role": "user", "content": "the cat"}]);
    let mut chat = json!({"model": "model", "messages": messages, "max_tokens": count, "temperature": 0, "logprobs": true,
        "top_logprobs": 2});
    let whole = api.ask("/v1/chat/completions", &chat)?;
    let content = whole["choices"][0]["logprobs"]["content"].as_array().context("no list")?.clone();
    assert_eq!(content.len(), count);
    for place in &content {
        let top = place["top_logprobs"].as_array().context("no list")?;
        assert_eq!((top.len(), &top[0]["logprob"]), (2, &place["logprob"]), "greedy takes the most probable one");
        let bytes: Vec<u8> = serde_json::from_value(place["bytes"].clone())?;
        assert_eq!(place["token"], String::from_utf8_lossy(&bytes).as_ref());
    }
    let bytes: Vec<u8> = content.iter().flat_map(|place| floats(&place["bytes"])).map(|byte| byte as u8).collect();
    let text = whole["choices"][0]["message"]["content"].as_str().context("no text")?;
    assert_eq!(String::from_utf8_lossy(&bytes).trim_start(), text.trim_start(), "the bytes are those of the text");
    chat["stream"] = true.into();
    let events = api.post("/v1/chat/completions", &chat)?.events()?;
    let pieces = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    let tokens: Vec<&Value> = pieces.flatten().map(|place| &place["token"]).collect();
    assert_eq!(tokens, content.iter().map(|place| &place["token"]).collect::<Vec<_>>());
    api.stop()
}

#[test]
fn many_prompts_are_answered_in_order_and_the_best_texts_are_shown() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let api = ApiServer::start(swarm.tune("serve")?.args(&["--concurrent", "4"]))?;
    let prompts: Vec<String> = (0..64).map(|number| format!("text {number} of")).collect();
    let request = |prompt: Value| json!({"model": "model", "prompt": prompt, "max_tokens": 3, "temperature": 0});
    let answer = api.ask("/v1/completions", &request(json!(prompts)))?;
    let choices = answer["choices"].as_array().context("no choices")?;
    assert_eq!(choices.len(), 64);
    for number in [0, 1, 31, 63] {
        let alone = api.ask("/v1/completions", &request(json!(prompts[number])))?;
        assert_eq!(choices[number]["text"], alone["choices"][0]["text"], "{number}");
    }
    let several = |n: u32, best_of: u32| {
        let mut several = request(json!("the cat sa"));
        for (name, value) in [
            ("n", json!(n)),
            ("best_of", json!(best_of)),
            ("seed", json!(3)),
            ("temperature", json!(1.5)),
            ("logprobs", json!(0)),
        ] {
            several[name] = value;
        }
        let answer = api.ask("/v1/completions", &several)?;
        let mean = |choice: &Value| floats(&choice["logprobs"]["token_logprobs"]).iter().sum::<f64>();
        anyhow::Ok(answer["choices"].as_array().context("no choices")?.iter().map(mean).collect::<Vec<f64>>())
    };
    let mut all = several(6, 6)?;
    all.sort_by(|a, b| b.total_cmp(a));
    let best = several(2, 6)?;
    assert_eq!(best.len(), 2);
    assert!(best.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-4), "{best:?} of {all:?}");
    api.stop()
}

#[test]
fn texts_become_tokens_and_vectors() -> anyhow::Result<()> {
    let golden: Value = serde_json::from_slice(&std::fs::read(Goldens::data("embeddings.json"))?)?;
    for family in ["llama-gqa", "qwen3"] {
        let goldens = Goldens::load(family)?;
        let directory = tempfile::tempdir()?;
        let template = template(directory.path())?;
        let swarm = ProcessSwarm::start(&goldens.model(), &["0..1", "1..4"])?;
        let api = ApiServer::start(swarm.tune("serve")?.path("--chat-template", &template))?;
        let rows = Goldens::input_ids()?;
        let embed = |more: Value| {
            let mut request = json!({"model": "model", "input": rows});
            more.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
            api.ask("/v1/embeddings", &request)
        };
        for pooling in ["last", "mean"] {
            let plain = embed(json!({"pooling": pooling, "normalize": false}))?;
            let unit = embed(json!({"pooling": pooling}))?;
            for row in 0..rows.len() {
                let expected = floats(&golden[family][pooling][row]);
                let norm = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
                let (plain, unit) = (floats(&plain["data"][row]["embedding"]), floats(&unit["data"][row]["embedding"]));
                assert_eq!((plain.len(), unit.len()), (expected.len(), expected.len()));
                for ((a, b), c) in expected.iter().zip(&plain).zip(&unit) {
                    assert!((a - b).abs() < 1e-4 && (a / norm - c).abs() < 1e-4, "{family}, {pooling}: {a} {b} {c}");
                }
            }
            let count: usize = rows.iter().map(Vec::len).sum();
            assert_eq!(unit["usage"], json!({"prompt_tokens": count, "total_tokens": count}));
        }
        let packed = embed(json!({"encoding_format": "base64"}))?;
        assert!(packed["data"][0]["embedding"].as_str().is_some_and(|text| text.len() > 40), "{packed}");
        let width = floats(&golden[family]["last"][0]).len();
        for (field, value) in [
            ("dimensions", json!(width + 1)),
            ("encoding_format", json!("int8")),
            ("input", json!("")),
            ("pooling", json!("cls")),
        ] {
            let mut request = json!({"model": "model", "input": "the cat"});
            request[field] = value;
            // An empty text is its begin token for tokenizers that have one.
            let answer = api.post("/v1/embeddings", &request)?;
            assert!(answer.status == 400 || field == "input", "{field}: {}", answer.body);
        }

        let text = goldens.value("prompt_text");
        let ids = goldens.ids("prompt_ids");
        let told = api.ask("/tokenize", &json!({"model": "model", "prompt": text, "return_token_strs": true}))?;
        assert_eq!((&told["tokens"], &told["count"]), (&json!(ids), &json!(ids.len())));
        assert_eq!(told["token_strs"].as_array().map(Vec::len), Some(ids.len()));
        assert!(told["max_model_len"].as_u64() > Some(0));
        let chat = json!({"messages": [{"role": "user", "content": "the cat"}]});
        let as_text = json!({"prompt": "<bos>[user] the cat\n[assistant]", "add_special_tokens": false});
        assert_eq!(api.ask("/tokenize", &chat)?["tokens"], api.ask("/tokenize", &as_text)?["tokens"]);
        let back = api.ask("/detokenize", &json!({"tokens": ids}))?;
        assert!(back["prompt"].as_str().is_some_and(|back| back.ends_with(text.as_str().unwrap_or("?"))), "{back}");
        assert_eq!(api.post("/detokenize", &json!({"tokens": [100_000]}))?.status, 400);
        assert_eq!(api.get("/version")?.json()?["version"], env!("CARGO_PKG_VERSION"));
        api.stop()?;
    }
    Ok(())
}
