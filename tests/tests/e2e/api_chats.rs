//! `petals-tune serve`: chats as agents and editors send them, with tools, variables of templates and numbers of all kinds.

use std::path::Path;

use anyhow::Context;
use petals_e2e::{ApiServer, Goldens, ProcessSwarm};
use serde_json::{Value, json};

/// Knows tools and a variable, as Qwen 3's template does.
const TEMPLATE: &str = "<bos>{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}\
    {% for message in messages %}[{{ message.role }}] {{ message.content }}\
    {% for call in message.tool_calls %}<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}{{ '\n' }}{% endfor %}\
    {% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %} <think>{% endif %}{% endif %}";

fn server(swarm: &ProcessSwarm, directory: &Path, template: &str, more: &[&str]) -> anyhow::Result<ApiServer> {
    let path = directory.join("tools.jinja");
    std::fs::write(&path, template)?;
    ApiServer::start(swarm.tune("serve")?.path("--chat-template", &path).args(more))
}

fn with(base: &Value, more: Value) -> Value {
    let mut request = base.clone();
    more.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
    request
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    json!([{"type": "function", "function": {"name": "read", "description": "Reads a file", "parameters": parameters}}])
}

#[test]
fn what_clients_ask_for_beyond_the_room_is_cut_and_their_numbers_are_understood() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let adapter = format!("deep={}", goldens.path("init-replace").display());
    let api = server(&swarm, directory.path(), TEMPLATE, &["--adapter", &adapter])?;
    let chat = json!({"model": "model", "messages": [{"role": "user", "content": "the cat"}], "temperature": 0});
    let room = |model: &str| {
        let told = api.get(&format!("/v1/models/{model}"))?.json()?;
        told["max_model_len"].as_u64().context("no room")
    };
    for (model, more) in [
        ("model", json!({"max_tokens": 32_000})),
        ("model", json!({"max_completion_tokens": 8192})),
        ("model:deep", json!({"max_tokens": -1})),
    ] {
        let ignoring = json!({"model": model, "ignore_eos": true});
        let answer = api.ask("/v1/chat/completions", &with(&with(&chat, more), ignoring))?;
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["total_tokens"].as_u64(), Some(room(model)?), "{model}: all that there is room for");
    }
    let long = api.post(
        "/v1/chat/completions",
        &with(&chat, json!({"messages": [{"role": "user", "content": "a b ".repeat(600)}]})),
    )?;
    let error = &long.json()?["error"];
    assert_eq!(
        (long.status, &error["code"], &error["param"]),
        (400, &json!("context_length_exceeded"), &json!("messages"))
    );
    assert!(
        error["message"].as_str().is_some_and(|text| text.contains(&format!("{} tokens", room("model").unwrap_or(0))))
    );

    let base = with(&chat, json!({"max_tokens": 4}));
    let plain = api.ask("/v1/chat/completions", &base)?;
    for more in [
        json!({"top_p": 0, "temperature": 1}),
        json!({"top_k": -1}),
        json!({"max_tokens": 4.0, "n": 1.0, "seed": 7.0}),
        json!({"stop": [""]}),
        json!({"stop": null, "n": null, "stream": null, "tools": null, "logprobs": null, "response_format": null}),
        json!({"seed": -1, "presence_penalty": 0, "user": "u", "response_format": {"type": "text"}, "logprobs": false}),
        json!({"reasoning_effort": "low", "store": false, "metadata": {}, "top_logprobs": 0}),
    ] {
        let answer = api.ask("/v1/chat/completions", &with(&base, more.clone()))?;
        assert_eq!(answer["choices"], plain["choices"], "{more}");
    }
    for (param, more) in [
        ("response_format.json_schema", json!({"response_format": {"type": "json_schema"}})),
        ("guided_choice", json!({"guided_choice": [1]})),
        ("chat_template", json!({"chat_template": "{{ 1 }}"})),
        ("top_logprobs", json!({"top_logprobs": 3})),
        ("top_logprobs", json!({"logprobs": true, "top_logprobs": 21})),
        ("tool_choice", json!({"tool_choice": "required"})),
    ] {
        let answer = api.post("/v1/chat/completions", &with(&base, more.clone()))?;
        assert_eq!((answer.status, &answer.json()?["error"]["param"]), (400, &json!(param)), "{more}: {}", answer.body);
    }
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    let answer = api.post("/v1/chat/completions", &with(&base, image))?;
    assert!(answer.status == 400 && answer.body.contains("image_url"), "{}", answer.body);
    let suffix = api.post("/v1/completions", &json!({"model": "model", "prompt": "a", "suffix": "b"}))?;
    assert_eq!((suffix.status, &suffix.json()?["error"]["param"]), (400, &json!("suffix")));
    api.stop()
}

#[test]
fn templates_are_told_of_tools_calls_and_variables() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let api = server(&swarm, directory.path(), TEMPLATE, &[])?;
    let messages = json!([{"role": "user", "content": "the cat"}]);
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"z\": 1, \"a\": 2}"}});
    let history = json!([
        {"role": "user", "content": [{"type": "text", "text": "the"}, {"type": "text", "text": "cat"}]},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "in the yard"},
        {"role": "developer", "content": "So?"},
    ]);
    let begun = json!([{"role": "user", "content": "the"}, {"role": "assistant", "content": "cat "}]);
    let tool = r#"{"type": "function", "function": {"name": "read", "description": "Reads a file", "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}}}"#;
    // As it is on the wire, since the order of keys is seen by the model.
    let raw = format!(
        r#"{{"model": "model", "messages": [{{"role": "user", "content": "the cat"}}], "max_tokens": 1, "tools": [{tool}]}}"#
    );
    let answer = petals_e2e::http(api.address, &["POST /v1/chat/completions", "Content-Type: application/json"], &raw)?;
    let counted = |text: &str| {
        let told = api.ask("/tokenize", &json!({"prompt": text, "add_special_tokens": false}))?;
        anyhow::Ok(told["tokens"].clone())
    };
    let told = answer.json()?["usage"]["prompt_tokens"].clone();
    assert_eq!(told, counted(&format!("<bos>{tool}\n[user] the cat\n[assistant]"))?.as_array().map_or(0, Vec::len));
    for (more, text) in [
        (json!({"messages": messages}), "<bos>[user] the cat\n[assistant]"),
        (
            json!({"messages": messages, "chat_template_kwargs": {"enable_thinking": false}}),
            "<bos>[user] the cat\n[assistant] <think>",
        ),
        (json!({"messages": messages, "enable_thinking": false}), "<bos>[user] the cat\n[assistant] <think>"),
        (json!({"messages": messages, "tools": tools(), "tool_choice": "none"}), "<bos>[user] the cat\n[assistant]"),
        (json!({"messages": messages, "add_generation_prompt": false}), "<bos>[user] the cat\n"),
        (
            json!({"messages": history}),
            "<bos>[user] the\ncat\n[assistant] <tool_call>look {\"z\": 1, \"a\": 2}\n[tool] in the yard\n[system] So?\n[assistant]",
        ),
        (
            json!({"messages": begun, "add_generation_prompt": false, "continue_final_message": true}),
            "<bos>[user] the\n[assistant] cat ",
        ),
    ] {
        let tokens = api.ask("/tokenize", &more)?["tokens"].clone();
        assert_eq!(tokens, counted(text)?, "{more}");
        let request = with(&more, json!({"model": "model", "max_tokens": 2}));
        let answer = api.ask("/v1/chat/completions", &request)?;
        assert_eq!(
            answer["usage"]["prompt_tokens"].as_u64().map(|count| count as usize),
            tokens.as_array().map(Vec::len)
        );
    }
    api.stop()?;

    // The same variables on the command line.
    let path = directory.path().join("tools.jinja");
    let text = |arguments: &[&str]| {
        let events = swarm.tune("generate")?.args(&["--max-new-tokens", "8"]).args(arguments).events()?;
        let generated = events.into_iter().find(|event| event["event"] == "generated").context("no text")?;
        anyhow::Ok((generated["token_ids"].clone(), generated["prompt_tokens"].clone()))
    };
    let template = path.to_str().context("no UTF-8")?;
    let chat = ["--chat", "--chat-template", template, "--prompt", "the cat"];
    assert_eq!(text(&chat)?, text(&["--prompt", "[user] the cat\n[assistant]"])?);
    let off = text(&[&chat[..], &["--template-arg", "enable_thinking=false"]].concat())?;
    assert_eq!(off, text(&["--prompt", "[user] the cat\n[assistant] <think>"])?);
    let output = swarm
        .tune("generate")?
        .args(&chat)
        .args(&["--max-new-tokens", "8", "--template-arg", "enable_thinking=no"])
        .output()?;
    assert!(output.status.code() == Some(2) && String::from_utf8_lossy(&output.stderr).contains("is no JSON"));
    let chat = swarm.tune("chat")?.args(&[
        "--json",
        "--temperature",
        "0",
        "--max-new-tokens",
        "8",
        "--chat-template",
        template,
    ]);
    let said = chat.args(&["--template-arg", "enable_thinking=false"]).output_with("the cat\n")?;
    let said = String::from_utf8(said.stdout)?;
    let events = said.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let answer = events.into_iter().find(|event| event["event"] == "answer").context("no answer")?;
    assert_eq!(answer["prompt_tokens"], off.1);
    Ok(())
}

/// The model is a random one; schemas lead it to the only arguments that there are.
#[test]
fn a_tool_that_must_be_called_is_called_whole_and_in_pieces() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let plain = "<bos>{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";
    let api = server(&swarm, directory.path(), plain, &["--tool-format", "hermes"])?;
    let token = |text: &str| {
        let told = api.ask("/tokenize", &json!({"prompt": text, "add_special_tokens": false}))?;
        anyhow::Ok(told["tokens"].as_array().and_then(|tokens| tokens.last().cloned()).context("no token")?.to_string())
    };
    let tight = json!({"whitespace_flexible": false});
    let tool = |name: &str, more: Value| {
        let parameters = json!({"type": "object", "additionalProperties": false, "x-guidance": tight});
        json!({"type": "function", "function": {"name": name, "parameters": with(&parameters, more)}})
    };
    let read = tool("read", json!({"properties": {"path": {"enum": ["yard"]}}, "required": ["path"]}));
    let named = json!({"type": "function", "function": {"name": "read"}});
    let request = json!({
        "model": "model", "messages": [{"role": "user", "content": "the cat"}], "temperature": 0, "max_tokens": 60, "tools": [read],
        "tool_choice": named,
    });
    let arguments = "{\"path\":\"yard\"}";
    let answer = api.ask("/v1/chat/completions", &request)?;
    let choice = &answer["choices"][0];
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null),
        "{answer}"
    );
    assert_eq!(
        (&call["type"], &call["function"]),
        (&json!("function"), &json!({"name": "read", "arguments": arguments}))
    );
    assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")));
    // With one tool `required` means that one.
    let one = json!({"tool_choice": "required", "parallel_tool_calls": false});
    let required = with(&with(&request, one.clone()), json!({"stream": true}));
    let events = api.post("/v1/chat/completions", &required)?.events()?;
    let deltas: Vec<&Value> = events
        .iter()
        .map(|event| &event["choices"][0]["delta"]["tool_calls"])
        .filter(|calls| calls.is_array())
        .collect();
    let [delta] = deltas.as_slice() else { anyhow::bail!("{events:?}") };
    assert_eq!(
        (&delta[0]["index"], &delta[0]["function"]),
        (&json!(0), &json!({"name": "read", "arguments": arguments}))
    );
    assert_eq!(events.last().context("no events")?["choices"][0]["finish_reason"], "tool_calls");
    // With several it means one of them, whichever the model likes best.
    let either = with(&with(&request, one), json!({"tools": [read, tool("write", json!({}))]}));
    let answer = api.ask("/v1/chat/completions", &either)?;
    let called = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    let known = [json!({"name": "read", "arguments": arguments}), json!({"name": "write", "arguments": "{}"})];
    assert!(known.contains(called), "{answer}");
    // Who may call, and does not, answers with text.
    let mut bias = serde_json::Map::new();
    for (text, strength) in [("[", 100), ("]", 90), ("}", 80)] {
        bias.insert(token(text)?, strength.into());
    }
    let biased = json!({"tool_choice": "auto", "logit_bias": bias, "repetition_penalty": 2, "max_tokens": 3});
    let auto = with(&request, biased);
    let choice = api.ask("/v1/chat/completions", &auto)?["choices"][0].clone();
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("[]}"), &json!("length")));
    assert!(choice["message"].get("tool_calls").is_none());
    // A random model would never say any of these by itself.
    for choices in [
        json!({"guided_choice": ["in the yard", "nowhere"]}),
        json!({"structured_outputs": {"choice": ["in the yard", "nowhere"]}}),
    ] {
        let ask = with(&choices, json!({"model": "model", "messages": request["messages"], "temperature": 1}));
        let choice = api.ask("/v1/chat/completions", &ask)?["choices"][0].clone();
        let text = choice["message"]["content"].as_str().unwrap_or_default();
        assert!((text == "in the yard" || text == "nowhere") && choice["finish_reason"] == "stop", "{choice}");
    }
    api.stop()?;

    // Without a format nobody can be made to call.
    let api = server(&swarm, directory.path(), plain, &[])?;
    let refused = api.post("/v1/chat/completions", &request)?;
    assert_eq!((refused.status, &refused.json()?["error"]["param"]), (400, &json!("tool_choice")));
    assert_eq!(api.post("/v1/chat/completions", &auto)?.status, 200, "tools that the template ignores are ignored");
    api.stop()
}
