use std::fs;

use serde_json::{Map, Value, json};

use super::*;

/// What transformers made of the same templates and conversations (`tests/oracle/chat_templates.py`).
const GOLDENS: &str = include_str!("../../../tests/goldens/data/chat-templates.json");

fn goldens() -> Value {
    serde_json::from_str(GOLDENS).unwrap()
}

/// The same as values of templates, which keep the order of objects.
fn variables() -> minijinja::Value {
    serde_json::from_str(GOLDENS).unwrap()
}

/// What came out differs from what transformers has: a description, or none.
fn difference(expected: &Value, rendered: &Result<String, TemplateError>) -> Option<String> {
    let equal = match rendered {
        Ok(text) => expected["text"].as_str() == Some(text),
        Err(TemplateError::Refused(message)) => expected["error"].as_str() == Some(message),
        Err(_) => expected["failed"].is_string(),
    };
    (!equal).then(|| format!("{expected}\n    but {rendered:?}"))
}

#[test]
fn conversations_render_as_in_transformers() {
    let goldens = goldens();
    let cases = goldens["cases"].as_array().unwrap();
    assert!(cases.len() > 300);
    let tokens = goldens["tokens"].as_object().unwrap();
    let talks = variables().get_attr("conversations").unwrap();
    let differences: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let source = goldens["templates"][case["template"].as_str().unwrap()].as_str().unwrap().to_owned();
            let template = ChatTemplate::compile(source, tokens.clone()).unwrap();
            let given = talks.get_attr(case["conversation"].as_str().unwrap()).unwrap();
            let answer = minijinja::context! { add_generation_prompt => case["answer"].as_bool().unwrap() };
            difference(case, &template.render_given(minijinja::context! { ..answer, ..given }))
        })
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Templates that docs/inference.md says are treated otherwise than by Jinja2: the first words of their sources.
const KNOWN: [&str; 7] = [
    // Mistakes that are forgiven.
    "{{ nothing[1:] }}",
    "{{ 'a' < 1 }}",
    "{{ 1 in 'a' }}",
    "{% for n in nothing %}",
    // Missing: `%` for texts, `varargs` and `kwargs` of macros, lipsum.
    "{{ '%s and %d' % (",
    "{% macro m(a, b='x', c=none) %}{{ a }}{{ b }}{{ c }}{{ varargs }}",
    "{% if word.startswith('B') and word|length > 3 or not nothing %}t{% endif %}{{ joiner is defined }} {{ lipsum",
];

#[test]
fn expressions_are_those_of_jinja2() {
    let goldens = goldens();
    let cases = goldens["expressions"].as_array().unwrap();
    assert!(cases.len() > 100);
    let given = variables().get_attr("variables").unwrap();
    let mut differences = Vec::new();
    for case in cases {
        let source = case["source"].as_str().unwrap();
        let rendered = ChatTemplate::compile(source.to_owned(), Map::new()).and_then(|t| t.render_given(given.clone()));
        let different = difference(case, &rendered);
        assert!(different.is_some() || !KNOWN.iter().any(|known| source.starts_with(known)), "no longer: {source}");
        differences.extend(different.filter(|_| !KNOWN.iter().any(|known| source.starts_with(known))));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn directory(config: &Value) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    root
}

fn hello() -> [Message; 1] {
    [Message::new("user", "hello")]
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let named =
        json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ bos_token }}list"}]);
    let root = directory(&json!({"chat_template": named, "bos_token": {"content": "<b>"}}));
    let text =
        |file: Option<&std::path::Path>| ChatTemplate::load(root.path(), file).unwrap().render(&hello()).unwrap();
    assert_eq!(text(None), "<b>list");
    fs::write(root.path().join("chat_template.jinja"), "{{ eos_token }}file").unwrap();
    fs::write(root.path().join("special_tokens_map.json"), r#"{"eos_token": "<e>"}"#).unwrap();
    assert_eq!(text(None), "<e>file");
    let other = root.path().join("other.jinja");
    fs::write(&other, "{{ messages[0].content }}").unwrap();
    assert_eq!(text(Some(&other)), "hello");
}

#[test]
fn a_missing_or_unusable_template_is_said() {
    let root = directory(&json!({"chat_template": null}));
    let missing = ChatTemplate::load(root.path(), None).unwrap_err().to_string();
    assert!(missing.contains("--chat-template"), "{missing}");
    let broken = directory(&json!({"chat_template": "{% if %}"}));
    assert!(matches!(ChatTemplate::load(broken.path(), None), Err(TemplateError::Syntax(_))));
    let number = directory(&json!({"chat_template": 3}));
    assert!(matches!(ChatTemplate::load(number.path(), None), Err(TemplateError::Malformed { .. })));
    let unreadable = ChatTemplate::load(root.path(), Some(&root.path().join("none")));
    assert!(matches!(unreadable, Err(TemplateError::Read { .. })));
}

#[test]
fn a_template_cannot_run_for_ever_nor_divide_by_zero() {
    let of = |source: &str| ChatTemplate::compile(source.to_owned(), Map::new()).unwrap().render(&hello());
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{{ b }}{% endfor %}{% endfor %}";
    assert!(matches!(of(endless), Err(TemplateError::Failed(_))));
    assert!(matches!(of("{{ 1 // 0 }}"), Err(TemplateError::Failed(_))));
    assert!(matches!(of("{{ nothing.at.all }}"), Err(TemplateError::Failed(_))));
}

#[test]
fn dates_are_written_as_in_python() {
    let date = |format, seconds| dates::strftime(format, seconds);
    assert_eq!(date("%d %b %Y", 1_721_952_000), "26 Jul 2024");
    assert_eq!(date("%A, %B %-d, %Y %H:%M:%S", 1_709_209_425), "Thursday, February 29, 2024 12:23:45");
    assert_eq!(date("%a %y-%m-%d %I %p %% %Q %F %T", 0), "Thu 70-01-01 12 AM % %Q 1970-01-01 00:00:00");
}
