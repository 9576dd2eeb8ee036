//! `petals-tune serve`: requests as they come from other people's programs, whatever is around the JSON.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::Context;
use petals_e2e::{ApiServer, Goldens, ProcessSwarm, http};
use serde_json::{Value, json};

use crate::serve::template;

/// `{"prompt": "the cat", "max_tokens": 2, "temperature": 0}`, packed by Python's `gzip.compress(…, mtime=0)`.
const PACKED: &[u8] = &[
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xab, 0x56, 0x2a, 0x28, 0xca, 0xcf, 0x2d, 0x28, 0x51,
    0xb2, 0x52, 0x50, 0x2a, 0xc9, 0x48, 0x55, 0x48, 0x4e, 0x2c, 0x51, 0xd2, 0x51, 0x50, 0xca, 0x4d, 0xac, 0x88, 0x2f,
    0xc9, 0xcf, 0x4e, 0xcd, 0x2b, 0x06, 0x4a, 0x18, 0x01, 0x05, 0x4a, 0x52, 0x73, 0x0b, 0x52, 0x8b, 0x12, 0x4b, 0x4a,
    0x8b, 0x52, 0x81, 0x22, 0x06, 0xb5, 0x00, 0xfe, 0x61, 0x7c, 0x99, 0x38, 0x00, 0x00, 0x00,
];

#[test]
fn an_endpoint_is_found_by_every_spelling_of_its_address() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let serve = swarm.tune("serve")?.path("--chat-template", &template(directory.path())?);
    let api = ApiServer::start(serve.args(&["--cors", "https://chat.example.org"]))?;
    let messages = json!([{"role": "user", "content": "the cat"}]);
    // Without a model it is the one that is served.
    let request = json!({"messages": messages, "max_tokens": 4, "temperature": 0});
    let expected = api.ask("/v1/chat/completions", &request)?;
    assert_eq!(expected["model"], "model");
    for path in ["/chat/completions", "/v1/chat/completions/", "//v1/v1/chat/completions", "/chat/completions/?a=1"] {
        assert_eq!(api.ask(path, &request)?["choices"], expected["choices"], "{path}");
    }
    for path in ["/models", "/v1/models/", "/v1/v1/models"] {
        assert_eq!(api.get(path)?.json()?, api.get("/v1/models")?.json()?, "{path}");
    }
    assert_eq!(api.get("/models/model")?.json()?["id"], "model");
    assert_eq!(api.get("/v1/health/")?.json()?["status"], "ok");
    let info = api.get("/tokenizer_info")?.json()?;
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<bos>"), &json!("<eos>")));
    assert_eq!((&info["chat_template"], &info["model_max_length"]), (&json!(crate::serve::TEMPLATE), &json!(512)));

    let unknown = api.get("/v1/nothing")?;
    assert!(unknown.status == 404 && unknown.body.contains("/v1/nothing"), "{}", unknown.body);
    let method = api.get("/v1/completions")?;
    assert!(method.status == 405 && method.body.contains("GET") && method.body.contains("POST"), "{}", method.body);
    // What browsers ask before they let a page of an allowed origin send headers of its own.
    let asked =
        ["OPTIONS /chat/completions", "Origin: https://chat.example.org", "Access-Control-Request-Headers: x-own"];
    assert_eq!(http(api.address, &asked, "")?.header("access-control-allow-headers"), Some("x-own"));
    api.stop()
}

#[test]
fn bodies_are_unpacked_and_texts_that_were_cut_are_read() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let api = ApiServer::start(swarm.tune("serve")?)?;
    let plain = r#"{"prompt": "the cat", "max_tokens": 2, "temperature": 0}"#;
    let send = |headers: &str, body: &[u8]| -> anyhow::Result<(u16, Value)> {
        let mut stream = TcpStream::connect(api.address)?;
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, serde_json::from_str(body)?))
    };
    let (status, expected) = send("", plain.as_bytes())?;
    assert_eq!(status, 200, "{expected}");
    let marked = [b"\xef\xbb\xbf", plain.as_bytes()].concat();
    for (headers, body) in [("Content-Encoding: gzip\r\n", PACKED), ("", &marked)] {
        let (status, answer) = send(headers, body)?;
        assert_eq!((status, &answer["choices"]), (200, &expected["choices"]), "{answer}");
    }
    let (status, refused) = send("Content-Encoding: zstd\r\n", plain.as_bytes())?;
    assert!(status == 415 && refused["error"]["message"].as_str().is_some_and(|m| m.contains("zstd")), "{refused}");
    let half = plain.replace("the cat", r"the cat \ud83d");
    let whole = plain.replace("the cat", "the cat \u{fffd}");
    assert_eq!(send("", half.as_bytes())?.1["choices"], send("", whole.as_bytes())?.1["choices"]);
    api.stop()
}

#[test]
fn texts_get_what_the_tokenizer_puts_around_them_unless_told_otherwise() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let api = ApiServer::start(swarm.tune("serve")?)?;
    let count = |more: Value| {
        let mut request = json!({"prompt": "the cat", "input": "the cat", "max_tokens": 1});
        more.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
        let count = |path: &str| api.ask(path, &request)?["usage"]["prompt_tokens"].as_u64().context("no count");
        anyhow::Ok((count("/v1/completions")?, count("/v1/embeddings")?))
    };
    let tokens = api.ask("/tokenize", &json!({"prompt": "the cat", "add_special_tokens": false}))?["count"].as_u64();
    let tokens = tokens.context("no count")?;
    assert_eq!(count(json!({}))?, (tokens + 1, tokens + 1), "with the one that begins texts");
    assert_eq!(count(json!({"add_special_tokens": true}))?, (tokens + 1, tokens + 1));
    assert_eq!(count(json!({"add_special_tokens": false}))?, (tokens, tokens));
    for (name, value) in [("min_tokens", json!(3)), ("skip_special_tokens", json!(false))] {
        let mut request = json!({"prompt": "the cat"});
        request[name] = value;
        let refused = api.post("/v1/completions", &request)?;
        assert_eq!((refused.status, &refused.json()?["error"]["param"]), (400, &json!(name)));
    }
    api.stop()
}
