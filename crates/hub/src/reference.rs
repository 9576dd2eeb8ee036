//! What a person writes to name a model on the hub.

use std::fmt;

/// The branch that is meant where no revision is given.
const MAIN: &str = "main";
/// Longest name of a repository, as the hub has it, and longest revision and path, as we do.
const LONGEST: usize = 96;
const LONGEST_PART: usize = 256;

/// A model on the hub: its repository, a revision, and of repositories with GGUFs the file.
///
/// Written `org/name`, `org/name@revision`, `org/name/FILE.gguf` or `org/name/FILE.gguf@revision`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelName {
    repository: String,
    revision: String,
    file: Option<String>,
}

impl ModelName {
    /// Reads a name. `None` if the text is none: then it can only be a path.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, is_revision(revision).then_some(revision)?),
            None => (text, MAIN),
        };
        let mut parts = name.splitn(3, '/');
        let (owner, model) = (parts.next()?, parts.next()?);
        let file = match parts.next() {
            Some(file) if is_gguf(file) && is_file_name(file) => Some(file.to_owned()),
            Some(_) => return None,
            None if is_gguf(model) => return None,
            None => None,
        };
        let repository = format!("{owner}/{model}");
        let fits = [owner, model].into_iter().all(is_part) && repository.len() <= LONGEST;
        fits.then(|| Self { repository, revision: revision.to_owned(), file })
    }

    /// `org/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// A branch, a tag or a commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The GGUF in the repository, if one was named.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The folder of the repository in the hub's cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.repository.replace('/', "--"))
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if self.revision != MAIN { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

/// Whether the hub has organisations and models of that name: letters, digits, `-`, `_` and `.`, the last two not at an end, and neither `--` nor `..`,
/// which its cache could not tell from other names.
fn is_part(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: char| c == '-' || c == '.';
    !part.is_empty()
        && part.chars().all(allowed)
        && !part.starts_with(ends)
        && !part.ends_with(ends)
        && !part.contains("--")
        && !part.contains("..")
}

fn is_gguf(file: &str) -> bool {
    file.to_ascii_lowercase().ends_with(".gguf")
}

/// Whether a commit: what a branch or tag stands for.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether git has revisions of that name, and a path made of it stays below its folder.
fn is_revision(revision: &str) -> bool {
    let allowed = |c: char| c.is_ascii_graphic() && !"\\:?*[~^@\"'<>|".contains(c);
    revision.chars().all(allowed) && is_file_name(revision)
}

/// Whether the name of a file in a repository stays in its snapshot.
pub(crate) fn is_file_name(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    name.len() <= LONGEST_PART
        && !name.contains(['\\', '\0'])
        && !name.chars().any(char::is_control)
        && name.split('/').all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_repository_a_revision_and_perhaps_a_file() {
        let name = |text: &str| ModelName::parse(text).unwrap();
        let plain = name("meta-llama/Llama-3.1-8B");
        assert_eq!((plain.repository(), plain.revision(), plain.file()), ("meta-llama/Llama-3.1-8B", "main", None));
        assert_eq!(plain.folder(), "models--meta-llama--Llama-3.1-8B");
        let pinned = name("org/name@refs/pr/7");
        assert_eq!((pinned.revision(), pinned.to_string().as_str()), ("refs/pr/7", "org/name@refs/pr/7"));
        let gguf = name("org/name-GGUF/q8/name-Q8_0.gguf@v1");
        assert_eq!((gguf.repository(), gguf.file()), ("org/name-GGUF", Some("q8/name-Q8_0.gguf")));
        assert_eq!(gguf.to_string(), "org/name-GGUF/q8/name-Q8_0.gguf@v1");
    }

    #[test]
    fn paths_are_no_names() {
        for path in [
            "",
            "model",
            "./model",
            "../model",
            "/models/x",
            "a/b/c",
            "~/models",
            "org/",
            "/name",
            "org/na me",
            "org/..",
            "-o/name",
            "org/name.",
            "a--b/c",
            "org/name@",
            "org/name@../x",
            "org/name@a/../b",
            "org/name@/x",
            "models/x.gguf",
            "org/name@a@b",
            "org/name/../x.gguf",
            "org\\name",
            "org/name@v1?x=1",
            "org/n\u{e4}me",
        ] {
            assert_eq!(ModelName::parse(path), None, "{path}");
        }
    }

    #[test]
    fn files_stay_in_their_snapshot() {
        assert!(is_file_name("config.json") && is_file_name("additional_chat_templates/tool_use.jinja"));
        for name in ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".", "a\\..\\b", "a\n", "a/"] {
            assert!(!is_file_name(name), "{name:?}");
        }
        assert!(is_commit(&"a1".repeat(20)) && !is_commit("main") && !is_commit(&"A1".repeat(20)));
    }
}
