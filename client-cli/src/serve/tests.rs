//! The rules at the door, without a swarm.

use std::time::Duration;

use axum::body::Bytes;
use serde_json::{Value, json};

use super::Gate;
use super::fields::Fields;
use super::parameters::Parameters;

fn taken(request: &Value) -> Result<Parameters, String> {
    let mut fields = Fields::parse(&Bytes::from(request.to_string())).map_err(|error| error.json().to_string())?;
    Parameters::take(&mut fields, 1000, 1).map_err(|error| {
        assert_eq!(error.status(), 400);
        error.json()["error"]["param"].as_str().unwrap_or_default().to_owned()
    })
}

#[test]
fn requests_are_read_as_openai_means_them() {
    let request = json!({
        "model": "m", "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "seed": -1, "n": 2,
        "stop": "x", "stream": true, "stream_options": {"include_usage": true}, "user": "u", "frequency_penalty": 0.5,
        "logit_bias": {"7": -100, "8": 1000}, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5, "presence_penalty": null,
    });
    let parameters = taken(&request).unwrap();
    assert_eq!(
        (parameters.max_new_tokens, parameters.n, parameters.stop.as_slice()),
        (Some(7), 2, &["x".to_owned()][..])
    );
    assert!(parameters.stream && parameters.include_usage);
    let sampling = parameters.sampling(1);
    assert_eq!((sampling.temperature, sampling.top_k, sampling.seed), (0.0, 3, 0));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (0.5, 0.0));
    assert_eq!(&*sampling.logit_bias, [(7, -100.0), (8, 100.0)]);
    let least = taken(&json!({"model": "m"})).unwrap();
    assert_eq!((least.sampling.temperature, least.n, least.stream, least.max_new_tokens), (1.0, 1, false, None));
}

#[test]
fn numbers_are_what_clients_mean_by_them() {
    let with = |field: &str, value: Value| {
        let mut request = json!({"model": "m", "seed": 1});
        request[field] = value;
        taken(&request)
    };
    let plain = taken(&json!({"model": "m", "seed": 1})).unwrap();
    for field in [
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "stream",
        "stream_options",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "response_format",
        "user",
        "guided_json",
        "stop_token_ids",
        "ignore_eos",
        "metadata",
    ] {
        assert_eq!(with(field, Value::Null).as_ref(), Ok(&plain), "{field}: null is as missing");
    }
    for (field, value) in [
        ("top_k", json!(-1)),
        ("top_k", json!(0)),
        ("top_k", json!(-1.0)),
        ("stop", json!("")),
        ("stop", json!([])),
        ("stop", json!(["", ""])),
        ("n", json!(1.0)),
        ("seed", json!(1.0)),
        ("presence_penalty", json!(0)),
        ("frequency_penalty", json!(0.0)),
        ("logit_bias", json!({})),
        ("response_format", json!({"type": "text"})),
        ("unknown", json!({"a": 1})),
    ] {
        assert_eq!(with(field, value.clone()).as_ref(), Ok(&plain), "{field}: {value} changes nothing");
    }
    let tokens = |value: Value| with("max_tokens", value).map(|parameters| parameters.max_new_tokens);
    assert_eq!((tokens(json!(4.0)), tokens(json!(-1))), (Ok(Some(4)), Ok(Some(usize::MAX))));
    assert_eq!((tokens(json!(-1.0)), tokens(json!(32_000))), (Ok(Some(usize::MAX)), Ok(Some(32_000))));
    assert!(tokens(json!(u64::MAX)).is_ok());
    let top = with("top_p", json!(0)).unwrap().sampling;
    assert_eq!((top.temperature, top.top_p), (0.0, 1.0), "the most probable token");
    let seed = |value: Value| with("seed", value).map(|parameters| parameters.sampling.seed);
    assert_eq!((seed(json!(7.0)), seed(json!(-1))), (Ok(7), Ok(u64::MAX)));
    assert_ne!(seed(json!(0.25)), seed(json!(0.5)), "any number is a seed");
    assert_eq!(with("stop", json!(["", "x"])).map(|parameters| parameters.stop), Ok(vec!["x".to_owned()]));
}

#[test]
fn a_wrong_field_is_named() {
    for (field, value) in [
        ("model", json!(3)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-2)),
        ("max_tokens", json!(1.5)),
        ("max_completion_tokens", json!("many")),
        ("temperature", json!(-1)),
        ("temperature", json!(2.1)),
        ("top_p", json!(-0.1)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("frequency_penalty", json!(2.5)),
        ("presence_penalty", json!(-3)),
        ("logit_bias", json!({"1000": 2})),
        ("logit_bias", json!({"cat": 2})),
        ("logit_bias", json!({"1": "x"})),
        ("logit_bias", json!([1])),
        ("seed", json!("x")),
        ("n", json!(0)),
        ("n", json!(129)),
        ("n", json!(1.5)),
        ("stream", json!(1)),
        ("stream_options", json!({"include_usage": true})),
        ("stop", json!([1])),
        ("stop", json!(vec!["a"; 17])),
        ("stop_token_ids", json!([1000])),
        ("response_format", json!("json")),
        ("guided_choice", json!("a")),
        ("use_beam_search", json!(true)),
    ] {
        let mut request = json!({"model": "m"});
        request[field] = value.clone();
        assert_eq!(taken(&request), Err(field.to_owned()), "{field}: {value}");
    }
    assert_eq!(taken(&json!({})).map(|parameters| parameters.model), Ok(String::new()), "the one without adapters");
    assert!(taken(&json!([])).is_err());
    assert!(Fields::parse(&Bytes::from_static(b"{")).is_err());
}

#[tokio::test]
async fn requests_wait_for_their_turn_but_not_too_many_nor_for_ever() {
    let gate = Gate::new(2, 1, Duration::from_millis(50));
    let first = gate.enter(1).await.unwrap();
    let second = gate.enter(1).await.unwrap();
    assert_eq!((gate.active(), gate.waiting()), (2, 0));
    let (third, fourth) = tokio::join!(gate.enter(1), gate.enter(1));
    assert_eq!(third.err().map(|error| error.status().as_u16()), Some(503), "after a while");
    assert_eq!(fourth.err().map(|error| error.status().as_u16()), Some(429), "at once");
    assert_eq!(gate.waiting(), 0);
    let (fifth, ()) = tokio::join!(gate.enter(2), async { drop((first, second)) });
    assert!(fifth.is_ok());
    drop(fifth);
    let all = gate.enter(3).await.unwrap();
    assert_eq!((all.num_permits(), gate.active()), (2, 2), "all places that there are");
    drop(all);
    assert_eq!(gate.active(), 0);
    gate.close();
    assert_eq!(gate.enter(1).await.err().map(|error| error.status().as_u16()), Some(503));
}
