//! `petals-tune serve`: Anthropic's Messages API, as its official client and plain HTTP see it.

use anyhow::Context;
use petals_e2e::{Goldens, ProcessSwarm, http, http_send};
use serde_json::{Value, json};

use crate::api_responses::{api_figure, ask, bias, server};
use crate::openai::{python, seen};

#[test]
fn the_official_client_reads_messages_events_and_errors() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let api = server(&swarm, directory.path(), &[])?;
    let (url, bias) = (format!("http://{}", api.address), bias(&api)?.to_string());
    let seen = seen(&python, "anthropic_client.py", &[&url, "a-secret", "model", &bias])?;
    assert_eq!((&seen["models"], &seen["model"]), (&json!(["model"]), &json!(512)));
    let text = seen["text"].as_str().filter(|text| !text.is_empty()).context("no text")?;
    assert_eq!((&seen["chat"], &seen["reason"]), (&json!(text), &json!("max_tokens")), "the same as a chat");
    assert_eq!(seen["usage"], json!([seen["counted"], 12]));
    assert!(seen["cached"].as_u64() > Some(0) && seen["bearer"] == true, "{seen}");
    assert_eq!(seen["pieces"], text);
    assert_eq!(seen["final"], json!([text, "max_tokens", seen["counted"]]));
    let events: Vec<&str> = seen["events"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let (first, rest) = events.split_at_checked(2).context("too few events")?;
    assert_eq!(first, ["message_start", "content_block_start"]);
    let (deltas, last) = rest.split_at_checked(rest.len().saturating_sub(3)).context("too few events")?;
    assert!(!deltas.is_empty() && deltas.iter().all(|event| *event == "content_block_delta"), "{events:?}");
    assert_eq!(last, ["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(seen["prefilled"][0], seen["prefilled"][1]);
    let stop = seen["stop"].as_str().filter(|stop| !stop.is_empty()).context("no stop text")?;
    let before = text.split(stop).next().unwrap_or_default();
    assert_eq!(seen["stopped"], json!([before, "stop_sequence", stop]));
    assert_eq!(seen["finished"], json!(["in the yard", "end_turn", null]));
    let called = &seen["uses"][0];
    assert_eq!((&called[0], &called[2]), (&json!("read"), &json!("toolu_")), "{seen}");
    assert!(called[1].is_object(), "{seen}");
    assert_eq!((&seen["streamed"][0][0], &seen["streamed"][0][1]), (&called[0], &called[1]));
    assert_eq!((&seen["use_reason"], &seen["told"]), (&json!(["tool_use", "tool_use"]), &json!("assistant")));
    for (number, (name, kind, words)) in [
        ("NotFoundError", "not_found_error", "claude"),
        ("BadRequestError", "invalid_request_error", "messages[0].content[0].type` is image"),
        ("BadRequestError", "invalid_request_error", "prompt is too long: "),
        ("BadRequestError", "invalid_request_error", "web_search_20250305"),
        ("BadRequestError", "invalid_request_error", "`stop_sequences`"),
        ("AuthenticationError", "authentication_error", "x-api-key"),
        ("NotFoundError", "not_found_error", "/v1/messages"),
    ]
    .into_iter()
    .enumerate()
    {
        let error = &seen["errors"][number];
        assert_eq!((&error[0], &error[1]), (&json!(name), &json!(kind)), "{error}");
        assert!(error[2].as_str().is_some_and(|message| message.contains(words)), "{error}");
    }
    assert!(api_figure(&api, "endpoint=\"messages\",status=\"200\"")? >= 8.0);
    assert!(api_figure(&api, "endpoint=\"count_tokens\",status=\"200\"")? >= 2.0);
    api.stop()
}

#[test]
fn errors_of_the_whole_server_have_anthropics_form_on_its_paths() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let more = ["--concurrent", "1", "--queue-timeout", "100ms", "--request-bytes", "20000"];
    let api = server(&swarm, directory.path(), &more)?;
    let message = |text: &str, tokens: u32| {
        let messages = json!([{"role": "user", "content": text}]);
        json!({"model": "model", "max_tokens": tokens, "messages": messages, "ignore_eos": true, "stream": tokens > 100})
    };
    let (json_type, key) = ("Content-Type: application/json", "x-api-key: a-secret");
    let small = message("the cat", 2).to_string();
    let check = |head: &[&str], body: &str, status: u16, kind: &str| {
        let answer = http(api.address, head, body)?;
        let error = answer.json()?;
        let id = answer.header("request-id").unwrap_or_default();
        assert_eq!((answer.status, &error["type"], &error["error"]["type"]), (status, &json!("error"), &json!(kind)));
        assert!(id.starts_with("req_") && error["request_id"] == id, "{head:?}: {}", answer.body);
        anyhow::Ok(answer)
    };
    check(&["POST /v1/messages", json_type], &small, 401, "authentication_error")?;
    check(&["POST /v1/messages", json_type, "x-api-key: other"], &small, 401, "authentication_error")?;
    check(&["GET /v1/messages", key], "", 405, "invalid_request_error")?;
    check(&["POST /v1/messages/batches", json_type, key], "{}", 404, "not_found_error")?;
    check(&["POST /v1/messages", key], &small, 415, "invalid_request_error")?;
    check(&["POST /v1/messages", json_type, key], "{", 400, "invalid_request_error")?;
    check(
        &["POST /v1/messages", json_type, key],
        &message(&"x".repeat(30_000), 2).to_string(),
        413,
        "request_too_large",
    )?;
    // Wherever Anthropic's client asks, and nobody else.
    let version = "anthropic-version: 2023-06-01";
    check(&["GET /v1/models/claude", key, version], "", 404, "not_found_error")?;
    assert_eq!(http(api.address, &["GET /v1/models/claude", key], "")?.json()?["error"]["code"], "model_not_found");
    let counted = ask(&api, "POST /v1/messages/count_tokens", &message("the cat", 2))?.json()?;
    let answer = http(api.address, &["POST /v1/messages?beta=true", json_type, key, version], &small)?;
    let usage = &answer.json()?["usage"];
    assert_eq!((answer.status, &usage["input_tokens"]), (200, &counted["input_tokens"]), "{}", answer.body);

    let head = ["POST /v1/messages", json_type, key];
    let stream = http_send(api.address, &head, &message("the cat", 490).to_string())?;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let waited = loop {
        let answer = http(api.address, &head, &small)?;
        if answer.status != 200 || std::time::Instant::now() > deadline {
            break answer;
        }
    };
    let error = waited.json()?;
    assert_eq!((waited.status, &error["error"]["type"]), (529, &json!("overloaded_error")), "{}", waited.body);
    drop(stream);
    api.stop()
}
