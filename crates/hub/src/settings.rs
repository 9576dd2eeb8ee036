//! Where the hub and its cache are, and who asks: the variables that Python's `huggingface_hub` has.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub itself.
const ENDPOINT: &str = "https://huggingface.co";

/// The variable with the user's folder, as Python has it.
const HOME: &str = if cfg!(windows) { "USERPROFILE" } else { "HOME" };

/// A token, and where it came from. What it is never shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    secret: String,
    source: String,
}

impl Token {
    /// A token with the place that errors name.
    pub fn new(secret: impl Into<String>, source: impl Into<String>) -> Self {
        Self { secret: secret.into(), source: source.into() }
    }

    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Where it came from, such as `HF_TOKEN`.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(from {})", self.source)
    }
}

/// How long the hub is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection, and for the first bytes of an answer.
    pub connect: Duration,
    /// For the next bytes of an answer.
    pub silence: Duration,
    /// Before the second attempt; doubled with each further one.
    pub first_wait: Duration,
    /// Before any attempt, unless the hub itself asks for more.
    pub longest_wait: Duration,
    /// Longest time that the hub may ask for.
    pub longest_asked: Duration,
    /// Attempts in a row that bring nothing.
    pub attempts: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            silence: Duration::from_secs(30),
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(30),
            longest_asked: Duration::from_secs(15 * 60),
            attempts: 7,
        }
    }
}

/// What there is to know before the hub can be asked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The folder of the cache, with `models--org--name` in it.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Option<Token>,
    /// Whether nothing may be asked.
    pub offline: bool,
    /// A file with the certificates that are trusted, in PEM, in the place of Mozilla's list.
    pub certificates: Option<PathBuf>,
    /// How long the hub is waited for.
    pub patience: Patience,
}

/// Why the environment cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The endpoint is no address.
    #[error("HF_ENDPOINT is `{0}`, which is no address such as https://huggingface.co")]
    Endpoint(String),
    /// Nobody knows where the cache is.
    #[error("neither HF_HOME nor {} is set, so there is no place for the hub's cache: set HF_HOME to a folder", HOME)]
    NoHome,
    /// A token that cannot be sent.
    #[error("the token in {0} has characters that no token has: log in again, or set HF_TOKEN to the token alone")]
    Token(String),
    /// The certificates cannot be used.
    #[error("the certificates in {} cannot be used, {reason}: see SSL_CERT_FILE, which names a file of them in PEM", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file of the token is there and cannot be read.
    #[error("cannot read the token in {}: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl Settings {
    /// What the environment says: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `SSL_CERT_FILE`,
    /// and older names of these.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn from_environment() -> Result<Self, SettingsError> {
        Self::read(|name| std::env::var_os(name))
    }

    fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let set = |names: &[&str]| names.iter().find_map(|name| get(name).filter(|value| !value.is_empty()));
        let text = |names: &[&str]| set(names).map(|value| value.to_string_lossy().trim().to_owned());
        let home = set(&[HOME]).map(PathBuf::from);
        let path = |names: &[&str]| set(names).map(|value| expanded(value, home.as_deref()));
        let own = || {
            path(&["XDG_CACHE_HOME"]).or_else(|| Some(home.as_ref()?.join(".cache"))).map(|dir| dir.join("huggingface"))
        };
        let hf_home = path(&["HF_HOME"]).or_else(own);
        let below = |name: &str| hf_home.as_ref().map(|home| home.join(name));
        let cache = path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).or_else(|| below("hub"));
        let endpoint = text(&["HF_ENDPOINT"]).unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !is_address(&endpoint) {
            return Err(SettingsError::Endpoint(endpoint));
        }
        let is_true = |names: &[&str]| text(names).is_some_and(|value| is_true(&value));
        let token = match text(&["HF_TOKEN"]).map(|token| ("HF_TOKEN".to_owned(), token)) {
            Some(found) => Some(found),
            None if is_true(&["HF_HUB_DISABLE_IMPLICIT_TOKEN"]) => None,
            None => match text(&["HUGGING_FACE_HUB_TOKEN"]) {
                Some(token) => Some(("HUGGING_FACE_HUB_TOKEN".to_owned(), token)),
                None => path(&["HF_TOKEN_PATH"]).or_else(|| below("token")).map_or(Ok(None), |path| saved(&path))?,
            },
        };
        Ok(Self {
            endpoint,
            cache: cache.ok_or(SettingsError::NoHome)?,
            token: token.filter(|(_, token)| !token.is_empty()).map(checked).transpose()?,
            offline: is_true(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]),
            certificates: path(&["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"]),
            patience: Patience::default(),
        })
    }
}

/// The token that `hf auth login` saved, if there is one.
fn saved(path: &Path) -> Result<Option<(String, String)>, SettingsError> {
    match fs::read_to_string(path) {
        Ok(token) => Ok(Some((path.display().to_string(), token.trim().to_owned()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SettingsError::TokenFile { path: path.to_owned(), source }),
    }
}

fn checked((source, secret): (String, String)) -> Result<Token, SettingsError> {
    match secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Token { secret, source }),
        false => Err(SettingsError::Token(source)),
    }
}

/// The folder of a user behind `~/`, as Python expands it.
fn expanded(value: OsString, home: Option<&Path>) -> PathBuf {
    let path = PathBuf::from(value);
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

fn is_address(endpoint: &str) -> bool {
    let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    host.is_some_and(|host| !host.is_empty() && !host.starts_with('/'))
        && endpoint.bytes().all(|byte| byte.is_ascii_graphic())
        && !endpoint.contains(['?', '#', '@'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::read(|name| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn folders_are_where_python_has_them() {
        let cache = |variables: &[(&str, &str)]| read(variables).unwrap().cache;
        assert_eq!(cache(&[(HOME, "/h")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[(HOME, "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[(HOME, "/h"), ("HF_HOME", "~/hf")]), Path::new("/h/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
        assert!(matches!(read(&[]), Err(SettingsError::NoHome)));
    }

    #[test]
    fn a_token_comes_from_the_environment_or_its_file_and_never_shows() {
        let home = tempfile::tempdir().unwrap();
        let hf_home = home.path().to_str().unwrap();
        assert_eq!(read(&[("HF_HOME", hf_home)]).unwrap().token, None);
        fs::write(home.path().join("token"), "hf_saved\n").unwrap();
        let saved = read(&[("HF_HOME", hf_home)]).unwrap();
        let token = saved.token.clone().unwrap();
        assert_eq!((token.secret(), token.source().ends_with("token")), ("hf_saved", true));
        assert!(!format!("{saved:?}").contains("hf_saved"), "{saved:?}");
        let given = read(&[("HF_HOME", hf_home), ("HF_TOKEN", " hf_given ")]).unwrap().token.unwrap();
        assert_eq!((given.secret(), given.source()), ("hf_given", "HF_TOKEN"));
        assert_eq!(read(&[("HF_HOME", hf_home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap().token, None);
        let error = read(&[("HF_HOME", hf_home), ("HF_TOKEN", "two words")]).unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("two words"), "{error}");
        let elsewhere = home.path().join("other");
        fs::write(&elsewhere, "hf_other").unwrap();
        let other = read(&[("HF_HOME", hf_home), ("HF_TOKEN_PATH", elsewhere.to_str().unwrap())]).unwrap();
        assert_eq!(other.token.unwrap().secret(), "hf_other");
    }

    #[test]
    fn endpoints_and_switches_are_read() {
        let settings = |more: (&str, &str)| read(&[("HF_HOME", "/nowhere"), more]);
        assert_eq!(settings(("HF_ENDPOINT", "http://127.0.0.1:80/")).unwrap().endpoint, "http://127.0.0.1:80");
        assert_eq!(settings(("X", "")).unwrap().endpoint, ENDPOINT);
        for wrong in ["ftp://x", "huggingface.co", "https://", "https://a b", "https://user@x"] {
            assert!(matches!(settings(("HF_ENDPOINT", wrong)), Err(SettingsError::Endpoint(_))), "{wrong}");
        }
        for (value, offline) in [("1", true), ("yes", true), ("0", false), ("", false)] {
            assert_eq!(settings(("HF_HUB_OFFLINE", value)).unwrap().offline, offline, "{value}");
        }
        assert!(settings(("TRANSFORMERS_OFFLINE", "True")).unwrap().offline);
        assert_eq!(settings(("SSL_CERT_FILE", "/ca.pem")).unwrap().certificates, Some("/ca.pem".into()));
    }
}
