//! Configurations that are refused at a glance, before anything else of theirs could look wrong: wrappers around a language model, and
//! quantised weights.

use super::family::SUPPORTED;
use super::{ConfigError, Fields};

/// Refuses a model of text and images, say, whose language model is described within.
pub(super) fn no_wrapper(fields: &Fields<'_>, model_type: &str) -> Result<(), ConfigError> {
    for key in ["text_config", "llm_config", "language_config"] {
        let Ok(Some(inner)) = fields.object(key) else { continue };
        let inner = match inner.text("model_type") {
            Ok(Some(inner)) => format!("a `{}` language model", inner.escape_default()),
            _ => "a language model".to_owned(),
        };
        return Err(ConfigError::Unsupported {
            key: "model_type".to_owned(),
            got: format!("`{}`, a wrapper around {inner} in `{key}`,", model_type.escape_default()),
            supported: format!("{SUPPORTED}, each by itself"),
            remedy: "use a checkpoint that has the language model alone".to_owned(),
        });
    }
    Ok(())
}

/// Refuses weights that are not plain numbers, by the name of the method that made them.
pub(super) fn not_quantised(fields: &Fields<'_>) -> Result<(), ConfigError> {
    // The second one is what early versions of compressed-tensors wrote.
    for key in ["quantization_config", "compression_config"] {
        let Some(quantised) = fields.object(key)? else { continue };
        let mut method = match quantised.text("quant_method")? {
            Some(method) => format!("`{}`", method.escape_default()),
            None if quantised.flag("load_in_4bit")? || quantised.flag("load_in_8bit")? => "`bitsandbytes`".to_owned(),
            None => "a method without a name".to_owned(),
        };
        if let Ok(Some(bits)) = quantised.number("bits", 1.0, 32.0) {
            method.push_str(&format!(" with {bits} bits"));
        }
        return Err(ConfigError::Unsupported {
            key: format!("{key}.quant_method"),
            got: method,
            supported: "weights that are not quantised are, in F32, BF16 or F16".to_owned(),
            remedy: "use the model that this one was made from, which its model card names".to_owned(),
        });
    }
    Ok(())
}
