//! Parsers of single values. Their messages complete clap's "invalid value … for …".

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use petals_client::{DeepInit, Injection, PeerId, ReparamKind, RouteRules, Schedule, Span, Task, TuningMode};

use crate::chat::Json;

/// A whole number of at least `least`.
pub(super) fn at_least(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..)
}

/// A finite number of at least 0.
pub(super) fn not_negative(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() && number >= 0.0 { Ok(number) } else { Err("must be finite and at least 0".to_owned()) }
}

/// As [`not_negative`], in single precision.
pub(super) fn not_negative_f32(text: &str) -> Result<f32, String> {
    let number = not_negative(text)? as f32;
    if number.is_finite() { Ok(number) } else { Err("too large".to_owned()) }
}

/// A part of a whole.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    not_negative(text).and_then(|rate| if rate <= 1.0 { Ok(rate) } else { Err("must be at most 1".to_owned()) })
}

/// A probability above 0.
pub(super) fn probability(text: &str) -> Result<f32, String> {
    let number = not_negative_f32(text)?;
    if number > 0.0 && number <= 1.0 { Ok(number) } else { Err("must be above 0 and at most 1".to_owned()) }
}

/// A part of a whole, in single precision.
pub(super) fn part(text: &str) -> Result<f32, String> {
    rate(text).map(|rate| rate as f32)
}

/// A finite number above 0, in single precision.
pub(super) fn positive_f32(text: &str) -> Result<f32, String> {
    not_negative_f32(text).and_then(|number| if number > 0.0 { Ok(number) } else { Err("must be above 0".to_owned()) })
}

/// A finite number, in single precision.
pub(super) fn signed_f32(text: &str) -> Result<f32, String> {
    let number = text.parse::<f32>().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() { Ok(number) } else { Err("must be finite".to_owned()) }
}

/// A text of at least one character.
pub(super) fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// The address of a peer, ending in `/p2p/` and its id.
pub(super) fn multiaddr(text: &str) -> Result<String, String> {
    petals_client::parse_peers([text]).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// The id of a peer.
pub(super) fn peer_id(text: &str) -> Result<PeerId, String> {
    text.parse().map_err(|_| "not a peer id, as nodes print it behind /p2p/".to_owned())
}

/// Blocks that a peer alone runs.
pub(super) fn pin(text: &str) -> Result<(Span, PeerId), String> {
    RouteRules::parse_pin(text).map_err(|error| error.to_string())
}

/// An adapter with a name: `NAME=DIR`, or `DIR` alone, whose last part is the name.
pub(super) fn adapter(text: &str) -> Result<(String, PathBuf), String> {
    let (name, directory) = match text.split_once('=') {
        Some((name, directory)) => (name, Path::new(directory)),
        None => (Path::new(text).file_name().and_then(|name| name.to_str()).unwrap_or_default(), Path::new(text)),
    };
    let sane = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name == "none" || name.len() > 64 || !name.chars().all(sane) {
        return Err("write NAME=DIR, with a name of letters, digits, - _ and . (not \"none\")".to_owned());
    }
    if directory.as_os_str().is_empty() {
        return Err("write NAME=DIR".to_owned());
    }
    Ok((name.to_owned(), directory.to_owned()))
}

/// What browsers call the origin of a page, or `*`.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let sane = |host: &str| !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && !"/?#@,".contains(c));
    if text == "*" || host.is_some_and(sane) {
        return Ok(text.to_owned());
    }
    Err("write scheme and host without a path, for example https://chat.example.org, or *".to_owned())
}

/// The name of a host without a port, or `*`.
pub(super) fn host(text: &str) -> Result<String, String> {
    let sane = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text == "*" || (!text.is_empty() && text.chars().all(sane)) {
        return Ok(text.to_owned());
    }
    Err("write a host's name without scheme and port, for example api.internal, or *".to_owned())
}

/// A variable of a chat template: `NAME=JSON`.
pub(super) fn template_arg(text: &str) -> Result<(String, Json), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=JSON, for example enable_thinking=false")?;
    let sane = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(sane) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("{name:?} is no name of a variable"));
    }
    if ["messages", "add_generation_prompt", "chat_template"].contains(&name) {
        return Err(format!("{name} is set by the program"));
    }
    let value = serde_json::from_str(value)
        .map_err(|error| format!("{value:?} is no JSON ({error}); a text needs its quotes: '{name}=\"text\"'"))?;
    Ok((name.to_owned(), value))
}

/// `ptune`, `lora`, `deep_ptune+lora`, ...
pub(super) fn mode() -> impl TypedValueParser<Value = TuningMode> {
    clap::builder::NonEmptyStringValueParser::new().try_map(|text| text.parse::<TuningMode>())
}

/// A learning rate, or the word for finding one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rate {
    /// Found by trying some.
    Auto,
    /// This one.
    Given(f64),
}

/// A finite number of at least 0, or `auto`.
pub(super) fn learning_rate(text: &str) -> Result<Rate, String> {
    let number = || not_negative(text).map_err(|problem| format!("{problem}; write a number, or auto"));
    if text == "auto" { Ok(Rate::Auto) } else { number().map(Rate::Given) }
}

/// A probability of something that must not be certain.
pub(super) fn below_one(text: &str) -> Result<f64, String> {
    rate(text).and_then(|rate| if rate < 1.0 { Ok(rate) } else { Err("must be below 1".to_owned()) })
}

/// A number above 0 and below 1.
pub(super) fn between_0_and_1(text: &str) -> Result<f64, String> {
    below_one(text).and_then(|number| if number > 0.0 { Ok(number) } else { Err("must be above 0".to_owned()) })
}

/// `mlp`, `p-tuning-mlp`, ...
pub(super) fn reparam() -> impl TypedValueParser<Value = ReparamKind> {
    PossibleValuesParser::new(["mlp", "p-tuning-mlp", "p-tuning-lstm", "prefix-projection"])
        .try_map(|text| text.parse::<ReparamKind>())
}

/// A number above 0.
pub(super) fn positive(text: &str) -> Result<f64, String> {
    not_negative(text).and_then(|number| if number > 0.0 { Ok(number) } else { Err("must be above 0".to_owned()) })
}

/// `causal-lm` or `seq-cls`.
pub(super) fn task() -> impl TypedValueParser<Value = Task> {
    PossibleValuesParser::new(["causal-lm", "seq-cls"]).try_map(|text| text.parse::<Task>())
}

/// `constant`, `linear` or `cosine`.
pub(super) fn schedule() -> impl TypedValueParser<Value = Schedule> {
    PossibleValuesParser::new(["constant", "linear", "cosine"]).try_map(|text| text.parse::<Schedule>())
}

/// `replace` or `add`.
pub(super) fn injection() -> impl TypedValueParser<Value = Injection> {
    PossibleValuesParser::new(["replace", "add"])
        .map(|text| if text == "add" { Injection::Add } else { Injection::Replace })
}

/// `zeros`, `normal` or `like-input`.
pub(super) fn deep_init() -> impl TypedValueParser<Value = DeepInit> {
    PossibleValuesParser::new(["zeros", "normal", "like-input", "states"]).map(|text| match text.as_str() {
        "zeros" => DeepInit::Zeros,
        "normal" => DeepInit::Normal,
        "states" => DeepInit::States,
        _ => DeepInit::LikeInput,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!((not_negative("1e-3"), not_negative("0")), (Ok(0.001), Ok(0.0)));
        assert!(["-1", "nan", "inf", "x"].iter().all(|text| not_negative(text).is_err()));
        assert!(probability("1").is_ok() && probability("0").is_err() && probability("1.01").is_err());
        assert!(not_negative_f32("1e300").is_err());
        assert!(part("0").is_ok() && part("1.5").is_err());
        assert!(positive_f32("1.3").is_ok() && ["0", "-1", "inf"].iter().all(|text| positive_f32(text).is_err()));
        assert!(between_0_and_1("0.9").is_ok() && ["0", "1"].iter().all(|text| between_0_and_1(text).is_err()));
        assert!(below_one("0").is_ok() && below_one("1").is_err());
        assert_eq!((learning_rate("auto"), learning_rate("0.5")), (Ok(Rate::Auto), Ok(Rate::Given(0.5))));
        assert!(learning_rate("automatic").unwrap_err().contains("auto"));
        assert!(signed_f32("-0.5").is_ok() && signed_f32("nan").is_err());
        assert!(not_empty("").is_err());
    }

    #[test]
    fn adapters_have_names_that_fit_into_a_models_name() {
        let named = |text| adapter(text).map(|(name, directory)| (name, directory.display().to_string()));
        assert_eq!(named("pirate=./a=b"), Ok(("pirate".to_owned(), "./a=b".to_owned())));
        assert_eq!(named("out/pirate-2/"), Ok(("pirate-2".to_owned(), "out/pirate-2/".to_owned())));
        for wrong in ["=dir", "a b=dir", "a:b=dir", "a=", "none=dir", "", "/", ".."] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn origins_have_no_path() {
        assert!(["*", "http://localhost:3000", "https://chat.example.org"].iter().all(|text| origin(text).is_ok()));
        assert!(["", "chat.example.org", "https://", "https://a/", "https://a b"].iter().all(|t| origin(t).is_err()));
    }

    #[test]
    fn hosts_have_no_port_and_variables_are_json() {
        assert!(["*", "api.internal", "host_1"].iter().all(|text| host(text).is_ok()));
        assert!(["", "http://a", "a:80", "a b"].iter().all(|text| host(text).is_err()));
        assert_eq!(template_arg("enable_thinking=false"), Ok(("enable_thinking".to_owned(), Json::from(false))));
        assert_eq!(template_arg("date=\"a=b\""), Ok(("date".to_owned(), Json::from("a=b"))));
        for wrong in ["a", "a=", "a=text", "=1", "1a=1", "messages=[]"] {
            assert!(template_arg(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_ends_with_its_peer() {
        let peer = "/ip4/192.0.2.1/tcp/1/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
        assert_eq!(multiaddr(peer).as_deref(), Ok(peer));
        assert!(multiaddr("localhost:80").is_err());
        assert!(multiaddr("/ip4/192.0.2.1/tcp/1").unwrap_err().contains("/p2p/"));
    }
}
