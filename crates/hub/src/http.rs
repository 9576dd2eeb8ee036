//! Requests to the hub and to where it sends us: redirects, who is told the token, what an answer means, and how often to ask again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use crate::error::HubError;
use crate::reference::ModelName;
use crate::settings::{Patience, Settings, SettingsError, Token};

/// Most steps from the hub to a file.
const MAX_REDIRECTS: usize = 10;
/// Longest reason of a refusal that is read, in bytes.
const MAX_REASON: u64 = 4 << 10;
/// Longest reason that is shown, in characters.
const SHOWN_REASON: usize = 200;
/// Steps in which a wait looks whether it is still wanted.
const NAP: Duration = Duration::from_millis(50);

mod address;
mod trust;

use address::{encoded, origin, without_query};

/// Asks the hub.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    pub(crate) patience: Patience,
}

/// What is asked for, as errors say it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a ModelName,
    pub(crate) file: Option<&'a str>,
}

/// A good answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Headers of whoever sends the bytes.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    pub(crate) url: String,
}

/// Why there is none.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Asking again brings nothing else.
    Lasting(HubError),
    /// Asking again may help.
    Passing {
        /// What to say if it does not.
        error: HubError,
        /// How long to wait, if the other side says so.
        wait: Option<Duration>,
    },
    /// The other side has fewer bytes than we.
    Beyond,
}

/// The attempts of one request.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    patience: Patience,
    made: u32,
    stop: &'a AtomicBool,
}

impl Http {
    pub(crate) fn new(settings: &Settings) -> Result<Self, SettingsError> {
        let Patience { connect, silence, .. } = settings.patience;
        let config = Agent::config_builder()
            .tls_config(trust::of(settings.certificates.as_deref())?)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("petals-rs/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(connect))
            .timeout_resolve(Some(connect))
            .timeout_recv_response(Some(connect + silence))
            .timeout_per_read(Some(silence))
            .build();
        Ok(Self {
            agent: config.into(),
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            patience: settings.patience,
        })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Where the hub tells what a revision has.
    pub(crate) fn listing_url(&self, name: &ModelName) -> String {
        format!("{}/api/models/{}/revision/{}?blobs=true", self.endpoint, name.repository(), encoded(name.revision()))
    }

    /// Where the hub has a file of a commit.
    pub(crate) fn file_url(&self, name: &ModelName, commit: &str, file: &str) -> String {
        let parts: Vec<String> = file.split('/').map(encoded).collect();
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, name.repository(), parts.join("/"))
    }

    /// The repository's page.
    pub(crate) fn page(&self, name: &ModelName) -> String {
        format!("{}/{}", self.endpoint, name.repository())
    }

    /// Asks once. With `range` for a part of the bytes.
    pub(crate) fn get(&self, asked: Asked<'_>, url: &str, range: Option<&str>) -> Result<Answer, Trouble> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send("GET", &url, range)?;
            match redirected(&response, &url)? {
                Some(next) => url = next,
                None => return self.good(asked, response, url),
            }
        }
        let what = format!("to go on elsewhere, more than {MAX_REDIRECTS} times");
        Err(Trouble::Lasting(HubError::Nonsense { url, what }))
    }

    /// The headers that the hub itself has for a file, wherever its bytes are.
    pub(crate) fn head(&self, asked: Asked<'_>, url: &str) -> Result<HeaderMap, Trouble> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send("HEAD", &url, None)?;
            match redirected(&response, &url)? {
                // A repository that has another name now; others lead to the bytes.
                Some(next) if origin(&next) == origin(&url) && !response.headers().contains_key("x-linked-etag") => {
                    url = next
                }
                Some(_) => return Ok(response.headers().clone()),
                None => return self.good(asked, response, url).map(|answer| answer.headers),
            }
        }
        Err(Trouble::Lasting(HubError::Nonsense { url, what: "to go on elsewhere, again and again".to_owned() }))
    }

    fn send(&self, method: &str, url: &str, range: Option<&str>) -> Result<Response<Body>, Trouble> {
        let mut request = match method {
            "HEAD" => self.agent.head(url),
            _ => self.agent.get(url),
        };
        if let Some(range) = range {
            request = request.header("range", range);
        }
        // A signed address speaks for itself, and nobody but the hub may learn the token.
        if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(url)) {
            request = request.header("authorization", format!("Bearer {}", token.secret()));
        }
        request.call().map_err(|error| failed(url, &error))
    }

    fn is_hub(&self, url: &str) -> bool {
        origin(url) == origin(&self.endpoint)
    }

    fn good(&self, asked: Asked<'_>, response: Response<Body>, url: String) -> Result<Answer, Trouble> {
        let (parts, body) = response.into_parts();
        match parts.status.as_u16() {
            status @ (200 | 206) => Ok(Answer { status, headers: parts.headers, body, url }),
            416 => Err(Trouble::Beyond),
            status => Err(self.refused(asked, status, &parts.headers, body, url)),
        }
    }

    /// What a status that is not good means.
    fn refused(&self, asked: Asked<'_>, status: u16, headers: &HeaderMap, body: Body, url: String) -> Trouble {
        let (name, hub) = (asked.name, self.is_hub(&url));
        let (code, url) = (text(headers, "x-error-code"), without_query(&url));
        let said = text(headers, "x-error-message").or_else(|| reason(body));
        let (repository, page) = (name.repository().to_owned(), self.page(name));
        let token = self.token.as_ref().map(|token| token.source().to_owned());
        let wait = asked_wait(headers);
        match (status, code.as_deref()) {
            (408 | 500 | 502..=504, _) => {
                Trouble::Passing { error: HubError::Server { url, status, said, attempts: 0 }, wait }
            }
            (429, _) => {
                let anonymous = token.is_none();
                let error = HubError::RateLimited { url, wait: wait.unwrap_or_default(), anonymous };
                match wait.filter(|wait| *wait > self.patience.longest_asked) {
                    Some(_) => Trouble::Lasting(error),
                    None => Trouble::Passing { error, wait },
                }
            }
            // A signed address that is no longer valid: the hub gives another one.
            (401 | 403 | 404, _) if !hub => {
                Trouble::Passing { error: HubError::Server { url, status, said, attempts: 0 }, wait }
            }
            (_, Some("RevisionNotFound")) => {
                Trouble::Lasting(HubError::NoRevision { repository, revision: name.revision().to_owned(), page })
            }
            (404, Some("EntryNotFound")) | (404, None) if asked.file.is_some() => Trouble::Lasting(HubError::NoFile {
                name: name.to_string(),
                file: asked.file.unwrap_or_default().to_owned(),
                page,
            }),
            (403, _) | (_, Some("GatedRepo")) => Trouble::Lasting(match token {
                None if status == 401 => HubError::Unauthorized { repository, page, token, said },
                token => HubError::Forbidden { repository, page, token, said },
            }),
            (401, _) => Trouble::Lasting(HubError::Unauthorized { repository, page, token, said }),
            (404, _) => Trouble::Lasting(HubError::NoRepository { repository, endpoint: self.endpoint.clone() }),
            _ => Trouble::Lasting(HubError::Refused { url, status, said }),
        }
    }
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(patience: Patience, stop: &'a AtomicBool) -> Self {
        Self { patience, made: 0, stop }
    }

    /// Something has come: from here on failures count anew.
    pub(crate) fn succeeded(&mut self) {
        self.made = 0;
    }

    /// Waits for the next attempt, and says why, unless there were enough.
    pub(crate) fn wait(
        &mut self,
        error: HubError,
        asked: Option<Duration>,
        say: impl FnOnce(String, Duration),
    ) -> Result<(), HubError> {
        self.made += 1;
        let error = counted(error, self.made);
        if self.made >= self.patience.attempts {
            return Err(error);
        }
        let grown =
            self.patience.first_wait.saturating_mul(1 << (self.made - 1).min(16)).min(self.patience.longest_wait);
        // Many nodes that were cut off together do not come back together.
        let wait = asked.map_or(grown.mul_f64(0.75 + 0.5 * random()), |asked| asked.max(self.patience.first_wait / 4));
        say(error.passing_reason(), wait);
        let until = Instant::now() + wait;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(HubError::GivenUp);
            }
            std::thread::sleep(left.min(NAP));
        }
        Ok(())
    }
}

/// The same failure after so many attempts.
fn counted(error: HubError, attempts: u32) -> HubError {
    match error {
        HubError::Server { url, status, said, .. } => HubError::Server { url, status, said, attempts },
        HubError::Unreachable { url, reason, .. } => HubError::Unreachable { url, reason, attempts },
        other => other,
    }
}

/// A failure on the way.
fn failed(url: &str, error: &ureq::Error) -> Trouble {
    let url = without_query(url);
    match error {
        // Whoever shows a certificate that is not his does so the next time too.
        error if is_untrusted(error) => {
            Trouble::Lasting(HubError::Unreachable { url, reason: error.to_string(), attempts: 1 })
        }
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            Trouble::Lasting(HubError::Nonsense {
                url,
                what: format!("nothing, since the address cannot be used: {error}"),
            })
        }
        _ => Trouble::Passing {
            error: HubError::Unreachable { url, reason: error.to_string(), attempts: 0 },
            wait: None,
        },
    }
}

/// Whether TLS was refused.
fn is_untrusted(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        ureq::Error::Io(cause) => cause.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// A connection that was lost while bytes came.
pub(crate) fn cut(url: &str, reason: impl Into<String>) -> Trouble {
    let error = HubError::Unreachable { url: without_query(url), reason: reason.into(), attempts: 0 };
    Trouble::Passing { error, wait: None }
}

/// Where an answer sends us.
fn redirected(response: &Response<Body>, url: &str) -> Result<Option<String>, Trouble> {
    let status = response.status();
    if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
        return Ok(None);
    }
    let nonsense =
        |what: &str| Trouble::Lasting(HubError::Nonsense { url: without_query(url), what: format!("{status} {what}") });
    let location = response.headers().get("location").ok_or_else(|| nonsense("without saying where to go"))?;
    let location = location.to_str().map_err(|_| nonsense("to an address that is none"))?;
    let (scheme, _) = url.split_once("://").unwrap_or(("https", ""));
    let next = match location {
        absolute if absolute.starts_with("https://") || absolute.starts_with("http://") => absolute.to_owned(),
        elsewhere if elsewhere.starts_with("//") => format!("{scheme}:{elsewhere}"),
        path if path.starts_with('/') => format!("{}{path}", origin(url)),
        _ => return Err(nonsense("to an address that is none")),
    };
    if scheme == "https" && !next.starts_with("https://") {
        return Err(nonsense("to an address that anybody on the way could answer for"));
    }
    Ok(Some(next))
}

/// A header as text.
pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| shortened(value))
}

/// The first line of what a refusal says.
fn reason(body: Body) -> Option<String> {
    let text = body.into_with_config().limit(MAX_REASON).read_to_string().ok()?;
    let said: Option<String> = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|json| Some(json.get("error")?.as_str()?.to_owned()));
    let said = said.or_else(|| (!text.trim_start().starts_with('<')).then_some(text))?;
    let line = said.lines().find(|line| !line.trim().is_empty())?;
    Some(shortened(line.trim()))
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_REASON).collect()
}

/// How long an answer asks to wait: seconds or a date in `Retry-After`, or what is left of the window in `RateLimit`.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let after = text(headers, "retry-after").and_then(|value| match value.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            httpdate::parse_http_date(&value).ok().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default())
        }
    });
    let window = || {
        let value = text(headers, "ratelimit")?;
        let left = value.split(';').find_map(|part| part.trim().strip_prefix("t="))?.trim().parse::<u64>().ok()?;
        Some(Duration::from_secs(left))
    };
    after.or_else(window)
}

/// A number in 0..1 that differs between processes and moments.
fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(Instant::now()) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_may_be_seconds_a_date_or_a_window() {
        let headers = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            asked_wait(&headers)
        };
        assert_eq!(headers("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(headers("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(headers("retry-after", &soon).is_some_and(|wait| (55..=60).contains(&wait.as_secs())));
        assert_eq!(headers("ratelimit", "\"resolvers\";r=0;t=33"), Some(Duration::from_secs(33)));
        assert_eq!(headers("retry-after", "soon"), None);
    }
}
