//! Tells a program at build time which commit it is built from. The build scripts of both programs include this file.
//!
//! The answer goes into the variable `PETALS_COMMIT` of the compiler. If the variable is set from outside (a package is built from an
//! archive without git), it stays as it is. Without git, or in an archive that lies in a repository of somebody else, nothing is said.
//!
//! The script runs again if a commit is made and if a source is changed that the program is compiled from, and then only: a build in
//! which nothing happened does nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the commit is told in.
const VARIABLE: &str = "PETALS_COMMIT";
/// Digits of a commit, as many as stay unique for long.
const DIGITS: &str = "--short=12";

/// Sets the variable, for a package in a folder right below the root of the workspace that is made of these libraries in `crates`.
pub(crate) fn tell(libraries: &[&str]) {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../crates/settings/build/commit.rs");
    println!("cargo::rerun-if-changed=src");
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let Some(root) = package.parent() else { return };
    // Not the tests of libraries, which no program is compiled from.
    let sources: Vec<String> = libraries.iter().map(|library| format!("crates/{library}/src")).collect();
    for source in &sources {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    if let Some(given) = std::env::var(VARIABLE).ok().filter(|given| !given.is_empty()) {
        println!("cargo::rustc-env={VARIABLE}={given}");
        return;
    }
    if let Some(commit) = commit(root, &package, &sources) {
        println!("cargo::rustc-env={VARIABLE}={commit}");
    }
}

/// The commit that is checked out, and whether what the package is made of was changed since.
fn commit(root: &Path, package: &Path, sources: &[String]) -> Option<String> {
    let top = PathBuf::from(git(root, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    // A line is added to the log of HEAD by everything that moves it. Where no log is kept, HEAD and what it names change.
    let mut watched = vec!["logs/HEAD".to_owned(), "HEAD".to_owned()];
    watched.extend(git(root, &["symbolic-ref", "-q", "HEAD"]));
    for name in watched {
        // A path that does not exist would have the script run in every build.
        let path = root.join(git(root, &["rev-parse", "--git-path", &name])?);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let commit = git(root, &["rev-parse", DIGITS, "HEAD"])?;
    let package = package.to_str()?;
    let mut status = vec!["--no-optional-locks", "status", "--porcelain", "--", "Cargo.toml", "Cargo.lock", package];
    status.extend(sources.iter().map(String::as_str));
    let changed = !git(root, &status)?.is_empty();
    Some(if changed { format!("{commit} with changes") } else { commit })
}

/// What git answers, if it does.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = output.status.success().then(|| String::from_utf8(output.stdout).ok()).flatten()?;
    Some(text.trim().to_owned())
}
