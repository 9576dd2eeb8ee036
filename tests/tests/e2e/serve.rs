//! `petals-tune serve`: the same texts as `generate`, in OpenAI's form, for those who may have them.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use petals_e2e::{ApiServer, Goldens, ProcessSwarm, Tune, http, http_send};
use serde_json::{Value, json};

/// The tiny models have no chat template of their own.
pub(crate) const TEMPLATE: &str = "<bos>{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}\
    {% if add_generation_prompt %}[assistant]{% endif %}";

pub(crate) fn template(directory: &Path) -> anyhow::Result<std::path::PathBuf> {
    let path = directory.join("chat.jinja");
    std::fs::write(&path, TEMPLATE)?;
    Ok(path)
}

/// What `petals-tune generate` says.
fn generated(swarm: &ProcessSwarm, prompt: &str, tokens: &str, adapter: Option<&Path>) -> anyhow::Result<String> {
    let mut tune = swarm.tune("generate")?.args(&["--prompt", prompt, "--max-new-tokens", tokens]);
    if let Some(adapter) = adapter {
        tune = tune.path("--adapter", adapter);
    }
    let events = tune.events()?;
    let text = events.iter().find(|event| event["event"] == "generated").and_then(|event| event["text"].as_str());
    Ok(text.context("no text")?.to_owned())
}

fn pieces(events: &[Value], of: impl Fn(&Value) -> Option<&str>) -> String {
    events.iter().filter_map(|event| of(&event["choices"][0])).collect()
}

#[test]
fn texts_are_those_of_generate_whole_and_in_pieces() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let deep = goldens.path("init-replace");
    let adapter = format!("deep={}", deep.display());
    let serve = swarm.tune("serve")?.args(&["--adapter", &adapter]).path("--chat-template", &template);
    let api = ApiServer::start(serve)?;

    let models = api.get("/v1/models")?.json()?;
    let names: Vec<&str> = models["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect();
    assert_eq!(names, ["model", "model:deep"]);
    assert_eq!(api.get("/v1/models/model:deep")?.json()?["parent"], "model");

    let prompt = goldens.value("prompt_text").as_str().context("no prompt")?;
    for (model, adapter) in [("model", None), ("model:deep", Some(deep.as_path()))] {
        let expected = generated(&swarm, prompt, "32", adapter)?;
        let mut request = json!({"model": model, "prompt": prompt, "max_tokens": 32, "temperature": 0});
        let whole = api.ask("/v1/completions", &request)?;
        assert_eq!(whole["choices"][0]["text"], expected.as_str(), "{model}");
        assert_eq!(whole["choices"][0]["finish_reason"], "length");
        assert_eq!((whole["object"].as_str(), whole["model"].as_str()), (Some("text_completion"), Some(model)));
        let prompt_tokens = goldens.ids("prompt_ids").len();
        assert_eq!(whole["usage"]["prompt_tokens"], prompt_tokens);
        assert_eq!(whole["usage"]["completion_tokens"], 32);
        assert_eq!(whole["usage"]["total_tokens"], prompt_tokens + 32);
        // The same again, of which the servers have the prompt; and as tokens.
        request["prompt"] = json!(goldens.ids("prompt_ids"));
        assert_eq!(api.ask("/v1/completions", &request)?["choices"][0]["text"], expected.as_str());
        request["stream"] = true.into();
        request["stream_options"] = json!({"include_usage": true});
        let answer = api.post("/v1/completions", &request)?;
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        let events = answer.events()?;
        assert_eq!(pieces(&events, |choice| choice["text"].as_str()), expected);
        let [.., last, usage] = events.as_slice() else { anyhow::bail!("too few events") };
        assert_eq!(last["choices"][0]["finish_reason"], "length");
        assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(32)));

        // A chat is its template's text.
        let said = "[user] the cat\n[assistant]";
        let expected = generated(&swarm, said, "24", adapter)?;
        let messages = json!([{"role": "user", "content": "the cat"}]);
        let mut request = json!({"model": model, "messages": messages, "max_completion_tokens": 24, "temperature": 0});
        let whole = api.ask("/v1/chat/completions", &request)?;
        let message = &whole["choices"][0]["message"];
        assert_eq!(
            (message["role"].as_str(), message["content"].as_str()),
            (Some("assistant"), Some(expected.as_str()))
        );
        request["stream"] = true.into();
        let events = api.post("/v1/chat/completions", &request)?.events()?;
        assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(events[0]["object"], "chat.completion.chunk");
        assert_eq!(pieces(&events, |choice| choice["delta"]["content"].as_str()), expected);
        assert!(events.len() > 8, "in pieces: {events:?}");
        assert_eq!(events.last().context("no events")?["choices"][0]["finish_reason"], "length");
    }
    assert!(api.figure("petals_time_to_first_token_seconds_count", "model=\"model\"")? >= 5.0);
    assert!(api.figure("petals_hop_steps_total", "blocks=\"0..2\"")? >= 100.0);
    api.stop()
}

#[test]
fn stop_strings_end_a_text_and_seeds_repeat_it() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen2")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let api = ApiServer::start(swarm.tune("serve")?)?;
    let base = json!({"model": "model", "prompt": "the cat", "max_tokens": 40, "temperature": 0});
    let with = |fields: Value| {
        let mut request = base.clone();
        fields.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
        request
    };
    let text =
        |answer: &Value, choice: usize| answer["choices"][choice]["text"].as_str().unwrap_or_default().to_owned();
    let whole = text(&api.ask("/v1/completions", &base)?, 0);
    let characters: Vec<char> = whole.chars().collect();
    // Two characters that are not both in one token, and one that comes later.
    let middle: String = characters[9..12].iter().collect();
    let expected = &whole[..whole.find(&middle).context("not in the text")?];
    for stop in [json!(middle), json!([characters[20..24].iter().collect::<String>(), middle, "never said"])] {
        let request = with(json!({"stop": stop}));
        let answer = api.ask("/v1/completions", &request)?;
        assert_eq!((text(&answer, 0).as_str(), &answer["choices"][0]["finish_reason"]), (expected, &json!("stop")));
        let tokens = answer["usage"]["completion_tokens"].as_u64().context("no count")?;
        assert!(tokens < 40, "{tokens} tokens for {expected:?}");
        let events = api.post("/v1/completions", &with(json!({"stop": stop, "stream": true})))?.events()?;
        assert_eq!(pieces(&events, |choice| choice["text"].as_str()), expected);
    }

    let sampled = with(json!({"n": 2, "temperature": 1.5, "seed": 7}));
    let (one, two) = (api.ask("/v1/completions", &sampled)?, api.ask("/v1/completions", &sampled)?);
    assert_eq!((text(&one, 0), text(&one, 1)), (text(&two, 0), text(&two, 1)));
    assert_ne!(text(&one, 0), text(&one, 1));
    assert_ne!(text(&api.ask("/v1/completions", &with(json!({"temperature": 1.5})))?, 0), text(&one, 0));
    let several = with(json!({"prompt": ["the cat", "a dog"], "n": 2}));
    let answer = api.ask("/v1/completions", &several)?;
    let texts: Vec<String> = (0..4).map(|choice| text(&answer, choice)).collect();
    assert_eq!((&texts[0], &texts[1], &texts[2]), (&whole, &whole, &texts[3]));
    assert_ne!(texts[2], whole);
    api.stop()
}

#[test]
fn wrong_requests_are_refused_in_openais_form() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let api = ApiServer::start(swarm.tune("serve")?.args(&[
        "--request-bytes",
        "20000",
        "--max-new-tokens",
        "100",
        "--allow-host",
        "api.internal",
    ]))?;
    assert!(api.serving["no_chat"].as_str().is_some_and(|why| why.contains("--chat-template")), "{}", api.serving);
    let completion = json!({"model": "model", "prompt": "a", "max_tokens": 2});
    let with = |name: &str, value: Value| {
        let mut request = completion.clone();
        request[name] = value;
        request
    };
    for (status, param, request) in [
        (404, json!("model"), with("model", json!("gpt-4"))),
        (400, json!("model"), with("model", json!(3))),
        (400, json!("prompt"), with("prompt", Value::Null)),
        (400, json!("prompt"), with("prompt", json!([]))),
        (400, json!("prompt"), with("prompt", json!([5000]))),
        (400, json!("prompt"), with("prompt", json!("a b ".repeat(400)))),
        (400, json!("max_tokens"), with("max_tokens", json!(-2))),
        (400, json!("temperature"), with("temperature", json!("hot"))),
        (400, json!("frequency_penalty"), with("frequency_penalty", json!(3))),
        (400, json!("echo"), with("echo", json!("yes"))),
        (400, json!("logprobs"), with("logprobs", json!(21))),
        (400, json!("best_of"), {
            let mut request = with("best_of", json!(1));
            request["n"] = 2.into();
            request
        }),
        (400, Value::Null, json!(3)),
        (413, Value::Null, with("prompt", json!("a".repeat(30_000)))),
    ] {
        let answer = api.post("/v1/completions", &request)?;
        let error = &answer.json()?["error"];
        assert_eq!((answer.status, &error["param"]), (status, &param), "{error}");
        assert!(
            error["message"].as_str().is_some_and(|message| message.len() > 10) && error["type"].is_string(),
            "{error}"
        );
    }
    // Chats are not possible without a template, and who asks is told what to do.
    let chat = json!({"model": "model", "messages": [{"role": "user", "content": "a"}]});
    let answer = api.post("/v1/chat/completions", &chat)?;
    assert!(answer.status == 400 && answer.body.contains("--chat-template"), "{answer:?}");
    assert_eq!(api.ask("/v1/completions", &completion)?["usage"]["completion_tokens"], 2);

    let json_type = "Content-Type: application/json";
    let body = completion.to_string();
    for (status, head, body) in [
        (404, vec!["GET /v1/nothing"], ""),
        (405, vec!["GET /v1/completions"], ""),
        (415, vec!["POST /v1/completions", "Content-Type: text/plain"], body.as_str()),
        (415, vec!["POST /v1/completions"], body.as_str()),
        (400, vec!["POST /v1/completions", json_type], "{\"model\": "),
        // A page of another name that points to this machine.
        (403, vec!["POST /v1/completions", json_type, "Host: evil.example:80"], body.as_str()),
        (200, vec!["POST /v1/completions", json_type, "Host: localhost:80"], body.as_str()),
        (200, vec!["POST /v1/completions", json_type, "Host: api.internal:80"], body.as_str()),
    ] {
        let answer = http(api.address, &head, body)?;
        assert_eq!(answer.status, status, "{head:?}: {}", answer.body);
        assert_eq!(answer.json()?["error"].is_object(), status != 200, "{head:?}: {}", answer.body);
    }
    assert!(api.figure("petals_requests_total", "status=\"413\"")? >= 1.0);
    // Names of models that do not exist are not kept.
    assert!(!api.get("/metrics")?.body.contains("gpt-4"));
    api.stop()
}

#[test]
fn the_key_is_needed_and_other_origins_are_let_in_by_name() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let serve = swarm.tune("serve")?.args(&["--cors", "https://chat.example.org"]).env("PETALS_API_KEY", "a-secret");
    let api = ApiServer::start(serve)?;
    assert_eq!(api.serving["key"], true);
    let status = |head: &[&str]| anyhow::Ok(http(api.address, head, "")?.status);
    for path in ["GET /v1/models", "GET /metrics"] {
        assert_eq!(status(&[path])?, 401);
        assert_eq!(status(&[path, "Authorization: Bearer another"])?, 401);
        assert_eq!(status(&[path, "Authorization: a-secret"])?, 401);
        assert_eq!(status(&[path, "Authorization: Bearer a-secret"])?, 200);
    }
    assert_eq!(http(api.address, &["POST /v1/completions"], "")?.json()?["error"]["code"], "invalid_api_key");
    assert_eq!((status(&["GET /health"])?, status(&["GET /"])?), (200, 200));
    let page = api.get("/")?;
    let policy = page.header("content-security-policy").context("no policy")?;
    assert!(policy.starts_with("default-src 'none'") && page.body.contains("<!doctype html>"));
    assert_ne!(api.get("/")?.header("content-security-policy"), Some(policy), "the nonce is used once");

    let asked = |origin: &str| http(api.address, &["OPTIONS /v1/chat/completions", &format!("Origin: {origin}")], "");
    let allowed = asked("https://chat.example.org")?;
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://chat.example.org"));
    assert!(allowed.header("access-control-allow-headers").is_some_and(|names| names.contains("authorization")));
    let others = asked("https://evil.example")?;
    assert_eq!(
        (others.header("access-control-allow-origin"), others.header("access-control-allow-headers")),
        (None, None)
    );
    api.stop()?;
    let empty = swarm.tune("serve")?.env("PETALS_API_KEY", "").output()?;
    assert_eq!(empty.status.code(), Some(2), "an empty key would let everybody in");
    Ok(())
}

#[test]
fn a_client_that_leaves_frees_its_session_and_an_idle_one_gives_way() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let mut swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    // Memory for one session of the model's 512 positions, half of what there is being for one client.
    let server = swarm.spawn_server(&["--blocks", "0..4", "--kv-bytes", "600000"])?;
    server.event("ready")?;
    swarm.servers.push(server);
    let api = ApiServer::start(swarm.tune("serve")?.path("--chat-template", &template))?;
    let long = json!({"model": "model", "prompt": "the cat sa", "max_tokens": 490, "temperature": 0, "stream": true});
    let mut stream =
        http_send(api.address, &["POST /v1/completions", "Content-Type: application/json"], &long.to_string())?;
    let mut seen = Vec::new();
    while !seen.windows(6).any(|window| window == b"data: ") {
        let mut bytes = [0; 256];
        let read = stream.read(&mut bytes)?;
        anyhow::ensure!(read > 0, "no stream: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&bytes[..read]);
    }
    drop(stream);
    api.wait_for("petals_texts_total", "finish=\"cancelled\"", 1.0)?;
    api.wait_for("petals_active_texts", "", 0.0)?;
    assert!(api.figure("petals_completion_tokens_total", "")? < 1.0, "it was cut off before its end");
    // There is room for another one of the same size.
    let answer = api.post("/v1/completions", &long)?.events()?;
    assert!(answer.len() > 2, "{answer:?}");

    // What a chat leaves on the server for its next message is in the way of another chat, and goes.
    let chat =
        |text: &str| json!({"model": "model", "messages": [{"role": "user", "content": text}], "max_tokens": 250});
    for text in ["the first of all", "quite another one", "and a third"] {
        assert!(api.ask("/v1/chat/completions", &chat(text))?["usage"]["completion_tokens"].as_u64() > Some(0));
    }
    assert!(api.figure("petals_idle_sessions", "")? > 0.0);
    api.stop()
}

#[test]
fn a_conversation_pays_for_what_is_new() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..1", "1..4"])?;
    let adapter = format!("add={}", goldens.path("init-add").display());
    let serve = |more: &[&str]| {
        let serve = swarm.tune("serve")?.args(&["--adapter", &adapter]).path("--chat-template", &template).args(more);
        ApiServer::start(serve)
    };
    // What is kept does not change what is said.
    let (keeping, forgetting) = (serve(&[])?, serve(&["--idle-sessions", "0"])?);
    let mut messages = vec![json!({"role": "system", "content": "be brief"})];
    for turn in 0..4 {
        messages.push(json!({"role": "user", "content": format!("the {turn}. question")}));
        let request = json!({"model": "model:add", "messages": messages, "max_tokens": 12, "temperature": 0});
        let answer = keeping.ask("/v1/chat/completions", &request)?;
        assert_eq!(answer["choices"], forgetting.ask("/v1/chat/completions", &request)?["choices"], "turn {turn}");
        let usage = &answer["usage"];
        let [all, reused] =
            [&usage["prompt_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]].map(Value::as_u64);
        let (all, reused) = all.zip(reused).context("no counts")?;
        assert!(
            if turn == 0 { reused == 0 } else { reused > all / 3 && reused < all },
            "turn {turn}: {reused} of {all}"
        );
        messages.push(json!({"role": "assistant", "content": answer["choices"][0]["message"]["content"]}));
    }
    assert!(forgetting.figure("petals_reused_tokens_total", "")? < 1.0);
    keeping.stop()?;
    forgetting.stop()
}

#[test]
fn sixteen_at_a_time_get_what_they_would_get_alone_and_the_rest_waits_or_is_refused() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let adapter = format!("deep={}", goldens.path("init-replace").display());
    let serve = |more: &[&str]| ApiServer::start(swarm.tune("serve")?.args(&["--adapter", &adapter]).args(more));
    let request = |number: usize| {
        let model = if number.is_multiple_of(2) { "model" } else { "model:deep" };
        json!({"model": model, "prompt": format!("text {number} of"), "max_tokens": 24, "temperature": 0})
    };
    let api = serve(&["--concurrent", "4"])?;
    let text = |answer: Value| answer["choices"][0]["text"].as_str().map(str::to_owned);
    let alone = (0..16).map(|number| anyhow::Ok(text(api.ask("/v1/completions", &request(number))?)));
    let alone = alone.collect::<anyhow::Result<Vec<_>>>()?;
    let together = std::thread::scope(|scope| {
        let ask = |number| {
            scope.spawn({
                let api = &api;
                move || api.ask("/v1/completions", &request(number))
            })
        };
        let threads: Vec<_> = (0..16).map(ask).collect();
        threads
            .into_iter()
            .map(|thread| anyhow::Ok(text(thread.join().expect("no panic")?)))
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    assert_eq!(together, alone);
    assert!(alone.iter().all(Option::is_some) && alone[0] != alone[1]);
    api.stop()?;

    // One place, and nobody waits: while it is taken others are refused.
    let api = serve(&["--concurrent", "1", "--queue", "0"])?;
    let long = json!({"model": "model", "prompt": "the cat sa", "max_tokens": 480, "temperature": 0, "stream": true});
    let stream =
        http_send(api.address, &["POST /v1/completions", "Content-Type: application/json"], &long.to_string())?;
    api.wait_for("petals_active_texts", "", 1.0)?;
    let refused = api.post("/v1/completions", &request(0))?;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("2")), "{}", refused.body);
    drop(stream);
    api.wait_for("petals_active_texts", "", 0.0)?;
    assert_eq!(api.post("/v1/completions", &request(0))?.status, 200);
    // The texts of a request take turns where there are not enough places for all.
    let two = api.ask("/v1/completions", &json!({"model": "model", "prompt": "a", "n": 2, "max_tokens": 2}))?;
    assert_eq!(two["choices"].as_array().map(Vec::len), Some(2));
    api.stop()
}

#[test]
fn mistakes_at_the_start_are_named() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let peer = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
    for (arguments, words) in [
        (vec!["--adapter", "x=/nonexistent"], "/nonexistent"),
        (vec!["--adapter", "a:b=/tmp"], "NAME=DIR"),
        (vec!["--chat-template", "/nonexistent.jinja"], "/nonexistent.jinja"),
        (vec!["--api-key-file", "/nonexistent.key"], "/nonexistent.key"),
        (vec!["--cors", "example.org"], "https://"),
        (vec!["--listen", "8080"], "--listen"),
    ] {
        let serve = Tune::bare(&["serve", "--peers", peer])?.path("--model", &goldens.model()).args(&arguments);
        let output = serve.output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(words), "{arguments:?}: {stderr}");
    }
    Ok(())
}
