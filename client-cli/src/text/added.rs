//! Tokens that only the files beside `tokenizer.json` name, added as transformers' fast tokenizers add them.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::TextError;
use super::files::TokenizerFiles;

/// The roles of special tokens, in transformers' order.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Lists of special tokens without a role; the second is the name that newer files have.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// Adds what is missing. A token that the tokenizer knows keeps its id and gets the properties that the files give it;
/// others get the next free ids, in the order of the ids that the files name. Whatever has a role is special.
///
/// # Errors
/// [`TextError::Unusable`] if a file names tokens in another way than transformers does.
pub(super) fn complete(tokenizer: &mut Tokenizer, files: &TokenizerFiles) -> Result<(), TextError> {
    let special = special_tokens(files)?;
    let names: HashSet<&str> = special.iter().map(|token| token.content.as_str()).collect();
    let mut known: HashSet<String> =
        tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    let mut tokens = Vec::new();
    for mut token in numbered(tokenizer, files, &names)?.into_values() {
        token.special |= names.contains(token.content.as_str());
        known.insert(token.content.clone());
        tokens.push(token);
    }
    tokens.extend(special.iter().filter(|token| known.insert(token.content.clone())).cloned());
    tokenizer.add_tokens(&tokens);
    tokenizer.set_encode_special_tokens(files.config.get("split_special_tokens") == Some(&Value::Bool(true)));
    Ok(())
}

/// The name of the token with a role.
pub(super) fn role<'a>(files: &'a TokenizerFiles, role: &str) -> Option<&'a str> {
    let named = files.naming_tokens().into_iter().find_map(|(_, file)| {
        let token = file.get(role)?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    });
    named.filter(|name| !name.is_empty())
}

/// Tokens with a role, and special ones without.
fn special_tokens(files: &TokenizerFiles) -> Result<Vec<AddedToken>, TextError> {
    let mut tokens: Vec<AddedToken> = Vec::new();
    let mut add = |token: AddedToken| {
        if !token.content.is_empty() && tokens.iter().all(|other| other.content != token.content) {
            tokens.push(token);
        }
    };
    let sources = files.naming_tokens();
    for role in ROLES {
        let named = sources.into_iter().find_map(|(file, json)| Some((file, json.get(role).filter(|v| !v.is_null())?)));
        if let Some((file, value)) = named {
            add(token(file, role, value, true)?);
        }
    }
    for list in LISTS {
        for (file, json) in sources {
            match json.get(list) {
                Some(Value::Array(values)) => {
                    values.iter().try_for_each(|value| token(file, list, value, true).map(&mut add))?;
                }
                Some(Value::Object(values)) => {
                    values.values().try_for_each(|value| token(file, list, value, true).map(&mut add))?;
                }
                _ => {}
            }
        }
    }
    Ok(tokens)
}

/// Tokens that the files name with their ids: `added_tokens_decoder`, or else what older files have.
fn numbered(
    tokenizer: &Tokenizer,
    files: &TokenizerFiles,
    special: &HashSet<&str>,
) -> Result<BTreeMap<u32, AddedToken>, TextError> {
    let mut tokens = BTreeMap::new();
    let wrong = |file, reason: String| TextError::Unusable { file, reason };
    match files.config.get("added_tokens_decoder") {
        Some(Value::Object(decoder)) => {
            let file = "tokenizer_config.json";
            for (id, value) in decoder {
                let number = id.parse().map_err(|_| wrong(file, format!("added_tokens_decoder has the id {id:?}")))?;
                tokens.insert(number, token(file, "added_tokens_decoder", value, false)?);
            }
        }
        None | Some(Value::Null) => {
            for (content, id) in files.added_tokens.as_object().into_iter().flatten() {
                let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let number =
                    number.ok_or_else(|| wrong("added_tokens.json", format!("{content:?} has the id {id}")))?;
                let special = special.contains(content.as_str());
                tokens.insert(number, AddedToken::from(content.clone(), special));
            }
            // What the tokenizer itself says of a token counts.
            tokens.extend(tokenizer.get_added_tokens_decoder());
        }
        Some(_) => return Err(wrong("tokenizer_config.json", "added_tokens_decoder is not an object".to_owned())),
    }
    Ok(tokens)
}

/// A token, written as a text or as an object with its properties.
fn token(file: &'static str, key: &str, value: &Value, special: bool) -> Result<AddedToken, TextError> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str());
    let content = content.ok_or_else(|| {
        let reason = format!("{key} has a token that is neither a text nor an object with a content");
        TextError::Unusable { file, reason }
    })?;
    let flag = |name: &str, otherwise| value.get(name).and_then(Value::as_bool).unwrap_or(otherwise);
    let special = special || flag("special", false);
    Ok(AddedToken::from(content, special)
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        .normalized(flag("normalized", !special)))
}
