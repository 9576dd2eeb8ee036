//! Why a configuration was refused, and what to do about it.

/// Why a `config.json` was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not a JSON object.
    #[error("config.json is not a JSON object")]
    Json(#[source] Option<serde_json::Error>),
    /// A key that the model cannot be built without.
    #[error("config.json has no `{0}`")]
    Missing(String),
    /// A value of the wrong type or outside of its bounds.
    #[error("config.json: `{key}` is {got}, expected {expected}")]
    Invalid {
        /// Which key, with the one it is nested in: `rope_scaling.factor`.
        key: String,
        /// The value found.
        got: String,
        /// What is accepted.
        expected: String,
    },
    /// A sound configuration of something that this program does not compute.
    #[error("config.json: `{key}` = {got} is not supported ({supported}): {remedy}")]
    Unsupported {
        /// Which key, with the one it is nested in.
        key: String,
        /// The value found.
        got: String,
        /// What is supported instead.
        supported: String,
        /// The way out.
        remedy: String,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn remedy(&self) -> &str {
        match self {
            Self::Json(_) => "download config.json again from the model's repository",
            Self::Missing(_) | Self::Invalid { .. } => {
                "compare config.json with that of the model's repository, and download it again if they differ"
            }
            Self::Unsupported { remedy, .. } => remedy,
        }
    }
}
