//! A hub on loopback that answers as Hugging Face's does: it tells what a revision has, sends small files itself by way of another address of its own,
//! and sends whoever wants large ones to a store on another host with a signed address, where a token would be refused.
//!
//! It notes what it was asked for, and misbehaves where it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

mod answers;
mod repository;
mod shards;
mod wire;

use answers::answer;
pub use repository::{File, Repository};
pub use shards::write_shards;
use wire::{Request, send};

/// What the hub does wrong, once.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers with this status, these headers and this text.
    Status(u16, Vec<(&'static str, String)>, &'static str),
    /// Answers with this text.
    Body(String),
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Sends so many bytes of the body and then nothing, for this long.
    Stall(usize, Duration),
    /// Sends the whole where a part was asked for.
    NoRanges,
    /// Changes the byte at this place of what is sent.
    Flip(usize),
    /// Sends the client there.
    Redirect(String),
    /// Answers nothing at all.
    Silence,
}

/// Something the hub was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Whether it was the store and not the hub itself.
    pub store: bool,
    /// `GET` or `HEAD`.
    pub method: String,
    /// Path, without what is behind its question mark.
    pub path: String,
    /// The file, where it was one.
    pub file: Option<String>,
    /// `Range`.
    pub range: Option<String>,
    /// `Authorization`.
    pub authorization: Option<String>,
}

/// A hub, which ends when it is dropped.
#[derive(Debug)]
pub struct HubServer {
    hub: SocketAddr,
    store: SocketAddr,
    state: Arc<State>,
}

/// What all connections share.
#[derive(Debug, Default)]
struct State {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    repositories: BTreeMap<String, Repository>,
    /// Tokens of accounts, with whether they were let in where it is gated.
    tokens: BTreeMap<String, bool>,
    /// Signatures that the store takes, with the contents that they are for.
    signed: BTreeMap<String, String>,
    /// Words that requests have, with what goes wrong with the next one.
    faults: Vec<(String, Fault)>,
    log: Vec<Asked>,
    stopped: bool,
    /// Whether the listing has no sizes and hashes.
    bare: bool,
    store_at: String,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HubServer {
    /// Starts a hub without repositories.
    ///
    /// # Errors
    /// If the system has no port for it.
    pub fn start() -> anyhow::Result<Self> {
        let state = Arc::new(State::default());
        let (hub, store) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.2:0")?);
        let server = Self { hub: hub.local_addr()?, store: store.local_addr()?, state: state.clone() };
        state.lock().store_at = format!("http://{}", server.store);
        for (listener, is_store) in [(hub, false), (store, true)] {
            let state = state.clone();
            std::thread::spawn(move || accept(&listener, is_store, &state));
        }
        Ok(server)
    }

    /// Its address, for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// Publishes what is in a directory as a revision of a repository; returns its commit.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn publish(&self, repository: &str, revision: &str, directory: &Path) -> anyhow::Result<String> {
        let files = repository::read(directory)?;
        let mut inner = self.state.lock();
        Ok(inner.repositories.entry(repository.to_owned()).or_default().add(revision, files))
    }

    /// A repository's files are only for accounts that were let in.
    pub fn gate(&self, repository: &str) {
        if let Some(repository) = self.state.lock().repositories.get_mut(repository) {
            repository.gated = true;
        }
    }

    /// An account, and whether it was let in where it is gated.
    pub fn account(&self, token: &str, let_in: bool) {
        self.state.lock().tokens.insert(token.to_owned(), let_in);
    }

    /// Listings have no sizes and hashes, as those of simpler hubs.
    pub fn list_names_only(&self) {
        self.state.lock().bare = true;
    }

    /// The next request to which all these words apply meets a fault: `hub` or `store`, `GET` or `HEAD`, a part of its path, the name of its file.
    pub fn fault(&self, words: &str, fault: Fault) {
        self.state.lock().faults.push((words.to_owned(), fault));
    }

    /// What it was asked for so far.
    pub fn log(&self) -> Vec<Asked> {
        self.state.lock().log.clone()
    }

    /// Forgets what it was asked for.
    pub fn forget(&self) {
        self.state.lock().log.clear();
    }

    /// The files whose bytes it was asked for.
    pub fn files_asked(&self) -> BTreeSet<String> {
        self.log().into_iter().filter(|asked| asked.method == "GET").filter_map(|asked| asked.file).collect()
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.state.lock().stopped = true;
        // Wakes those who wait for connections.
        for address in [self.hub, self.store] {
            let _ = TcpStream::connect_timeout(&address, Duration::from_secs(1));
        }
    }
}

fn accept(listener: &TcpListener, is_store: bool, state: &Arc<State>) {
    for connection in listener.incoming().flatten() {
        if state.lock().stopped {
            return;
        }
        let state = state.clone();
        std::thread::spawn(move || {
            // Whoever goes away in the middle of an answer has his reasons.
            let _ = serve(&connection, is_store, &state);
        });
    }
}

/// One request on a connection of its own.
fn serve(connection: &TcpStream, is_store: bool, state: &State) -> anyhow::Result<()> {
    let Some(request) = Request::read(connection)? else { return Ok(()) };
    let (reply, fault) = {
        let mut inner = state.lock();
        let asked = inner.asked(is_store, &request);
        let Asked { method, path, file, .. } = &asked;
        let side = if is_store { "store" } else { "hub" };
        let known = format!("{side} {method} {path} {}", file.as_deref().unwrap_or_default());
        inner.log.push(asked);
        let at = inner.faults.iter().position(|(words, _)| words.split(' ').all(|word| known.contains(word)));
        let fault = at.map(|at| inner.faults.remove(at).1);
        (answer(&mut inner, is_store, &request), fault)
    };
    send(connection, &request, reply, fault)
}
