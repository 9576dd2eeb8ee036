use serde::Deserialize;
use serde_json::Map;

use super::*;
use crate::chat::ToolFormat;

/// What transformers made of the same templates, tools and conversations (`tests/oracle/chat_tools.py`).
const GOLDENS: &str = include_str!("../../../../tests/goldens/data/chat-tools.json");

#[derive(Deserialize)]
struct Golden {
    tokens: Map<String, serde_json::Value>,
    templates: BTreeMap<String, String>,
    tools: Json,
    conversations: BTreeMap<String, Vec<Said>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
    #[serde(default)]
    tool_calls: Vec<Called>,
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
struct Called {
    id: String,
    function: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    arguments: Json,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    tools: bool,
    ending: String,
    variables: Variables,
    text: Option<String>,
    error: Option<String>,
}

impl From<&Said> for Turn {
    fn from(said: &Said) -> Self {
        let call = |Called { id, function: Named { name, arguments } }: &Called| Call {
            id: Some(id.clone()),
            r#type: "function",
            function: Function { name: name.clone(), arguments: arguments.clone() },
        };
        let tool_calls = said.tool_calls.iter().map(call).collect();
        Self { tool_calls, tool_call_id: said.tool_call_id.clone(), ..Self::new(&said.role, said.content.clone()) }
    }
}

fn compiled(source: &str) -> ChatTemplate {
    ChatTemplate::compile(source.to_owned(), Map::new()).unwrap()
}

#[test]
fn tools_variables_and_unfinished_answers_render_as_in_transformers() {
    let golden: Golden = serde_json::from_str(GOLDENS).unwrap();
    assert!(golden.cases.len() > 50);
    for case in golden.cases {
        let template = ChatTemplate::compile(golden.templates[&case.template].clone(), golden.tokens.clone()).unwrap();
        let conversation = Conversation {
            turns: golden.conversations[&case.conversation].iter().map(Turn::from).collect(),
            tools: case.tools.then(|| golden.tools.clone()),
            documents: None,
            variables: case.variables,
            ending: match case.ending.as_str() {
                "answer" => Ending::Answer,
                "closed" => Ending::Closed,
                _ => Ending::Continued,
            },
        };
        let what = format!("{}, {}, {}", case.template, case.conversation, case.ending);
        match (template.render_conversation(&conversation), case.text, case.error) {
            (Ok(text), Some(expected), _) => assert_eq!(text, expected, "{what}"),
            (Err(TemplateError::Refused(message)), _, Some(expected)) => assert_eq!(message, expected, "{what}"),
            (other, ..) => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_models_way_to_call_tools_is_in_its_template() {
    let golden: Golden = serde_json::from_str(GOLDENS).unwrap();
    let of = |name: &str| ToolFormat::of(&compiled(&golden.templates[name]));
    assert_eq!(of("hermes"), Some(ToolFormat::Hermes));
    assert_eq!(of("llama31"), Some(ToolFormat::Llama));
    assert_eq!(of("mistral"), Some(ToolFormat::Mistral));
    assert_eq!(ToolFormat::of(&compiled("{{ messages[0].content }}")), None);
    // As Qwen3-Coder's has it, and an older one of Llama that nobody reads.
    let coder = "{{ tools }}<tool_call>\n<function=example>\n<parameter=example_1>\nvalue\n</parameter>";
    assert_eq!(ToolFormat::of(&compiled(coder)), Some(ToolFormat::QwenXml));
    assert_eq!(ToolFormat::of(&compiled("{{ tools }}<function=example>{}</function>")), None);
    let python =
        "{{ tools }}<|start_header_id|>[func_name1(params_name1=params_value1, params_name2=params_value2...)]";
    assert_eq!(ToolFormat::of(&compiled(python)), Some(ToolFormat::Pythonic));
}

fn called() -> Conversation {
    let arguments = Json::from_pairs([("z", 1), ("a", 2)]);
    let function = Function { name: "look".to_owned(), arguments };
    let call = Call { id: None, r#type: "function", function };
    let turns = vec![
        Turn::new("user", "Where?".to_owned()),
        Turn { tool_calls: vec![call], ..Turn::new("assistant", String::new()) },
        Turn::new("tool", "yard".to_owned()),
        Turn::new("user", "So?".to_owned()),
    ];
    Conversation { turns, ..Conversation::default() }
}

#[test]
fn templates_that_put_texts_together_get_arguments_as_text() {
    let source =
        "{% for m in messages %}{% for c in m.tool_calls %}{{ '' + c.function.arguments }}{% endfor %}{% endfor %}";
    assert_eq!(compiled(source).render_conversation(&called()).unwrap(), r#"{"z":1,"a":2}"#);
}

#[test]
fn templates_that_know_no_tools_see_calls_and_results_as_messages() {
    let source = "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('who?') }}{% endif %}\
        {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('not in turn') }}{% endif %}\
        [{{ m.role }}] {{ m.content }} {% endfor %}";
    let text = compiled(source).render_conversation(&called()).unwrap();
    let call = r#"{"name": "look", "arguments": {"z":1,"a":2}}"#;
    assert_eq!(text, format!("[user] Where? [assistant] {call} [user] yard\n\nSo? "));
    // What is refused for another reason is refused.
    let mut other = called();
    other.turns.push(Turn::new("system", "late".to_owned()));
    assert!(matches!(compiled(source).render_conversation(&other), Err(TemplateError::Refused(_))));
}
