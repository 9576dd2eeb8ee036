//! `petals-tune serve`: OpenAI's Responses API, as its official client and plain HTTP see it.

use std::io::Read as _;
use std::path::Path;

use anyhow::Context;
use petals_e2e::{ApiServer, Goldens, ProcessSwarm, http, http_send};
use serde_json::{Value, json};

use crate::openai::{python, seen};
use crate::serve::template;

/// Without the letters that the bias below is for: the penalty would count them.
const PLAIN: &str = "<bos>{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}\
    {% if add_generation_prompt %}assistant:{% endif %}";

/// A bias with which a random model writes `[]}`, once each, if repetitions cost as well: the end of a call.
pub(crate) fn bias(api: &ApiServer) -> anyhow::Result<Value> {
    let mut bias = serde_json::Map::new();
    for (text, strength) in [("[", 100), ("]", 90), ("}", 80)] {
        let told = http(
            api.address,
            &["POST /tokenize", "Content-Type: application/json", "Authorization: Bearer a-secret"],
            &json!({"prompt": text, "add_special_tokens": false}).to_string(),
        )?;
        let token = told.json()?["tokens"].as_array().and_then(|tokens| tokens.last().cloned()).context("no token")?;
        bias.insert(token.to_string(), strength.into());
    }
    Ok(bias.into())
}

/// A server behind a key, of a model that calls tools.
pub(crate) fn server(swarm: &ProcessSwarm, directory: &Path, more: &[&str]) -> anyhow::Result<ApiServer> {
    let path = directory.join("plain.jinja");
    std::fs::write(&path, PLAIN)?;
    let serve = swarm.tune("serve")?.path("--chat-template", &path).args(&["--tool-format", "hermes"]).args(more);
    ApiServer::start(serve.env("PETALS_API_KEY", "a-secret"))
}

/// Asks with the key, and the client's headers.
pub(crate) fn ask(api: &ApiServer, line: &str, body: &Value) -> anyhow::Result<petals_e2e::HttpAnswer> {
    http(api.address, &[line, "Content-Type: application/json", "Authorization: Bearer a-secret"], &body.to_string())
}

#[test]
fn the_official_client_reads_answers_events_and_errors() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let api = server(&swarm, directory.path(), &[])?;
    let (url, bias) = (format!("http://{}/v1", api.address), bias(&api)?.to_string());
    let seen = seen(&python, "responses_client.py", &[&url, "a-secret", "model", &bias])?;
    assert!(seen["text"].as_str().is_some_and(|text| !text.is_empty()), "{seen}");
    assert_eq!((&seen["text"], &seen["usage"]), (&seen["chat"], &seen["chat_usage"]), "the same as a chat");
    assert_eq!(seen["status"], json!(["incomplete", "max_output_tokens", {"a": "b"}, "be brief"]));
    assert_eq!((&seen["pieces"], &seen["last"]), (&seen["text"], &seen["text"]));
    let events: Vec<&str> = seen["events"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let (first, rest) = events.split_at_checked(4).context("too few events")?;
    let added = ["response.output_item.added", "response.content_part.added"];
    assert_eq!(first, [["response.created", "response.in_progress"], added].concat());
    let (deltas, last) = rest.split_at_checked(rest.len().saturating_sub(4)).context("too few events")?;
    assert!(!deltas.is_empty() && deltas.iter().all(|event| *event == "response.output_text.delta"), "{events:?}");
    let done = ["response.output_text.done", "response.content_part.done", "response.output_item.done"];
    assert_eq!(last, [&done[..], &["response.incomplete"]].concat());
    assert_eq!(seen["numbers"], json!((0..events.len()).collect::<Vec<_>>()));
    let turns = &seen["turns"];
    assert!(turns[0] == turns[1] && turns[1] == turns[2] && turns[0][1] == seen["counted"], "{seen}");
    assert!(seen["cached"].as_u64() > Some(0) && seen["retrieved"] == true, "{seen}");
    assert_eq!(seen["final"], json!(["in the yard", "completed"]));
    let call = &seen["calls"][0];
    assert_eq!((&call[0], &call[2]), (&json!("read"), &json!("call_")), "{seen}");
    assert_eq!((&seen["streamed"][0][0], &seen["streamed"][0][1]), (&call[0], &call[1]));
    assert_eq!(seen["call_status"], json!(["completed", "completed"]));
    assert!(seen["places"].as_array().is_some_and(|list| list.len() == 4 && list.iter().all(|place| place[1] == 2)));
    assert_eq!(seen["scored_events"], 4);
    let expected = json!([
        ["NotFoundError", "model", "model_not_found"],
        ["BadRequestError", "tools[0].type", null],
        ["BadRequestError", "input", "context_length_exceeded"],
        ["BadRequestError", "background", null],
        ["BadRequestError", "previous_response_id", "previous_response_not_found"],
        ["NotFoundError", null, null],
        ["BadRequestError", "input[0].content", null],
        ["AuthenticationError", null, "invalid_api_key"],
    ]);
    assert_eq!(seen["errors"], expected);
    assert!(api_figure(&api, "endpoint=\"responses\",status=\"200\"")? >= 10.0);
    api.stop()
}

/// Requests with some labels.
pub(crate) fn api_figure(api: &ApiServer, labels: &str) -> anyhow::Result<f64> {
    let text = ask(api, "GET /metrics", &Value::Null)?.body;
    let lines = text.lines().filter(|line| line.starts_with("petals_requests_total") && line.contains(labels));
    Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_response_or_a_message_frees_its_place() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let serve = swarm.tune("serve")?.path("--chat-template", &template).args(&["--concurrent", "1", "--queue", "0"]);
    let api = ApiServer::start(serve)?;
    let response =
        json!({"model": "model", "input": "the cat", "max_output_tokens": 490, "stream": true, "ignore_eos": true});
    let messages = json!([{"role": "user", "content": "the cat"}]);
    let message =
        json!({"model": "model", "messages": messages, "max_tokens": 490, "stream": true, "ignore_eos": true});
    for (number, (path, body)) in [("/v1/responses", &response), ("/v1/messages", &message)].into_iter().enumerate() {
        let head = [&format!("POST {path}"), "Content-Type: application/json"];
        let mut stream = http_send(api.address, &head, &body.to_string())?;
        let (mut read, mut bytes) = (Vec::new(), [0; 256]);
        while !read.windows(6).any(|window| window == b"_delta" || window == b".delta") {
            let count = stream.read(&mut bytes)?;
            anyhow::ensure!(count > 0, "no stream: {}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&bytes[..count]);
        }
        // While the place is taken others are refused, each in its own form.
        let refused = api.post("/v1/messages", &message)?;
        let error = refused.json()?;
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("2")));
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!("rate_limit_error")));
        let refused = api.post("/v1/responses", &response)?;
        assert_eq!((refused.status, &refused.json()?["error"]["code"]), (429, &json!("rate_limit_exceeded")));
        drop(stream);
        api.wait_for("petals_texts_total", "finish=\"cancelled\"", (number + 1) as f64)?;
        api.wait_for("petals_active_texts", "", 0.0)?;
    }
    let again = api.ask("/v1/responses", &json!({"model": "model", "input": "the cat", "max_output_tokens": 2}))?;
    assert_eq!(again["usage"]["output_tokens"], 2);
    api.stop()
}

#[test]
fn other_methods_and_unknown_answers_are_refused() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let api = server(&swarm, directory.path(), &["--cors", "https://chat.example.org"])?;
    for (line, status) in [
        ("GET /v1/responses", 405),
        ("GET /v1/responses/input_tokens", 405),
        ("POST /v1/responses/resp_1", 405),
        ("GET /v1/responses/resp_1", 404),
        ("GET /v1/responses/resp_1?stream=true", 400),
        ("DELETE /v1/responses/resp_1", 404),
        ("GET /v1/responses/resp_1/input_items", 404),
    ] {
        let answer = ask(&api, line, &Value::Null)?;
        assert!(answer.status == status && answer.json()?["error"]["message"].is_string(), "{line}: {}", answer.body);
    }
    let nobody = http(api.address, &["POST /v1/responses", "Content-Type: application/json"], "{}")?;
    assert_eq!((nobody.status, &nobody.json()?["error"]["code"]), (401, &json!("invalid_api_key")));
    let preflight = http(api.address, &["OPTIONS /v1/messages", "Origin: https://chat.example.org"], "")?;
    assert!(preflight.header("access-control-allow-headers").is_some_and(|names| names.contains("x-api-key")));
    api.stop()
}
