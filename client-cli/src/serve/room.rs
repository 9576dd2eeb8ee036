//! How many tokens a request gets.

use super::app::App;
use super::error::ApiError;
use super::models::ServedModel;

/// The number of tokens that a request gets behind a prompt of `prompt` tokens, which the field `name` gave: what it asked for, or `default`,
/// cut to what the server allows and the model has room for. Clients ask for far more than they need: they get what there is.
///
/// # Errors
/// 400 if the prompt is empty, or it leaves no room for a single token (unless none is asked for).
pub(super) fn room(
    app: &App,
    model: &ServedModel,
    asked: Option<usize>,
    prompt: usize,
    name: &str,
    default: usize,
) -> Result<usize, ApiError> {
    cut(model.room, app.max_new_tokens, asked.unwrap_or(default), prompt, name)
}

fn cut(room: usize, most: usize, asked: usize, prompt: usize, name: &str) -> Result<usize, ApiError> {
    if prompt == 0 {
        return Err(ApiError::field(name, "has no tokens"));
    }
    let least = asked.min(1);
    match room.checked_sub(prompt) {
        Some(left) if left >= least => Ok(asked.min(most).min(left)),
        _ => Err(ApiError::too_long(name, prompt, room, least)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_cut_to_the_room_there_is() {
        assert_eq!(cut(100, 50, 20, 10, "prompt"), Ok(20));
        assert_eq!(cut(100, 50, 32_000, 10, "prompt"), Ok(50));
        assert_eq!(cut(100, 50, usize::MAX, 99, "prompt"), Ok(1));
        assert_eq!(cut(100, 50, 0, 100, "prompt"), Ok(0));
        for (asked, prompt) in [(1, 100), (0, 101), (usize::MAX, 5000)] {
            let error = cut(100, 50, asked, prompt, "messages").unwrap_err();
            let json = error.json();
            assert_eq!(json["error"]["code"], "context_length_exceeded");
            let message = json["error"]["message"].as_str().unwrap_or_default().to_owned();
            assert!(
                message.contains("maximum context length is 100 tokens")
                    && message.contains(&format!("{prompt} tokens")),
                "{message}"
            );
        }
        assert_eq!(cut(100, 50, 1, 0, "prompt").unwrap_err().json()["error"]["code"], serde_json::Value::Null);
    }
}
