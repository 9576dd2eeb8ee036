//! The rules at the door, without a swarm.

use std::time::Duration;

use axum::body::Bytes;
use serde_json::{Value, json};

use super::Gate;
use super::parameters::{Fields, Parameters};

fn taken(request: &Value) -> Result<Parameters, String> {
    let mut fields = Fields::parse(&Bytes::from(request.to_string())).map_err(|error| error.json().to_string())?;
    Parameters::take(&mut fields).map_err(|error| {
        assert_eq!(error.status(), 400);
        error.json()["error"]["param"].as_str().unwrap_or_default().to_owned()
    })
}

#[test]
fn requests_are_read_as_openai_means_them() {
    let request = json!({
        "model": "m", "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "seed": -1, "n": 2,
        "stop": "x", "stream": true, "stream_options": {"include_usage": true}, "user": "u", "frequency_penalty": 0,
        "logit_bias": {}, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5, "presence_penalty": null,
    });
    let parameters = taken(&request).unwrap();
    assert_eq!(
        (parameters.max_new_tokens, parameters.n, parameters.stop.as_slice()),
        (Some(7), 2, &["x".to_owned()][..])
    );
    assert!(parameters.stream && parameters.include_usage);
    let sampling = parameters.sampling(1);
    assert_eq!((sampling.temperature, sampling.top_k, sampling.seed), (0.0, 3, 0));
    let least = taken(&json!({"model": "m"})).unwrap();
    assert_eq!((least.sampling.temperature, least.n, least.stream, least.max_new_tokens), (1.0, 1, false, None));
}

#[test]
fn a_wrong_field_is_named() {
    for (field, value) in [
        ("model", json!(3)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1.5)),
        ("max_completion_tokens", json!("many")),
        ("temperature", json!(-1)),
        ("temperature", json!(2.1)),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-1)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("frequency_penalty", json!(0.5)),
        ("presence_penalty", json!(-1)),
        ("logit_bias", json!({"1": 2})),
        ("best_of", json!(2)),
        ("seed", json!("x")),
        ("n", json!(0)),
        ("n", json!(17)),
        ("stream", json!(1)),
        ("stream_options", json!({"include_usage": true})),
        ("stop", json!("")),
        ("stop", json!([1])),
        ("stop", json!(vec!["a"; 17])),
    ] {
        let mut request = json!({"model": "m"});
        request[field] = value.clone();
        assert_eq!(taken(&request), Err(field.to_owned()), "{field}: {value}");
    }
    assert_eq!(taken(&json!({})), Err("model".to_owned()));
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
    assert_eq!(gate.enter(3).await.err().map(|error| error.status().as_u16()), Some(400));
    drop(fifth);
    assert_eq!(gate.active(), 0);
    gate.close();
    assert_eq!(gate.enter(1).await.err().map(|error| error.status().as_u16()), Some(503));
}
