//! Sliding windows: which layers have one.

use super::{ConfigError, Fields};

/// What a missing `sliding_window` means to Mistral and Qwen.
pub(super) const WINDOW: usize = 4096;
/// What a missing `max_window_layers` means: that many layers from the first on have no window.
const LAYERS_WITHOUT_WINDOW: usize = 28;

/// Which layers of a family have a sliding window.
#[derive(Debug, Clone, Copy)]
pub(super) enum Windows {
    /// None, whatever the configuration says.
    Never,
    /// All, if there is a window; this is what a missing one means, if anything.
    All(Option<usize>),
    /// All, if `use_sliding_window` is true.
    AllIfUsed,
    /// Those that `layer_types` names, or those from `max_window_layers` on, if `use_sliding_window` is true.
    IfUsed,
    /// Those that `layer_types` names, or else all but every so manieth, if there is a window; this is what a missing one means.
    AllButEvery(usize, usize),
}

impl Windows {
    /// The window of each of `layers` layers. One that hides nothing from a sequence of at most `positions` is none.
    pub(super) fn read(
        self,
        fields: &Fields<'_>,
        layers: usize,
        positions: usize,
    ) -> Result<Vec<Option<usize>>, ConfigError> {
        let bites = |window: Option<usize>| window.filter(|window| *window < positions);
        let all = |window: Option<usize>| vec![bites(window); layers];
        match self {
            Self::Never => Ok(all(None)),
            Self::All(default) => Ok(all(window(fields, default)?)),
            Self::AllIfUsed => {
                Ok(all(if fields.flag("use_sliding_window")? { window(fields, Some(WINDOW))? } else { None }))
            }
            Self::IfUsed => {
                let window = if fields.flag("use_sliding_window")? { window(fields, Some(WINDOW))? } else { None };
                let named = layer_types(fields, layers)?;
                let count = named.iter().flatten().filter(|slides| **slides).count();
                if window.is_none() && count > 0 {
                    return Err(fields.invalid(
                        "layer_types",
                        format!("a list with {count} of sliding_attention"),
                        "no such layers as long as `use_sliding_window` is not true or `sliding_window` is null",
                    ));
                }
                let slides = match (named, window) {
                    (Some(slides), _) => slides,
                    (None, None) => vec![false; layers],
                    (None, Some(_)) => {
                        const KEY: &str = "max_window_layers";
                        let without = fields.loose_size_or(KEY, LAYERS_WITHOUT_WINDOW, 0, usize::MAX)?;
                        (0..layers).map(|layer| layer >= without).collect()
                    }
                };
                Ok(slides.into_iter().map(|slides| bites(window.filter(|_| slides))).collect())
            }
            Self::AllButEvery(every, default) => {
                let window = bites(window(fields, Some(default))?);
                let slides = match layer_types(fields, layers)? {
                    Some(slides) => slides,
                    None => (1..=layers).map(|layer| !layer.is_multiple_of(every)).collect(),
                };
                Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
            }
        }
    }
}

/// `sliding_window`: null is none, a missing one is not.
fn window(fields: &Fields<'_>, default: Option<usize>) -> Result<Option<usize>, ConfigError> {
    const KEY: &str = "sliding_window";
    match default.filter(|_| !fields.has(KEY)) {
        Some(default) => Ok(Some(default)),
        None if !fields.has(KEY) || fields.is_null(KEY) => Ok(None),
        None => fields.loose_size_or(KEY, WINDOW, 1, usize::MAX).map(Some),
    }
}

/// For each layer whether `layer_types` calls it sliding, if it is there.
pub(super) fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>, ConfigError> {
    const KEY: &str = "layer_types";
    let Some(types) = fields.list(KEY)? else { return Ok(None) };
    if types.len() != layers {
        let expected = format!("one for each of num_hidden_layers = {layers}");
        return Err(fields.invalid(KEY, format!("a list of {}", types.len()), expected));
    }
    let slides = types.iter().map(|kind| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(fields.wrong(KEY, kind, "full_attention or sliding_attention for each layer")),
    });
    slides.collect::<Result<_, _>>().map(Some)
}
