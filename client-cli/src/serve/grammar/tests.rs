//! Tokens drawn without any model: what comes out is what the form says, whatever is drawn.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_client::{Allowed, Constraint, Sampler, Sampling};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Form, Grammar, Grammars, Rule};
use crate::serve::error::ApiError;
use crate::text::tests::{byte_model, marked_model};
use crate::text::{Pieces, TextTokenizer};

/// No token of the tokenizers: it ends texts.
const STOP: u32 = 290;

/// A tokenizer, and what makes forms ready for it.
struct Model {
    _root: TempDir,
    tokenizer: Arc<TextTokenizer>,
    grammars: Grammars,
}

fn model(root: TempDir) -> Model {
    let tokenizer = Arc::new(TextTokenizer::load(root.path()).unwrap());
    let pieces = Arc::new(Pieces::new(tokenizer.clone()));
    Model { _root: root, tokenizer, grammars: Grammars::new(pieces, STOP as usize + 5) }
}

/// Tokens that have more than one part of JSON, parts of characters, and the same bytes twice.
fn bytes() -> Model {
    model(byte_model(&["{\"", "\":", "\",\"", "\"}", "}}", "ä", "你好", "true", " {", "\n\n", "12", ".5"]))
}

fn json_form(schema: Value) -> Form {
    Form { field: "f".to_owned(), rule: Rule::Json(schema) }
}

impl Model {
    async fn compile(&self, rule: Rule) -> Result<Arc<Grammar>, ApiError> {
        self.grammars.compile(Form { field: "f".to_owned(), rule }).await
    }

    /// Draws evenly among what may come; nothing if the text was not complete after `most` tokens.
    fn drawn(&self, grammar: &Grammar, seed: u64, most: usize) -> Option<String> {
        let walk = grammar.walk(&[STOP]);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut tokens = Vec::new();
        while tokens.len() < most {
            let set = walk.allowed(&tokens).expect("something may come");
            let all: Vec<u32> = (0..STOP + 5).filter(|&token| set.contains(token)).collect();
            match all.choose(&mut random) {
                Some(&STOP) => return Some(self.tokenizer.decode(&tokens).unwrap()),
                Some(&token) => tokens.push(token),
                None => panic!("nothing may come behind {:?}", self.tokenizer.decode(&tokens)),
            }
            assert_eq!(walk.failure(), None);
            if let Some(end) = walk.end(&tokens) {
                assert_eq!(end, tokens.len());
                return Some(self.tokenizer.decode(&tokens).unwrap());
            }
        }
        None
    }
}

#[tokio::test]
async fn whatever_is_drawn_is_json_of_the_schema() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "count", "tags", "kind"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 6},
            "count": {"type": "integer", "minimum": -3, "maximum": 250},
            "tags": {"type": "array", "items": {"enum": ["ä", "b\"c", 7, null]}, "minItems": 1, "maxItems": 3},
            "kind": {"$ref": "#/$defs/kind"},
            "note": {"type": "boolean"},
        },
        "$defs": {"kind": {"anyOf": [{"const": "one"}, {"type": "object", "properties": {"x": {"type": "number", "minimum": 0, "maximum": 10}}, "required": ["x"],
            "additionalProperties": false}]}},
    });
    for model in [bytes(), model(marked_model())] {
        let grammar = model.compile(Rule::Json(schema.clone())).await.unwrap();
        let texts: Vec<String> = (0..40).filter_map(|seed| model.drawn(&grammar, seed, 3000)).collect();
        assert!(texts.len() > 20, "most come to an end: {}", texts.len());
        for text in &texts {
            let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
            let fields = value.as_object().unwrap();
            let keys: Vec<&str> = fields.keys().map(String::as_str).filter(|key| *key != "note").collect();
            assert_eq!(keys, ["name", "count", "tags", "kind"], "in the schema's order");
            assert!((1..=6).contains(&value["name"].as_str().unwrap().chars().count()), "{text}");
            assert!((-3.0..=250.0).contains(&value["count"].as_f64().unwrap()), "{text}");
            let tags = value["tags"].as_array().unwrap();
            let known = [json!("ä"), json!("b\"c"), json!(7), json!(null)];
            assert!((1..=3).contains(&tags.len()) && tags.iter().all(|tag| known.contains(tag)), "{text}");
            assert!(value["kind"] == "one" || value["kind"]["x"].is_number(), "{text}");
            assert!(fields.get("note").is_none_or(Value::is_boolean) && fields.len() <= 5, "{text}");
        }
        let different: HashSet<&String> = texts.iter().collect();
        assert!(different.len() > 20, "they are not all the same");
    }
}

#[tokio::test]
async fn expressions_grammars_and_choices_are_followed() {
    let model = bytes();
    let texts = async |rule: Rule| -> HashSet<String> {
        let grammar = model.compile(rule).await.unwrap();
        (0..60).map(|seed| model.drawn(&grammar, seed, 200).expect("it ends")).collect()
    };
    let seen = texts(Rule::Regex("^(ja|nein) [0-9]{2}ä?$".to_owned())).await;
    let sane = |text: &String| {
        let rest = text.strip_prefix("ja ").or_else(|| text.strip_prefix("nein ")).unwrap();
        let digits = rest.strip_suffix('ä').unwrap_or(rest);
        digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    assert!(seen.iter().all(sane) && seen.len() > 20, "{seen:?}");
    let Form { rule, .. } = Form::choice("f", &["a".to_owned(), "ab".to_owned(), "你\"\n\u{7f}".to_owned()]);
    assert_eq!(texts(rule).await, ["a", "ab", "你\"\n\u{7f}"].map(str::to_owned).into());
    let lark = "start: item (\", \" item)~0..2\nitem: \"x\" | \"(\" item \")\"\n";
    for text in texts(Rule::Lark(lark.to_owned())).await {
        assert!(text.contains('x') && text.matches('(').count() == text.matches(')').count(), "{text}");
    }
    let gbnf = super::super::gbnf::to_lark("root ::= num | \"-\" num\nnum ::= [1-9] [0-9]{0,2}").unwrap();
    for text in texts(Rule::Lark(gbnf)).await {
        assert!(text.parse::<i32>().is_ok_and(|number| (1..=999).contains(&number.abs())), "{text}");
    }
}

/// Who foresees tokens asks for places that are given up again.
#[tokio::test]
async fn what_may_come_does_not_depend_on_what_was_asked_before() {
    let model = bytes();
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}, "b": {"type": "number"}},
        "required": ["a", "b"]});
    let limited = "start: \"<\" word \">\"\nword[max_tokens=3]: /[a-z ]*/\n";
    for rule in [Rule::Json(schema), Rule::Lark(limited.to_owned())] {
        let grammar = model.compile(rule).await.unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut checked = 0;
        for _ in 0..30 {
            let walk = grammar.walk(&[STOP]);
            let mut tokens: Vec<u32> = Vec::new();
            while tokens.len() < 40 {
                let set = walk.allowed(&tokens).unwrap();
                assert_eq!(grammar.walk(&[STOP]).allowed(&tokens), Some(set.clone()), "{tokens:?}");
                checked += 1;
                let all: Vec<u32> = (0..STOP).filter(|&token| set.contains(token)).collect();
                let Some(&next) = all.choose(&mut random) else { break };
                // A detour: some tokens that may come, and some that may not.
                let mut detour = tokens.clone();
                for _ in 0..random.random_range(0..4) {
                    let set = walk.allowed(&detour);
                    let all: Vec<u32> =
                        (0..STOP).filter(|&token| set.as_ref().is_some_and(|set| set.contains(token))).collect();
                    detour.push(all.choose(&mut random).copied().unwrap_or(0xFF));
                }
                detour.push(random.random_range(0..256));
                walk.allowed(&detour);
                tokens.push(next);
                if walk.end(&tokens).is_some() {
                    break;
                }
            }
            assert_eq!(walk.failure(), None);
        }
        assert!(checked > 50, "{checked}");
    }
}

/// Logits that depend on the text alone, as a model's do.
fn logits(text: &[u32], model: u64) -> Vec<f32> {
    let seed =
        text.iter().fold(model, |seed, &token| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(token.into()));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..STOP + 5).map(|_| random.random_range(-3.0..3.0)).collect()
}

#[tokio::test]
async fn foreseen_tokens_make_no_difference_to_a_text() {
    let model = bytes();
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 8}, "b": {"type": "array", "items": {"type": "integer"},
        "maxItems": 4}}, "required": ["a", "b"], "additionalProperties": false});
    let grammar = model.compile(Rule::Json(schema)).await.unwrap();
    let mut right = 0;
    for seed in 0..8 {
        let text = |foresees: bool, right: &mut usize| {
            let walk = Arc::new(grammar.walk(&[STOP]));
            let constraint = Some(Allowed::new(walk.clone()));
            let sampling = Sampling { temperature: 1.0, constraint, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling).unwrap();
            let mut text: Vec<u32> = Vec::new();
            while text.len() < 200 && walk.end(&text).is_none() && text.last() != Some(&STOP) {
                // A draft model draws with a copy of the sampler, and sees other logits now and then.
                let (mut draft, mut copy) = (text.clone(), sampler.clone());
                for _ in 0..if foresees { 4 } else { 0 } {
                    let other = u64::from(draft.len().is_multiple_of(3));
                    draft.extend(copy.choose(&logits(&draft, other), &draft));
                }
                for place in text.len()..=draft.len() {
                    let token = sampler.choose(&logits(&text, 0), &text).unwrap();
                    text.push(token);
                    let foreseen = draft.get(place) == Some(&token);
                    *right += usize::from(foreseen);
                    if !foreseen || token == STOP {
                        break;
                    }
                }
            }
            assert_eq!(walk.failure(), None);
            let end = walk.end(&text).unwrap_or(text.len());
            text.truncate(end);
            text
        };
        let (plain, foreseen) = (text(false, &mut 0), text(true, &mut right));
        assert_eq!(plain, foreseen, "seed {seed}");
        assert!(plain.len() > 5);
    }
    assert!(right > 20, "some were right: {right}");
}

#[tokio::test]
async fn a_form_ends_where_nothing_may_follow_whether_a_token_ends_it_or_not() {
    let model = bytes();
    let grammar = model.compile(Rule::Json(json!({"type": "object", "maxProperties": 0}))).await.unwrap();
    let whole: Vec<u32> = "{}".bytes().map(u32::from).collect();
    let beyond = [whole.as_slice(), &[7, 8]].concat();
    for stop in [&[STOP][..], &[]] {
        let walk = grammar.walk(stop);
        assert_eq!(walk.end(&whole[..1]), None);
        assert_eq!((walk.end(&whole), walk.end(&beyond)), (Some(2), Some(2)));
        assert!(walk.allowed(&whole).is_some_and(|set| set.contains(STOP) != stop.is_empty()));
    }
    // It may end, and may go on; without a token that ends it, it goes on as long as it can.
    let numbers = model.compile(Rule::Regex("[0-9]{1,3}".to_owned())).await.unwrap();
    let walk = numbers.walk(&[STOP]);
    assert_eq!(walk.end(&[49]), None);
    assert!(walk.allowed(&[49]).is_some_and(|set| set.contains(STOP) && set.contains(50)));
    assert_eq!(walk.end(&[49, STOP]), None, "the token that ends the text belongs to it");
    assert_eq!(walk.end(&[49, 50, 51]), Some(3));
}

#[tokio::test]
async fn forms_that_cannot_be_are_refused_with_the_reason_and_in_time() {
    let model = bytes();
    let nested = |depth: usize| (0..depth).fold(json!({"type": "null"}), |inner, _| json!({"items": inner}));
    let many: Vec<Value> = (0..40_000).map(|number| json!(format!("{number}"))).collect();
    let chain: String = (0..9000).map(|number| format!("a{number}:a{}\n", number + 1)).collect();
    let schemas: serde_json::Map<String, Value> = (0..3000)
        .map(|number| {
            (format!("d{number}"), json!({"properties": {"a": {"$ref": format!("#/$defs/d{}", number + 1)}}}))
        })
        .chain([("d3000".to_owned(), json!({"type": "null"}))])
        .collect();
    let tokens: String = (0..900).map(|number| format!("A{number}:A{} \"x\"\n", number + 1)).collect();
    let began = Instant::now();
    for (rule, words) in [
        (Rule::Json(json!({"type": "thing"})), "Invalid type: thing"),
        (Rule::Json(json!({"$ref": "#/$defs/none"})), "not found"),
        (Rule::Json(json!({"$ref": "https://example.org/schema"})), "$ref"),
        (Rule::Json(json!({"$ref": "#"})), "no answer"),
        (Rule::Json(json!({"allOf": [{"$ref": "#"}, {"type": "object"}]})), ""),
        (Rule::Json(json!({"type": "string", "minLength": 5, "maxLength": 2})), ""),
        (Rule::Json(json!({"type": "string", "pattern": "(?=a)b"})), ""),
        (Rule::Json(json!({"type": "string", "format": "unheard-of"})), "unheard-of"),
        (Rule::Json(json!({"not": {"type": "string"}})), "not"),
        (Rule::Json(json!(false)), ""),
        (Rule::Json(json!({"required": "name"})), "required"),
        (Rule::Json(json!({"enum": many})), "bytes"),
        (Rule::Regex("(".to_owned()), ""),
        (Rule::Json(json!({"type": "array", "contains": {}})), "contains"),
        (Rule::Regex("(?=a)b".to_owned()), "look"),
        (Rule::Lark("start: start".to_owned()), "no answer"),
        (Rule::Lark("start: unknown".to_owned()), "unknown"),
        (Rule::Lark("stop: \"a\"".to_owned()), "start"),
        (Rule::Lark("start: \"a".to_owned()), ""),
        (Rule::Lark("start: <nothing>".to_owned()), "nothing"),
        (Rule::Lark("(".repeat(100_000)), ""),
    ] {
        let shown: String = format!("{rule:?}").chars().take(80).collect();
        let error = model.compile(rule).await.map(drop).expect_err(&shown).json().to_string();
        assert!(error.contains("`f`") && error.contains(words) && error.len() < 1000, "{shown}: {error}");
        assert!(!error.contains("backtrace") && !error.contains("<state>"), "{shown}: {error}");
    }
    // What is large, and can be: it neither takes long nor all of the stack, then or later.
    for rule in [
        Rule::Json(nested(100)),
        Rule::Json(json!({"type": "array", "minItems": 1_000_000_000_000u64})),
        Rule::Json(json!({"type": "string", "minLength": 1_000_000_000})),
        Rule::Json(json!({"type": "array", "items": {"$ref": "#"}})),
        Rule::Json(json!({"$ref": "#/$defs/d0", "$defs": schemas})),
        Rule::Regex("(a{1,1000}){1,1000}".to_owned()),
        Rule::Regex("(a|b)*a(a|b){200}".to_owned()),
        Rule::Lark(format!("start: a0\n{chain}a9000: \"x\"\n")),
        Rule::Lark(format!("start: A0\n{tokens}A900: \"x\"\n")),
    ] {
        let shown: String = format!("{rule:?}").chars().take(80).collect();
        let grammar = model.compile(rule).await.expect(&shown);
        let end = std::thread::scope(|scope| scope.spawn(|| model.drawn(&grammar, 1, 30)).join());
        assert!(end.is_ok(), "{shown}");
    }
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_step_that_would_take_too_long_ends_the_text_with_a_reason() {
    let model = bytes();
    // Any of them may come first.
    let properties: serde_json::Map<String, Value> =
        (0..3000).map(|number| (format!("p{number}"), json!({}))).collect();
    let grammar = model.compile(Rule::Json(json!({"type": "object", "properties": properties}))).await.unwrap();
    let walk = grammar.walk(&[STOP]);
    assert!(walk.allowed(&[]).is_some_and(|set| set.contains(b'{'.into())));
    let begun = [u32::from(b'{')];
    assert_eq!(walk.allowed(&begun), None);
    let error = grammar.failed(&walk.failure().unwrap()).json()["error"]["message"].to_string();
    assert!(error.contains("`f` became too complex") && error.contains("2000"), "{error}");
    assert_eq!(walk.end(&begun), None);
}

#[tokio::test]
async fn defaults_bind_white_space_between_parts() {
    let model = bytes();
    let grammar = model.grammars.compile(json_form(json!({"type": "object"}))).await.unwrap();
    let walk = grammar.walk(&[STOP]);
    let spaces = |count: usize| [vec![u32::from(b'{')], vec![u32::from(b' '); count]].concat();
    assert!(walk.allowed(&spaces(63)).is_some_and(|set| set.contains(b' '.into())));
    assert!(walk.allowed(&spaces(64)).is_some_and(|set| !set.contains(b' '.into()) && set.contains(b'}'.into())));
}
