//! What a shell and `man` want to know of a command line: completions and pages, made from the same description as the help.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command};
pub use clap_complete::Shell;
use clap_mangen::Man;

/// Arguments of `completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Directory for the pages, one for each command; made if it is missing.
    #[arg(long, value_name = "DIR", default_value = "man1")]
    pub out: PathBuf,
}

impl CompletionsArgs {
    /// Writes the script that a shell reads. Words of a shell's script are its own, so it goes out in one piece.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, mut command: Command, to: &mut impl Write) -> io::Result<()> {
        let mut script = Vec::new();
        let name = command.get_name().to_owned();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        to.write_all(&script).and_then(|()| to.flush())
    }
}

impl ManArgs {
    /// Writes a page of section 1 for the program and one for each of its commands, and tells how many there are.
    ///
    /// # Errors
    /// If the directory or a page cannot be written: which one, and why.
    pub fn write(&self, command: Command, version: &str) -> io::Result<usize> {
        std::fs::create_dir_all(&self.out).map_err(|error| about(&self.out, error))?;
        let source = format!("{} {version}", command.get_name());
        let mut command = command.disable_help_subcommand(true);
        command.build();
        let mut count = 0;
        for page in [&command].into_iter().chain(command.get_subcommands().filter(|command| !command.is_hide_set())) {
            let man = Man::new(page.clone()).source(&source).manual("Petals in Rust");
            let path = self.out.join(man.get_filename());
            let mut text = Vec::new();
            man.render(&mut text)?;
            std::fs::write(&path, text).map_err(|error| about(&path, error))?;
            count += 1;
        }
        Ok(count)
    }
}

fn about(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ValueEnum};

    use super::*;

    fn program() -> Command {
        let serve =
            Command::new("serve").about("Hosts blocks.").arg(Arg::new("model").long("model").help("The model."));
        Command::new("program")
            .version("1.2.3")
            .about("A program.")
            .subcommand(serve.after_help("Examples:\n  program serve"))
    }

    #[test]
    fn every_shell_gets_a_script_with_the_commands_and_their_flags() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            CompletionsArgs { shell: *shell }.write(program(), &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("serve") && script.contains("model"), "{shell}: {script}");
        }
    }

    #[test]
    fn there_is_a_page_for_every_command() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("share/man1");
        assert_eq!(ManArgs { out: out.clone() }.write(program(), "1.2.3").unwrap(), 2);
        let page = std::fs::read_to_string(out.join("program-serve.1")).unwrap();
        assert!(page.contains("The model.") && page.contains("program 1.2.3") && page.contains("Examples:"), "{page}");
        assert!(out.join("program.1").is_file());
        let inside_a_file = ManArgs { out: out.join("program.1/x") }.write(program(), "1.2.3").unwrap_err();
        assert!(inside_a_file.to_string().contains("program.1/x"), "{inside_a_file}");
    }
}
