//! `petals-tune serve`: answers of a form. The models are random ones: without a form they never say anything of the kind.

use anyhow::Context;
use petals_e2e::{ApiServer, Goldens, ProcessSwarm};
use serde_json::{Value, json};

use crate::serve::template;

fn with(base: &Value, more: &Value) -> Value {
    let mut request = base.clone();
    more.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
    request
}

/// Short, so that a random model comes to its end; names that are not in alphabetical order.
fn schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["name", "count", "colour"],
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "colour": {"enum": ["grün", "🐈", "红"]},
        },
        "x-guidance": {"whitespace_flexible": false},
    })
}

fn follows_schema(text: &str) -> anyhow::Result<()> {
    let value: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
    let keys: Vec<&String> = value.as_object().context("no object")?.keys().collect();
    assert_eq!(keys, ["name", "count", "colour"], "{text}");
    assert!(value["name"].as_str().is_some_and(|name| name.chars().count() <= 6), "{text}");
    assert!(value["count"].as_u64().is_some_and(|count| count <= 99), "{text}");
    assert!(["grün", "🐈", "红"].map(Value::from).contains(&value["colour"]), "{text}");
    Ok(())
}

#[test]
fn answers_have_the_form_that_is_asked_for_whole_and_in_pieces() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let api = ApiServer::start(swarm.tune("serve")?.path("--chat-template", &template))?;
    let chat =
        json!({"model": "model", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 200, "seed": 3});
    let completion = json!({"model": "model", "prompt": "the cat", "max_tokens": 200, "seed": 3});
    let named = json!({"name": "pet", "strict": true, "schema": schema()});
    for form in [
        json!({"response_format": {"type": "json_schema", "json_schema": named}}),
        json!({"guided_json": schema().to_string()}),
        json!({"structured_outputs": {"json": schema()}, "temperature": 0}),
        // What is foreseen in texts that repeat themselves changes nothing.
        json!({"guided_json": schema(), "n": 3, "temperature": 0.7}),
    ] {
        for (path, base) in [("/v1/chat/completions", &chat), ("/v1/completions", &completion)] {
            let request = with(base, &form);
            let answer = api.ask(path, &request)?;
            let choices = answer["choices"].as_array().context("no choices")?;
            assert_eq!(choices.len(), form["n"].as_u64().unwrap_or(1) as usize);
            let text = |choice: &Value| {
                let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
                text.unwrap_or_default().to_owned()
            };
            for choice in choices {
                assert_eq!(choice["finish_reason"], "stop", "{choice}");
                follows_schema(&text(choice))?;
            }
            let events = api.post(path, &with(&request, &json!({"stream": true})))?.events()?;
            for choice in choices {
                let own = events.iter().filter_map(|event| {
                    event["choices"].as_array()?.iter().find(|part| part["index"] == choice["index"])
                });
                let pieces: Vec<&Value> = own.collect();
                let streamed: String = pieces
                    .iter()
                    .filter_map(|part| part["delta"]["content"].as_str().or(part["text"].as_str()))
                    .collect();
                assert_eq!(streamed, text(choice), "{path} {form}");
                assert_eq!(pieces.last().context("no pieces")?["finish_reason"], "stop");
            }
        }
    }
    // A grammar, an expression, any object.
    for (form, fits) in [
        (
            json!({"guided_regex": "(ja|nein), [0-9]{3}"}),
            (|text: &str| text.ends_with(|c: char| c.is_ascii_digit())) as fn(&str) -> bool,
        ),
        (json!({"guided_grammar": "start: \"[\" NUM (\",\" NUM)~2 \"]\"\nNUM: /[0-9]/\n"}), |text| text.len() == 7),
        (json!({"grammar": "root ::= \"<\" [a-c]{4} \">\"\n"}), |text| text.len() == 6 && text.starts_with('<')),
        (json!({"guided_choice": ["in the yard", "nowhere"]}), |text| ["in the yard", "nowhere"].contains(&text)),
        (json!({"response_format": {"type": "json_object"}, "logit_bias": {"95": 100}}), |text| text.starts_with('{')),
    ] {
        let answer = api.ask("/v1/completions", &with(&completion, &form))?;
        let text = answer["choices"][0]["text"].as_str().unwrap_or_default();
        assert!(fits(text), "{form}: {answer}");
    }
    // Cut off by its length, by a text, and not by the model's end token.
    let cut = with(&completion, &json!({"guided_json": schema(), "max_tokens": 5}));
    let answer = api.ask("/v1/completions", &cut)?;
    assert_eq!(
        (&answer["choices"][0]["finish_reason"], &answer["usage"]["completion_tokens"]),
        (&json!("length"), &json!(5))
    );
    assert!(answer["choices"][0]["text"].as_str().is_some_and(|text| text.starts_with("{\"n")), "{answer}");
    let stopped = with(&completion, &json!({"guided_json": schema(), "stop": "\"count\""}));
    let answer = api.ask("/v1/completions", &stopped)?;
    let text = answer["choices"][0]["text"].as_str().unwrap_or_default();
    assert!(text.ends_with(',') && !text.contains("count"), "{answer}");
    let unending = with(&completion, &json!({"guided_json": schema(), "ignore_eos": true, "logprobs": 1}));
    let choice = api.ask("/v1/completions", &unending)?["choices"][0].clone();
    follows_schema(choice["text"].as_str().unwrap_or_default())?;
    assert_eq!(choice["finish_reason"], "stop");
    api.stop()
}

#[test]
fn forms_that_cannot_be_are_refused_before_anything_is_generated() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let api = ApiServer::start(swarm.tune("serve")?.path("--chat-template", &template))?;
    let chat = json!({"model": "model", "messages": [{"role": "user", "content": "the cat"}], "stream": true});
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let deep = (0..200).fold("1".to_owned(), |inner, _| format!("[{inner}]"));
    for (param, more, words) in [
        ("response_format.json_schema.schema", schema(json!({"type": "thing"})), "thing"),
        ("response_format.json_schema.schema", schema(json!({"$ref": "#/$defs/none"})), "none"),
        ("response_format.json_schema.schema", schema(json!({"allOf": [{"$ref": "#"}]})), ""),
        ("response_format.json_schema.schema", schema(json!({"description": "x".repeat(300_000)})), "bytes"),
        ("guided_json", json!({"guided_json": format!("{{\"const\": {deep}}}")}), "recursion"),
        ("guided_regex", json!({"guided_regex": "(?=a)b"}), "look-around"),
        ("guided_grammar", json!({"guided_grammar": "start: x"}), "x"),
        ("structured_outputs.regex", json!({"guided_json": {}, "structured_outputs": {"regex": "a"}}), "guided_json"),
    ] {
        let answer = api.post("/v1/chat/completions", &with(&chat, &more))?;
        let error = &answer.json()?["error"];
        assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(words)), "{error}");
    }
    assert!(api.figure("petals_texts_total", "")? < 1.0, "nothing was generated");
    api.stop()
}

#[test]
fn arguments_of_calls_follow_the_schemas_of_their_tools() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let tool = |name: &str, strict: bool| json!({"type": "function", "function": {"name": name, "strict": strict, "parameters": schema()}});
    let chat = json!({
        "model": "model", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 300,
        "tools": [tool("look", false), tool("go", true)],
    });
    for format in ["hermes", "llama", "mistral", "qwen3-coder"] {
        let api =
            ApiServer::start(swarm.tune("serve")?.path("--chat-template", &template).args(&["--tool-format", format]))?;
        for (seed, stream) in [(1, false), (2, true)] {
            let named = json!({"type": "function", "function": {"name": "go"}});
            for (choice, names) in [(json!("required"), vec!["look", "go"]), (named, vec!["go"])] {
                let request = with(
                    &chat,
                    &json!({"tool_choice": choice, "seed": seed, "parallel_tool_calls": false, "stream": stream}),
                );
                let answer = api.post("/v1/chat/completions", &request)?;
                let parts: Vec<Value> = if stream {
                    answer.events()?.iter().map(|event| event["choices"][0].clone()).collect()
                } else {
                    vec![answer.json()?["choices"][0].clone()]
                };
                let calls: Vec<&Value> = parts
                    .iter()
                    .filter_map(|part| {
                        part["message"]["tool_calls"].as_array().or(part["delta"]["tool_calls"].as_array())
                    })
                    .flatten()
                    .collect();
                let [call] = calls.as_slice() else { anyhow::bail!("{format}: not one call: {parts:?}") };
                let function = &call["function"];
                assert!(function["name"].as_str().is_some_and(|name| names.contains(&name)), "{format}: {call}");
                follows_schema(function["arguments"].as_str().unwrap_or_default())?;
                assert_eq!(parts.last().context("no parts")?["finish_reason"], "tool_calls", "{format}");
            }
        }
        api.stop()?;
    }
    Ok(())
}
