//! Conversations by a model's chat template. Tokens: `<bos>` 0, `<eos>` 1, `<unk>` 2, `a` 3, `b` 4, `c` 5.

use super::*;

/// Answers end with their token; a question begins an answer by its `c`.
const TEMPLATE: &str = "{% for message in messages %}{% if message.role == 'user' %}{{ '<bos> ' + message.content + ' c' }}\
                        {% else %}{{ ' ' + message.content + ' <eos>' }}{% endif %}{% endfor %}";

fn with_template(template: &str) -> Fixture {
    let fixture = Fixture::new();
    fs::write(fixture.model.path().join("chat_template.jinja"), template).unwrap();
    fixture
}

fn talk(turns: &[(&str, &str)]) -> serde_json::Value {
    turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

/// An example of which the tokens between these pairs are learnt.
fn learnt(tokens: &[u32], spans: &[(usize, usize)]) -> Example {
    let spans = spans.iter().map(|&(start, end)| start..end).collect();
    Example { tokens: tokens.to_vec(), target: Target::Tokens(spans) }
}

#[test]
fn answers_are_learnt_in_every_form_of_conversation() {
    let fixture = with_template(TEMPLATE);
    let turns = talk(&[("user", "a"), ("assistant", "b"), ("user", "b"), ("assistant", "a a")]);
    let share_gpt = json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                           {"from": "human", "value": "b"}, {"from": "gpt", "value": "a a"}]);
    let all = learnt(&[0, 3, 5, 4, 1, 0, 4, 5, 3, 3, 1], &[(3, 5), (8, 11)]);
    for row in [json!({"messages": turns}), json!({"conversations": share_gpt})] {
        let dataset = fixture.load("d.jsonl", row.to_string(), &given(Task::CausalLm)).unwrap();
        assert_eq!(dataset.examples, std::slice::from_ref(&all), "{row}");
    }
    let row = json!({"prompt": [turns[0], turns[1], turns[2]], "completion": [turns[3]]});
    let dataset = fixture.load("d.jsonl", row.to_string(), &given(Task::CausalLm)).unwrap();
    assert_eq!(dataset.examples, [learnt(&all.tokens, &[(8, 11)])]);
    let row = json!({"instruction": "a", "input": "", "output": "b", "text": "ignored"});
    let dataset = fixture.load("d.jsonl", row.to_string(), &given(Task::CausalLm)).unwrap();
    assert_eq!(dataset.examples, [learnt(&[0, 3, 5, 4, 1], &[(3, 5)])]);
}

#[test]
fn conversations_without_answers_are_counted() {
    let fixture = with_template(TEMPLATE);
    let rows = json!([
        {"messages": talk(&[("user", "a"), ("assistant", "b")])},
        {"messages": talk(&[("user", "a")])},
        {"messages": []},
        {"messages": talk(&[("user", "a a a"), ("assistant", "b")])},
    ]);
    let dataset = fixture.load("d.json", rows.to_string(), &cut(5, false)).unwrap();
    let counts = dataset.counts;
    assert_eq!((dataset.examples.len(), counts.empty, counts.without_label, counts.cut), (1, 1, 2, 1));
}

#[test]
fn a_template_that_refuses_or_is_missing_is_said_with_the_line() {
    let row = json!({"messages": talk(&[("user", "a"), ("assistant", "b")])}).to_string();
    let missing = Fixture::new().refused("d.jsonl", &row, &given(Task::CausalLm));
    assert!(missing.starts_with("d.jsonl:1: ") && missing.contains("--chat-template"), "{missing}");
    let refuses = with_template("{{ raise_exception('no talking') }}");
    let message = refuses.refused("d.jsonl", &row, &given(Task::CausalLm));
    assert!(message.starts_with("d.jsonl:1: ") && message.contains("no talking"), "{message}");
}

#[test]
fn without_a_template_instructions_are_in_the_words_of_alpaca() {
    let fixture = Fixture::new();
    let rows = json!([{"instruction": "a", "input": "b", "output": "c"}, {"instruction": "a", "output": "c"}]);
    let dataset = fixture.load("d.json", rows.to_string(), &given(Task::CausalLm)).unwrap();
    let words: Vec<usize> = dataset.examples.iter().map(|example| example.tokens.len()).collect();
    assert!(words[0] > words[1] && dataset.examples.iter().all(|example| example.labels() == 1));
}
