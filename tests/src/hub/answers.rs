//! What the hub and its store say to a request.

use serde_json::{Value, json};

use super::repository::Repository;
use super::wire::{Reply, Request};
use super::{Asked, Inner};

/// What a path of the hub means.
enum Place<'a> {
    /// What a revision has.
    Listing(&'a str, &'a str),
    /// A file of a revision, or where small ones really are.
    File {
        repository: &'a str,
        revision: &'a str,
        file: &'a str,
        cached: bool,
    },
    Elsewhere,
}

fn place(path: &str) -> Place<'_> {
    let rest = |start: &str| path.strip_prefix(start);
    let of = |rest: &'_ str| rest.match_indices('/').nth(1).map(|(at, _)| at);
    if let Some(rest) = rest("/api/models/")
        && let Some(at) = of(rest)
        && let Some(revision) = rest[at..].strip_prefix("/revision/")
    {
        return Place::Listing(&rest[..at], revision);
    }
    let (rest, cached) = match path.strip_prefix("/api/resolve-cache/models/") {
        Some(rest) => (rest, true),
        None => (path.trim_start_matches('/'), false),
    };
    if let Some(at) = of(rest) {
        let behind = &rest[at + 1..];
        let behind = if cached { Some(behind) } else { behind.strip_prefix("resolve/") };
        if let Some((revision, file)) = behind.and_then(|behind| behind.split_once('/')) {
            return Place::File { repository: &rest[..at], revision, file, cached };
        }
    }
    Place::Elsewhere
}

impl Inner {
    /// A request as it is noted.
    pub(super) fn asked(&self, store: bool, request: &Request) -> Asked {
        let file = match place(&request.path) {
            _ if store => {
                let oid = request.path.rsplit('/').next().unwrap_or_default();
                self.repositories.values().find_map(|repository| repository.stored(oid)).map(|(name, _)| name.clone())
            }
            Place::File { file, .. } => Some(file.to_owned()),
            _ => None,
        };
        Asked {
            store,
            method: request.method.clone(),
            path: request.path.clone(),
            file,
            range: request.header("range"),
            authorization: request.header("authorization"),
        }
    }
}

/// The right answer to a request.
pub(super) fn answer(inner: &mut Inner, store: bool, request: &Request) -> Reply {
    if store {
        return from_store(inner, request);
    }
    let token = request.header("authorization").map(|value| value.trim_start_matches("Bearer ").to_owned());
    let known = token.as_ref().map(|token| inner.tokens.get(token).copied());
    if known == Some(None) {
        return refusal(401, None, "Invalid credentials in Authorization header");
    }
    let let_in = known.flatten().unwrap_or(false);
    let bare = inner.bare;
    let (name, revision) = match place(&request.path) {
        Place::Listing(repository, revision) => (repository.to_owned(), revision.to_owned()),
        Place::File { repository, revision, .. } => (repository.to_owned(), revision.to_owned()),
        Place::Elsewhere => return refusal(404, None, "Sorry, we can't find the page you are looking for."),
    };
    let Some(repository) = inner.repositories.get(&name) else {
        return match known {
            Some(_) => refusal(404, Some("RepoNotFound"), "Repository not found"),
            None => refusal(401, Some("RepoNotFound"), "Invalid username or password."),
        };
    };
    let Some((commit, files)) = repository.find(&revision) else {
        return refusal(404, Some("RevisionNotFound"), &format!("Invalid rev id: {revision}"));
    };
    let commit = commit.clone();
    let Place::File { file, cached, .. } = place(&request.path) else {
        return listing(&name, &commit, repository, bare);
    };
    if repository.gated && !let_in {
        let status = if known.is_some() { 403 } else { 401 };
        return refusal(status, Some("GatedRepo"), &format!("Access to model {name} is restricted."));
    }
    let Some(found) = files.get(file) else {
        return refusal(404, Some("EntryNotFound"), "Entry not found");
    };
    let (etag, length) = (found.etag().to_owned(), found.bytes.len());
    let mut headers = vec![("x-repo-commit", commit.clone())];
    if let Some(oid) = &found.lfs {
        let signature = format!("{:x}", inner.signed.len() + 1);
        headers.extend([("x-linked-etag", format!("\"{etag}\"")), ("x-linked-size", length.to_string())]);
        headers.push(("location", format!("{}/repos/ab/cd/{oid}?X-Amz-Signature={signature}", inner.store_at)));
        let oid = oid.clone();
        inner.signed.insert(signature, oid);
        return Reply { status: 302, headers, body: b"Found. Redirecting to the store".to_vec(), ranges: false };
    }
    if !cached {
        headers.push(("location", format!("/api/resolve-cache/models/{name}/{commit}/{file}?etag=%22{etag}%22")));
        return Reply { status: 307, headers, body: b"Temporary Redirect".to_vec(), ranges: false };
    }
    headers.push(("etag", format!("\"{etag}\"")));
    Reply { status: 200, headers, body: found.bytes.clone(), ranges: true }
}

/// The store takes signatures and nothing else.
fn from_store(inner: &mut Inner, request: &Request) -> Reply {
    if request.header("authorization").is_some() {
        return refusal(400, None, "Only one auth mechanism allowed");
    }
    let oid = request.path.rsplit('/').next().unwrap_or_default();
    let signature = request.query.split('&').find_map(|part| part.strip_prefix("X-Amz-Signature="));
    if signature.and_then(|signature| inner.signed.get(signature)).is_none_or(|signed| signed != oid) {
        return refusal(403, None, "AccessDenied");
    }
    match inner.repositories.values().find_map(|repository| repository.stored(oid)) {
        Some((_, file)) => Reply { status: 200, headers: Vec::new(), body: file.bytes.clone(), ranges: true },
        None => refusal(404, None, "NoSuchKey"),
    }
}

fn listing(name: &str, commit: &str, repository: &Repository, bare: bool) -> Reply {
    let sibling = |(file, content): (&String, &super::File)| {
        let size = content.bytes.len();
        match &content.lfs {
            _ if bare => json!({"rfilename": file}),
            None => json!({"rfilename": file, "blobId": content.blob, "size": size}),
            Some(oid) => {
                let lfs = json!({"sha256": oid, "size": size, "pointerSize": 134});
                json!({"rfilename": file, "blobId": content.blob, "size": size, "lfs": lfs})
            }
        }
    };
    let files = repository.commits.get(commit).into_iter().flatten();
    let siblings: Vec<Value> = files.map(sibling).collect();
    let gated = if repository.gated { json!("manual") } else { json!(false) };
    let body =
        json!({"id": name, "modelId": name, "sha": commit, "private": false, "gated": gated, "siblings": siblings});
    let headers = vec![("content-type", "application/json".to_owned())];
    Reply { status: 200, headers, body: body.to_string().into_bytes(), ranges: false }
}

fn refusal(status: u16, code: Option<&str>, message: &str) -> Reply {
    let mut headers = vec![("x-error-message", message.to_owned()), ("content-type", "application/json".to_owned())];
    headers.extend(code.map(|code| ("x-error-code", code.to_owned())));
    Reply { status, headers, body: json!({"error": message}).to_string().into_bytes(), ranges: false }
}
