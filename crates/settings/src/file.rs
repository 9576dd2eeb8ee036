//! The file: which keys it has, on which lines, and what flags they stand for.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::builder::ArgAction;
use clap::{Arg, Command};
use toml::de::{DeTable, DeValue};

use crate::{NAMES, Program, SHARED, TABLES};

/// A file of settings has a few lines; anything much longer is another file.
const MAX_LEN: u64 = 256 * 1024;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the settings {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{path}, line {line}: {what}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What is wrong there.
        what: String,
    },
}

/// A file of settings, as far as one program reads it.
#[derive(Debug)]
pub(crate) struct SettingsFile {
    pub(crate) path: PathBuf,
    settings: Vec<Setting>,
}

/// What the file says a flag should be.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// The flag, without dashes in front.
    pub(crate) flag: String,
    /// As it is written in the file.
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) values: Vec<String>,
    /// Whether it stands at the top of the file, for both programs.
    shared: bool,
}

impl SettingsFile {
    /// Reads a file. `command` has the flags that its keys stand for.
    pub(crate) fn read(path: &Path, program: &Program, command: &Command) -> Result<Self, FileError> {
        let unreadable = |source| FileError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_LEN + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_LEN {
            return Err(unreadable(io::Error::other(format!("it has more than {MAX_LEN} bytes"))));
        }
        Reader { path, text: &text, program, command }.read()
    }

    /// What the file says of a flag: the program's own table counts more than the top of the file.
    pub(crate) fn get(&self, flag: &str) -> Option<&Setting> {
        let of_flag = || self.settings.iter().filter(|setting| setting.flag == flag);
        of_flag().find(|setting| !setting.shared).or_else(|| of_flag().next())
    }

    /// An error at a setting.
    pub(crate) fn wrong(&self, setting: &Setting, what: String) -> FileError {
        FileError::Wrong { path: self.path.clone(), line: setting.line, what }
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    program: &'a Program,
    command: &'a Command,
}

impl Reader<'_> {
    fn read(&self) -> Result<SettingsFile, FileError> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.wrong(at, error.message().replace('\n', ", "))
        })?;
        let mut settings = Vec::new();
        for (key, value) in table.get_ref() {
            let name = key.get_ref().as_ref();
            match value.get_ref() {
                DeValue::Table(of_program) if TABLES.contains(&name) => {
                    if name == self.program.table {
                        for (key, value) in of_program {
                            let name = key.get_ref().as_ref();
                            let setting = self.setting(name, key.span().start, value.get_ref(), false)?;
                            self.add(&mut settings, setting)?;
                        }
                    }
                }
                value => {
                    let setting = self.setting(name, key.span().start, value, true)?;
                    self.add(&mut settings, setting)?;
                }
            }
        }
        Ok(SettingsFile { path: self.path.to_owned(), settings })
    }

    fn add(&self, settings: &mut Vec<Setting>, setting: Setting) -> Result<(), FileError> {
        let same = |known: &&Setting| (known.shared, &known.flag) == (setting.shared, &setting.flag);
        if let Some(first) = settings.iter().find(same) {
            let what = format!("`{}` is the same key as `{}` in line {}", setting.key, first.key, first.line);
            return Err(FileError::Wrong { path: self.path.to_owned(), line: setting.line, what });
        }
        settings.push(setting);
        Ok(())
    }

    fn setting(&self, key: &str, at: usize, value: &DeValue, shared: bool) -> Result<Setting, FileError> {
        let flag = key.replace('_', "-");
        let arg = self.arg(&flag).filter(|_| !shared || SHARED.contains(&flag.as_str()));
        let Some(arg) = arg else { return Err(self.unknown(key, &flag, at, shared)) };
        let values = self.values(key, at, value, arg)?;
        Ok(Setting { flag, key: key.to_owned(), line: self.line(at), values, shared })
    }

    /// The flag of a name, of whichever command has it.
    fn arg(&self, flag: &str) -> Option<&Arg> {
        self.args().find(|arg| arg.get_long() == Some(flag))
    }

    fn args(&self) -> impl Iterator<Item = &Arg> {
        let of = move |sub| Command::get_arguments(sub).filter(move |arg| self.program.can_set(sub, arg));
        self.command.get_subcommands().flat_map(of)
    }

    fn unknown(&self, key: &str, flag: &str, at: usize, shared: bool) -> FileError {
        let table = self.program.table;
        let what = if shared && self.arg(flag).is_some() {
            format!("`{key}` belongs into the table [{table}]")
        } else {
            let mut known: Vec<String> = match shared {
                true => SHARED.iter().map(|flag| flag.replace('-', "_")).collect(),
                false => self.args().filter_map(Arg::get_long).map(|flag| flag.replace('-', "_")).collect(),
            };
            known.sort();
            known.dedup();
            let tables = if shared { ", and the tables [node] and [tune]" } else { "" };
            format!("unknown key `{key}`: there are {}{tables}", known.join(", "))
        };
        self.wrong(at, what)
    }

    /// The values of a flag, as they would be typed.
    fn values(&self, key: &str, at: usize, value: &DeValue, arg: &Arg) -> Result<Vec<String>, FileError> {
        let refuse = |wanted: &str, value: &DeValue| {
            self.wrong(at, format!("`{key}` must be {wanted}, not {}", described(value)))
        };
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            return match value {
                DeValue::Boolean(set) => Ok(vec![set.to_string()]),
                other => Err(refuse("true or false", other)),
            };
        }
        let scalar = |value: &DeValue, wanted: &str| match value {
            DeValue::String(text) => Ok(self.placed(text, arg)),
            DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
            DeValue::Float(number) => Ok(number.as_str().to_owned()),
            other => Err(refuse(wanted, other)),
        };
        let many = matches!(arg.get_action(), ArgAction::Append);
        match value {
            DeValue::Array(values) if many => {
                values.iter().map(|value| scalar(value.get_ref(), "a list of texts")).collect()
            }
            value if many => Ok(vec![scalar(value, "a text or a list of texts")?]),
            value => Ok(vec![scalar(value, "a text or a number")?]),
        }
    }

    /// A path in the file begins where the file is, wherever the program is started. What may be a name and is not there is a name.
    fn placed(&self, text: &str, arg: &Arg) -> String {
        let is_path = arg.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>();
        let may_be_name = arg.get_long().is_some_and(|flag| NAMES.contains(&flag))
            && text.contains('/')
            && !text.starts_with(['.', '/']);
        let is_there = || self.path.parent().is_some_and(|folder| folder.join(text).exists());
        if may_be_name && !is_there() {
            return text.to_owned();
        }
        match self.path.parent().filter(|_| is_path && !text.is_empty()) {
            // Only a path that is not UTF-8 itself cannot be written as a text.
            Some(folder) => folder.join(text).into_os_string().into_string().unwrap_or_else(|_| text.to_owned()),
            None => text.to_owned(),
        }
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
    }

    fn wrong(&self, at: usize, what: String) -> FileError {
        FileError::Wrong { path: self.path.to_owned(), line: self.line(at), what }
    }
}

fn described(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
