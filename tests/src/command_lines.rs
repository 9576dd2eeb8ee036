//! Command lines in documents. The tests of both programs include this file, to see that their own parser takes what users are told to type.

use std::path::{Path, PathBuf};

/// Stands for every address of a member.
const MEMBER: &str = "/ip4/192.0.2.1/tcp/31330/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
/// Stands for every peer id that is cut short.
const PEER: &str = "12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
/// What ends a command in a line of a shell.
const BEHIND: [&str; 8] = ["|", ">", ">>", "<", "2>", "&&", ";", "&"];

/// A command of a document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// The file and the line.
    pub(crate) place: String,
    /// The program and its arguments, placeholders filled in.
    pub(crate) words: Vec<String>,
    /// Whether `…` stands for more of it.
    pub(crate) is_partial: bool,
}

/// The commands of `program` in the documents of the project, with `invitation` in the place of those in them.
pub(crate) fn of_documents(program: &str, invitation: &str) -> Vec<CommandLine> {
    let crate_root = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap();
    let root = crate_root.parent().unwrap().to_owned();
    let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    for folder in ["docs", "docs/tasks"] {
        let files = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    pages.iter().flat_map(|page| of_text(page, &std::fs::read_to_string(page).unwrap(), program, invitation)).collect()
}

/// The commands in the code blocks of a page.
fn of_text(page: &Path, text: &str, program: &str, invitation: &str) -> Vec<CommandLine> {
    let (mut found, mut fenced, mut lines) = (Vec::new(), false, text.lines().enumerate());
    while let Some((number, line)) = lines.next() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let line = line.strip_prefix("    ").or(fenced.then_some(line)).unwrap_or_default();
        let line = line.strip_prefix("$ ").unwrap_or(line);
        if line.split_whitespace().find(|word| !word.contains('=')) != Some(program) {
            continue;
        }
        let mut whole = line.to_owned();
        while let Some(begun) = whole.strip_suffix('\\') {
            let (_, next) = lines.next().unwrap_or_default();
            whole = format!("{begun} {}", next.trim());
        }
        let words = words(&whole);
        let words =
            words.into_iter().skip_while(|word| word != program).take_while(|word| !BEHIND.contains(&word.as_str()));
        let (mut is_partial, mut filled) = (false, Vec::new());
        for word in words {
            match word.as_str() {
                "…" | "..." => {
                    is_partial = true;
                    // What is left out may be the value of a flag that has just been named.
                    if filled.last().is_some_and(|last| last == "--peers") {
                        filled.push(MEMBER.to_owned());
                    }
                }
                _ => filled.push(fill(&word, invitation)),
            }
        }
        // A drawing may begin with the name of a program too.
        if !filled.get(1).is_none_or(|word| word.starts_with(|c: char| c.is_ascii_lowercase() || c == '-')) {
            continue;
        }
        found.push(CommandLine { place: format!("{}:{}", page.display(), number + 1), words: filled, is_partial });
    }
    found
}

fn fill(word: &str, invitation: &str) -> String {
    if word == "$PEERS" || (word.starts_with('/') && word.contains("/p2p/")) {
        return MEMBER.to_owned();
    }
    match word.split_once("12D3Koo") {
        Some((before, _)) => format!("{before}{PEER}"),
        None if word.starts_with("petals1:") => invitation.to_owned(),
        None => word.to_owned(),
    }
}

/// The words of a line, as a shell takes it apart: quotes, and comments at the end.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn commands_are_taken_out_of_pages() {
    let page = "A line: petals-node no.\n```sh\nA=1 petals-node serve --name 'a b' \\\n    --peers $PEERS …   # comment\nother\n```\n    petals-node x | y\n";
    let found = of_text(Path::new("p.md"), page, "petals-node", "petals1:x");
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0].words, ["petals-node", "serve", "--name", "a b", "--peers", MEMBER]);
    assert!(found[0].is_partial && found[0].place == "p.md:3");
    assert_eq!((found[1].words.join(" ").as_str(), found[1].is_partial), ("petals-node x", false));
}
