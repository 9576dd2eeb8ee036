//! The tokenizer of a GGUF: its vocabulary as the `tokenizer.json`, and the files beside it, that it was made from.
//!
//! What is lost in GGUF is what llama.cpp does without: properties of added tokens, and the parts of a tokenizer, of which there is a name
//! (`tokenizer.ggml.pre`).

use std::path::Path;

use petals_client::{GgufVocabulary, TokenKind};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::TextError;
use super::files::TokenizerFiles;

mod merges;
mod splits;

/// What SentencePiece has in the place of spaces.
const SPACE: char = '▁';

/// Names of tokens that end a turn, whatever metadata say.
const ENDS: [&str; 7] =
    ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>"];
/// Those of gpt-oss, where the last of the others ends a message and no turn.
const HARMONY: [&str; 2] = ["<|return|>", "<|call|>"];
/// Those of GLM-4.
const GLM: [&str; 2] = ["<|user|>", "<|observation|>"];

/// Tokenizer and files of a GGUF.
///
/// # Errors
/// [`TextError::Vocabulary`] and [`TextError::Gguf`], [`TextError::Malformed`] if no tokenizer comes of it.
pub(super) fn load(path: &Path) -> Result<(Tokenizer, TokenizerFiles), TextError> {
    of(&GgufVocabulary::read(path).map_err(|error| TextError::Gguf(Box::new(error)))?)
}

fn of(vocabulary: &GgufVocabulary) -> Result<(Tokenizer, TokenizerFiles), TextError> {
    let json = match vocabulary.model.as_str() {
        "gpt2" => bytes(vocabulary)?,
        "llama" => pieces(vocabulary)?,
        other => {
            let reason = "supported are gpt2 (BPE of bytes) and llama (SentencePiece)";
            return Err(unsupported(vocabulary, "tokenizer.ggml.model", other, reason));
        }
    };
    let malformed = |source| TextError::Malformed { path: vocabulary.path.clone(), source };
    let tokenizer = Tokenizer::from_bytes(json.to_string()).map_err(malformed)?;
    Ok((tokenizer, files(vocabulary)))
}

fn unsupported(vocabulary: &GgufVocabulary, key: &str, got: &str, reason: &str) -> TextError {
    let problem = format!("`{key}` is {}: {reason}", got.escape_debug());
    TextError::Vocabulary { path: vocabulary.path.clone(), problem }
}

/// BPE over bytes, as GPT-2 has it.
fn bytes(vocabulary: &GgufVocabulary) -> Result<Value, TextError> {
    const PRE: &str = "tokenizer.ggml.pre";
    let name = vocabulary.pre.as_deref().unwrap_or("default");
    let splits = splits::of(name).ok_or_else(|| {
        let reason = format!("texts cannot be split that way; supported are {}", splits::names().join(", "));
        unsupported(vocabulary, PRE, name, &reason)
    })?;
    // The space between the two is the first one that is not itself a token's beginning.
    let pair = |merge: &String| {
        let at = merge.char_indices().skip(1).find(|(_, letter)| *letter == ' ').map(|(at, _)| at)?;
        Some(json!([&merge[..at], &merge[at + 1..]]))
    };
    let merges = vocabulary.merges.iter().map(pair).collect::<Option<Vec<_>>>();
    let merges = merges.ok_or_else(|| unsupported(vocabulary, "tokenizer.ggml.merges", "a text", "pairs are"))?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": added(vocabulary, false),
        "normalizer": splits.composes.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": splits.json(),
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "vocab": names(vocabulary, str::to_owned),
            "merges": merges,
            "ignore_merges": splits.ignores_merges,
        },
    }))
}

/// BPE over pieces with scores, as SentencePiece has it.
fn pieces(vocabulary: &GgufVocabulary) -> Result<Value, TextError> {
    if vocabulary.scores.is_empty() {
        return Err(unsupported(vocabulary, "tokenizer.ggml.scores", "missing", "pieces have scores"));
    }
    let adds_space = vocabulary.adds_space.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let front = adds_space.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let normalizers: Vec<Value> = front.into_iter().chain([spaces]).collect();
    let strip = adds_space.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders = [
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let decoders: Vec<Value> = decoders.into_iter().chain(strip).collect();
    let is_unknown = |kind: &TokenKind| *kind == TokenKind::Unknown;
    let unknown = vocabulary.kinds.iter().position(is_unknown).map(|id| vocabulary.tokens[id].as_str());
    Ok(json!({
        "version": "1.0",
        "added_tokens": added(vocabulary, true),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "vocab": names(vocabulary, as_piece),
            "merges": merges::of(vocabulary),
            "unk_token": unknown.or(vocabulary.token("unk")),
            "fuse_unk": true,
            "byte_fallback": vocabulary.kinds.contains(&TokenKind::Byte),
        },
    }))
}

/// A piece as SentencePiece has it: runs of spaces, which texts are searched for, are written as such in GGUF.
fn as_piece(token: &str) -> String {
    if is_spaces(token) { token.replace(' ', &SPACE.to_string()) } else { token.to_owned() }
}

/// Whether a token is a run of spaces.
fn is_spaces(token: &str) -> bool {
    !token.is_empty() && token.chars().all(|letter| letter == ' ' || letter == SPACE)
}

fn names(vocabulary: &GgufVocabulary, name: fn(&str) -> String) -> Map<String, Value> {
    vocabulary.tokens.iter().zip(0u32..).map(|(token, id)| (name(token), json!(id))).collect()
}

/// Tokens that are found before a text is split.
fn added(vocabulary: &GgufVocabulary, pieces: bool) -> Vec<Value> {
    // Phi-3's special tokens take the spaces behind them, which its template relies on.
    let strips = pieces && vocabulary.architecture == "phi3";
    let kept = ["<unk>", "<s>", "<|endoftext|>"];
    let token = |(id, token): (usize, &String)| {
        let special = match vocabulary.kinds.get(id)? {
            TokenKind::Control | TokenKind::Unknown => true,
            // Runs of spaces are merged from single ones where there are scores.
            TokenKind::UserDefined if !(pieces && is_spaces(token)) => false,
            _ => return None,
        };
        (!token.is_empty()).then(|| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": strips && special && !kept.contains(&token.as_str()),
                "normalized": false, "special": special,
            })
        })
    };
    vocabulary.tokens.iter().enumerate().filter_map(token).collect()
}

/// What the files beside `tokenizer.json` would say.
fn files(vocabulary: &GgufVocabulary) -> TokenizerFiles {
    let mut config = Map::new();
    for role in ["bos", "eos", "unk", "pad", "mask"] {
        config.extend(vocabulary.token(role).map(|token| (format!("{role}_token"), json!(token))));
    }
    let begins = || vocabulary.model == "llama" || splits::begins(vocabulary.pre.as_deref().unwrap_or_default());
    config.insert("add_bos_token".to_owned(), json!(vocabulary.adds_bos.unwrap_or_else(begins)));
    config.insert("add_eos_token".to_owned(), json!(vocabulary.adds_eos.unwrap_or(false)));
    TokenizerFiles {
        config: Value::Object(config),
        generation: json!({"eos_token_id": ends(vocabulary)}),
        ..TokenizerFiles::default()
    }
}

/// The tokens that end a generated text.
fn ends(vocabulary: &GgufVocabulary) -> Vec<u32> {
    let has = |names: [&str; 2]| names.iter().all(|name| vocabulary.tokens.iter().any(|token| token == name));
    let (harmony, glm) = (has(HARMONY), has(GLM));
    let is_end = |token: &str| {
        let usual = ENDS.contains(&token) && !(harmony && token == "<|end|>");
        usual || harmony && HARMONY.contains(&token) || glm && GLM.contains(&token)
    };
    let role = |role: &str| vocabulary.roles.iter().find(|(own, _)| *own == role).map(|(_, id)| *id);
    let mut ends: Vec<u32> = ["eos", "eot", "eom"].into_iter().filter_map(role).collect();
    for ((token, kind), id) in vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(0u32..) {
        let own = matches!(kind, TokenKind::Control | TokenKind::UserDefined) && is_end(token);
        ends.extend((own && !ends.contains(&id)).then_some(id));
    }
    ends
}

#[cfg(test)]
mod tests;
