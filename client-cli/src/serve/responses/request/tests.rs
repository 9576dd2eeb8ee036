use axum::body::Bytes;

use super::super::super::kept::Entry;
use super::*;

fn asked_of(kept: &Kept, more: &Value) -> Result<Asked, String> {
    let mut request = json!({"model": "m", "input": "x"});
    more.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
    let fields = Fields::parse(&Bytes::from(request.to_string())).map_err(|error| error.json().to_string())?;
    Asked::take(fields, kept).map_err(|error| error.json()["error"]["param"].as_str().unwrap_or_default().to_owned())
}

fn asked(more: Value) -> Result<Asked, String> {
    asked_of(&Kept::default(), &more)
}

#[test]
fn a_request_becomes_one_for_a_chat() {
    let plain = asked(json!({})).unwrap();
    assert_eq!(plain.chat, json!({"messages": [{"role": "user", "content": "x"}], "model": "m"}));
    assert!(plain.store);
    let schema = json!({"type": "object", "z": 1, "a": 2});
    let all = asked(json!({
        "instructions": "s", "max_output_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stream": true, "store": false, "user": "u",
        "tools": [{"type": "function", "name": "look", "parameters": {}}], "tool_choice": {"type": "function", "name": "look"},
        "parallel_tool_calls": false, "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": true}, "verbosity": "low"},
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 3, "truncation": "auto",
        "reasoning": {"effort": "none"}, "metadata": {"a": "b"}, "service_tier": "flex", "background": false, "seed": 4, "n": 3,
        "max_tokens": 9, "stream_options": {"include_obfuscation": false}, "prompt_cache_key": "k",
    }));
    let all = all.unwrap();
    let expected = json!({
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}},
        "logprobs": true, "top_logprobs": 3, "enable_thinking": false, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 4,
        "model": "m", "stream": true, "parallel_tool_calls": false,
    });
    assert_eq!(all.chat, expected);
    assert!(!all.store);
    for (name, value) in [
        ("instructions", json!("s")),
        ("max_output_tokens", json!(7)),
        ("metadata", json!({"a": "b"})),
        ("tool_choice", json!({"type": "function", "name": "look"})),
        ("service_tier", json!("default")),
        ("truncation", json!("disabled")),
        ("top_logprobs", json!(3)),
        ("user", json!("u")),
    ] {
        assert_eq!(all.repeated[name], value, "{name}");
    }
    assert_eq!(plain.repeated["text"], json!({"format": {"type": "text"}}));
    // Probabilities are told to who includes them.
    assert_eq!(asked(json!({"top_logprobs": 3})).unwrap().chat.get("logprobs"), None);
    for form in ["text", "json_object"] {
        let chat = asked(json!({"text": {"format": {"type": form}}})).unwrap().chat;
        assert_eq!(chat["response_format"], json!({"type": form}));
    }
}

#[test]
fn an_answer_that_is_kept_is_gone_on_from_without_its_instructions() {
    let kept = Kept::default();
    let user = json!({"type": "message", "role": "user", "content": "a"});
    let answer = json!({"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]});
    kept.put(Entry { id: "resp_1".to_owned(), response: json!({}), items: vec![user.clone(), answer.clone()] });
    let next = asked_of(&kept, &json!({"previous_response_id": "resp_1", "instructions": "s"})).unwrap();
    let said = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "x"}]);
    assert_eq!(next.chat["messages"], said);
    assert_eq!(next.items, [user, answer, json!({"type": "message", "role": "user", "content": "x"})]);
    assert_eq!(next.repeated["previous_response_id"], "resp_1");
    let fields = json!({"model": "m", "input": "x", "previous_response_id": "resp_2"}).to_string();
    let error = Asked::take(Fields::parse(&Bytes::from(fields)).unwrap(), &kept).unwrap_err().json();
    assert_eq!(error["error"]["code"], "previous_response_not_found");
}

#[test]
fn a_wrong_field_is_named() {
    for (more, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "input[0].content"),
        (json!({"instructions": ["s"]}), "instructions"),
        (json!({"previous_response_id": "resp_x"}), "previous_response_id"),
        (json!({"background": true}), "background"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"truncation": "middle"}), "truncation"),
        (json!({"store": "yes"}), "store"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"metadata": "x"}), "metadata"),
        (json!({"include": ["everything"]}), "include"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
        (json!({"text": "json"}), "text"),
        (json!({"text": {"format": "json"}}), "text.format"),
        (json!({"text": {"format": {}}}), "text.format"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"reasoning": "much"}), "reasoning"),
    ] {
        assert_eq!(asked(more.clone()).map(|_| ()), Err(param.to_owned()), "{more}");
    }
    for (here, there) in [
        ("messages", "input"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format.json_schema", "text.format.json_schema"),
        ("tools[0].function.name", "tools[0].name"),
        ("temperature", "temperature"),
    ] {
        let told = reworded(ApiError::field(here, "is wrong")).json();
        assert_eq!(
            (&told["error"]["param"], &told["error"]["message"]),
            (&json!(there), &json!(format!("`{there}` is wrong")))
        );
    }
}
