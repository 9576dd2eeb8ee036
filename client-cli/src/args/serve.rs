//! `petals-tune serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use petals_settings::duration_above_zero;

use super::SwarmArgs;
use super::values::{adapter, at_least, host, origin};
use crate::chat::{ChatTemplate, ToolFormat};

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  petals-tune serve --model ./Llama-3.1-8B-Instruct --peers $PEERS
      then open http://127.0.0.1:8080 in a browser, or point any OpenAI client to http://127.0.0.1:8080/v1
  petals-tune serve --model ./Llama-3.1-8B-Instruct --peers $PEERS --adapter pirate=./pirate-prompt
      serves the models Llama-3.1-8B-Instruct and Llama-3.1-8B-Instruct:pirate
  PETALS_API_KEY=secret petals-tune serve --model ./Llama-3.1-8B-Instruct --peers $PEERS --listen 0.0.0.0:8080
      for others, who need the key; put a proxy with TLS in front of it on networks that you do not trust")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// An adapter, served as the model `MODEL:NAME`; may be given several times.
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., value_parser = adapter)]
    pub(crate) adapter: Vec<(String, PathBuf)>,

    /// A Jinja chat template instead of the model's own.
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,

    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,

    /// The key that clients must have. Other users of this machine see it in the list of processes: a file, or
    /// the environment variable PETALS_API_KEY, keeps it secret.
    #[arg(long, value_name = "KEY", conflicts_with = "api_key_file")]
    pub(crate) api_key: Option<String>,

    /// File with the keys of which clients must have one, each in a line. Each key has its texts kept for itself.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,

    /// Let all users have what is kept of each other's texts (a system prompt that all begin with is then computed once). The price is privacy: who guesses
    /// how somebody's text begins sees by `cached_tokens`, and by the time, that it is right. Default: each key, or without keys each address, has its own.
    #[arg(long)]
    pub(crate) share_prefixes: bool,

    /// Let pages of this origin use the API from a browser, for example `https://chat.example.org`; `*`: of any.
    #[arg(long, value_name = "ORIGIN", num_args = 1.., value_parser = origin)]
    pub(crate) cors: Vec<String>,

    /// Answer to this name as well, without a port, when listening on this machine alone and without a key: what proxies and containers
    /// put into the Host header; `*`: to any, which lets pages of foreign names in.
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = host)]
    pub(crate) allow_host: Vec<String>,

    /// How the model writes calls of tools; `auto`: as its chat template says; `none`: answers are not looked through for calls.
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = tool_format())]
    pub(crate) tool_format: ToolFormatChoice,

    #[command(flatten)]
    pub(crate) limits: ServeLimits,
}

/// Whether and how calls of tools are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolFormatChoice {
    /// As the template says.
    Auto,
    /// In one format, or not at all.
    Given(Option<ToolFormat>),
}

impl ToolFormatChoice {
    /// The format for a model with this template.
    pub(crate) fn of(self, template: Option<&ChatTemplate>) -> Option<ToolFormat> {
        match self {
            Self::Auto => template.and_then(ToolFormat::of),
            Self::Given(format) => format,
        }
    }
}

/// `auto`, `none` or a format.
fn tool_format() -> impl TypedValueParser<Value = ToolFormatChoice> {
    PossibleValuesParser::new(["auto", "none", "hermes", "llama", "mistral", "qwen3-coder", "pythonic"]).map(|text| {
        match text.as_str() {
            "auto" => ToolFormatChoice::Auto,
            "hermes" => ToolFormatChoice::Given(Some(ToolFormat::Hermes)),
            "llama" => ToolFormatChoice::Given(Some(ToolFormat::Llama)),
            "mistral" => ToolFormatChoice::Given(Some(ToolFormat::Mistral)),
            "pythonic" => ToolFormatChoice::Given(Some(ToolFormat::Pythonic)),
            "qwen3-coder" => ToolFormatChoice::Given(Some(ToolFormat::QwenXml)),
            _ => ToolFormatChoice::Given(None),
        }
    })
}

/// What clients may take.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct ServeLimits {
    /// Texts that are generated at a time; further requests wait.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least(1))]
    pub(crate) concurrent: usize,

    /// Requests that may wait; further ones are refused with status 429.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) queue: usize,

    /// Longest wait of a request for its turn; then it is refused with status 503.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration_above_zero)]
    pub(crate) queue_timeout: Duration,

    /// Most tokens that a text gets; what asks for more is cut to it.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = at_least(1))]
    pub(crate) max_new_tokens: usize,

    /// Tokens that a chat gets which asks for no number.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least(1))]
    pub(crate) default_new_tokens: usize,

    /// Largest request.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = at_least(1))]
    pub(crate) request_bytes: usize,

    /// Finished texts that servers keep, so that a chat's next message costs only what is new.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) idle_sessions: usize,

    /// How long a finished text is kept.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration_above_zero)]
    pub(crate) idle_timeout: Duration,
}
