//! Sliding windows: which layers have one, and whether it could hide anything.

use super::family::{Family, LAYERS_WITHOUT_WINDOW, WINDOW, Windows};
use super::{ConfigError, Fields};

/// A window, and how many layers see no further back than it reaches.
struct Sliding {
    window: usize,
    layers: usize,
}

/// Refuses a window that could hide anything from a sequence of at most `positions`.
pub(super) fn full_attention(
    fields: &Fields<'_>,
    family: &Family,
    layers: usize,
    positions: usize,
) -> Result<(), ConfigError> {
    let Some(sliding) = sliding(fields, family, layers)?.filter(|sliding| sliding.window < positions) else {
        return Ok(());
    };
    let Sliding { window, layers: count } = sliding;
    let missing = if fields.has("sliding_window") { "" } else { " (what it means if the key is missing)" };
    Err(ConfigError::Unsupported {
        key: "sliding_window".to_owned(),
        got: format!("{window}{missing} in {count} of {layers} blocks"),
        supported: format!("windows of at least max_position_embeddings = {positions} are"),
        remedy: format!(
            "set `max_position_embeddings` to {window}, on all servers and clients alike, to use the model up to \
             there, where the window hides nothing"
        ),
    })
}

fn sliding(fields: &Fields<'_>, family: &Family, layers: usize) -> Result<Option<Sliding>, ConfigError> {
    match family.windows {
        Windows::Never => Ok(None),
        Windows::All => Ok(window(fields)?.map(|window| Sliding { window, layers })),
        Windows::ByLayer => {
            let window = if fields.flag("use_sliding_window")? { window(fields)? } else { None };
            let named = named_sliding(fields, layers)?;
            match (window, named) {
                (None, Some(count)) if count > 0 => Err(fields.invalid(
                    "layer_types",
                    format!("a list with {count} of sliding_attention"),
                    "no such layers as long as `use_sliding_window` is not true or `sliding_window` is null",
                )),
                (None, _) | (Some(_), Some(0)) => Ok(None),
                (Some(window), Some(layers)) => Ok(Some(Sliding { window, layers })),
                (Some(window), None) => {
                    let without = fields.loose_size_or("max_window_layers", LAYERS_WITHOUT_WINDOW, 0, usize::MAX)?;
                    let layers = layers.saturating_sub(without);
                    Ok((layers > 0).then_some(Sliding { window, layers }))
                }
            }
        }
    }
}

/// `sliding_window`: null is none, a missing one is not.
fn window(fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
    if fields.is_null("sliding_window") {
        return Ok(None);
    }
    fields.loose_size_or("sliding_window", WINDOW, 1, usize::MAX).map(Some)
}

/// Number of layers that `layer_types` calls sliding, if it is there.
fn named_sliding(fields: &Fields<'_>, layers: usize) -> Result<Option<usize>, ConfigError> {
    const KEY: &str = "layer_types";
    let Some(types) = fields.list(KEY)? else { return Ok(None) };
    if types.len() != layers {
        let expected = format!("one for each of num_hidden_layers = {layers}");
        return Err(fields.invalid(KEY, format!("a list of {}", types.len()), expected));
    }
    let mut sliding = 0;
    for kind in types {
        match kind.as_str() {
            Some("full_attention") => {}
            Some("sliding_attention") => sliding += 1,
            _ => return Err(fields.wrong(KEY, kind, "full_attention or sliding_attention for each layer")),
        }
    }
    Ok(Some(sliding))
}
