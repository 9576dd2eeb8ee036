//! What is in force, for people and scripts.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// The settings of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct InForce {
    /// The file that was read.
    pub file: FileInForce,
    /// What has a value, in the order of the command's help.
    pub settings: Vec<SettingInForce>,
    /// Whether the command line asks for JSON.
    pub json: bool,
}

/// The file of settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileInForce {
    /// The command whose settings these are.
    pub command: String,
    /// The file that was read, if there is one.
    pub file: Option<PathBuf>,
    /// Where one was looked for.
    pub places: Vec<PathBuf>,
}

/// A setting that has a value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SettingInForce {
    /// The key, as the file has it.
    pub key: String,
    /// One value, or several of what can be given several times.
    pub values: Vec<String>,
    /// Where it comes from.
    #[serde(flatten)]
    pub source: Source,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "source", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Source {
    /// The command line.
    Flag,
    /// A variable of the environment.
    Environment {
        /// Its name.
        variable: String,
    },
    /// The file.
    File {
        /// Which.
        file: PathBuf,
        /// The line.
        line: usize,
    },
    /// Nobody said anything.
    Default,
}

impl fmt::Display for FileInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "settings of {} with {}", self.command, file.display()),
            None => {
                let places: Vec<_> = self.places.iter().map(|place| place.display().to_string()).collect();
                write!(f, "settings of {} without a file: none at {}", self.command, places.join(", "))
            }
        }
    }
}

impl fmt::Display for SettingInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.values.join(" ");
        write!(f, "{} = {value}    ({})", self.key, self.source)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment { variable } => f.write_str(variable),
            Self::File { file, line } => write!(f, "{}, line {line}", file.display()),
            Self::Default => f.write_str("default"),
        }
    }
}
