//! Puts the environment and the file under a command line.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::builder::ArgAction;
use clap::error::ContextKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::file::{Setting, SettingsFile};
use crate::in_force::{FileInForce, InForce, SettingInForce, Source};
use crate::{PEERS_VARIABLE, Parsed, Program, SettingsError, Surroundings};

/// The flag that the variable stands for.
const PEERS: &str = "peers";
/// Flags whose values may hold a key.
const SECRETS: [&str; 1] = ["join"];
/// The flag that names the file.
const CONFIG: &str = "--config";

pub(crate) fn parse<C: CommandFactory + FromArgMatches>(
    program: Program,
    arguments: Vec<OsString>,
    around: &Surroundings,
) -> Result<Parsed<C>, SettingsError> {
    let mut command = C::command();
    command.build();
    let named = named_command(&command, arguments.get(1..).unwrap_or_default());
    let Some((at, name)) = named.filter(|_| !wants_help(&arguments)) else {
        return Ok(Parsed::Run(run(&mut C::command().try_get_matches_from(arguments)?)?));
    };
    if name == program.show {
        let settings = shown(&program, &command, arguments, at)?;
        return show::<C>(&program, settings, around).map(Parsed::Show);
    }
    let under = Under::find(&program, &command, &name, &arguments, around)?;
    let mut matches = under.matches(C::command(), &name, &arguments)?;
    Ok(Parsed::Run(run(&mut matches)?))
}

fn run<C: FromArgMatches + CommandFactory>(matches: &mut ArgMatches) -> Result<C, clap::Error> {
    C::from_arg_matches_mut(matches).map_err(|error| error.format(&mut C::command()))
}

/// The first argument that is a command, and where it is. Values of flags in front of it are not taken for one.
fn named_command(command: &Command, arguments: &[OsString]) -> Option<(usize, String)> {
    let mut skip = false;
    for (at, argument) in arguments.iter().enumerate() {
        if std::mem::take(&mut skip) {
            continue;
        }
        match argument.to_str() {
            Some(text) if text.starts_with('-') => {
                let named = |arg: &&Arg| arg.get_long().is_some_and(|long| text.strip_prefix("--") == Some(long));
                let flag = command.get_arguments().find(named);
                skip = flag.is_some_and(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append));
            }
            Some(text) => return command.find_subcommand(text).map(|found| (at + 1, found.get_name().to_owned())),
            None => return None,
        }
    }
    None
}

/// Whoever asks for help gets it, whatever is wrong with the file.
fn wants_help(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| ["-h", "--help", "-V", "--version"].iter().any(|help| argument == help))
}

/// The command line that is asked about: what follows `config`, with the flags in front of it.
fn shown(
    program: &Program,
    command: &Command,
    arguments: Vec<OsString>,
    at: usize,
) -> Result<(String, Vec<OsString>), SettingsError> {
    let rest = arguments.get(at + 1..).unwrap_or_default();
    let asked = named_command(command, rest);
    let mut line: Vec<OsString> = arguments.get(..at).unwrap_or_default().to_vec();
    let name = match asked {
        Some((_, name)) if name == program.show => return Err(usage(program, command)),
        Some((_, name)) => name,
        None if rest.first().is_none_or(|first| first.as_encoded_bytes().starts_with(b"-")) => {
            line.push(program.shown.into());
            program.shown.to_owned()
        }
        None => return Err(usage(program, command)),
    };
    line.extend(rest.iter().cloned());
    Ok((name, line))
}

fn usage(program: &Program, command: &Command) -> SettingsError {
    let settable = |sub: &&Command| sub.get_arguments().any(|arg| program.can_set(sub, arg));
    let names: Vec<_> = command.get_subcommands().filter(settable).map(Command::get_name).collect();
    let text = format!("`{}` shows the settings of one of these commands: {}\n", program.show, names.join(", "));
    clap::Error::raw(clap::error::ErrorKind::InvalidValue, text).into()
}

fn show<C: CommandFactory>(
    program: &Program,
    (name, line): (String, Vec<OsString>),
    around: &Surroundings,
) -> Result<InForce, SettingsError> {
    // What is not given is not missing here.
    let optional = || {
        C::command().mut_subcommand(&name, |mut sub| {
            let ids: Vec<_> = sub.get_arguments().map(|arg| arg.get_id().clone()).collect();
            for id in ids {
                sub = sub.mut_arg(id, |arg| arg.required(false));
            }
            sub
        })
    };
    let mut command = optional();
    command.build();
    let under = Under::find(program, &command, &name, &line, around)?;
    let mut matches = under.matches(optional(), &name, &line)?;
    let json = matches.try_get_one::<bool>("json").ok().flatten().copied();
    let Some((_, of_command)) = matches.remove_subcommand() else { return Err(usage(program, &command)) };
    let json = json.or_else(|| of_command.try_get_one::<bool>("json").ok().flatten().copied()).unwrap_or(false);
    let Some(sub) = command.find_subcommand(&name) else { return Err(usage(program, &command)) };
    let args = sub.get_arguments().filter(|arg| program.can_set(sub, arg));
    let settings = args.filter_map(|arg| under.in_force(arg, &of_command)).collect();
    let file = under.file.as_ref().map(|file| file.path.clone());
    Ok(InForce { file: FileInForce { command: name, file, places: around.places.clone() }, settings, json })
}

/// What lies under a command line.
struct Under {
    file: Option<SettingsFile>,
    values: Vec<Value>,
}

/// A value for a flag that nobody gives.
struct Value {
    flag: String,
    values: Vec<String>,
    origin: Origin,
}

enum Origin {
    Environment,
    File(Setting),
}

impl Under {
    fn find(
        program: &Program,
        command: &Command,
        name: &str,
        arguments: &[OsString],
        around: &Surroundings,
    ) -> Result<Self, SettingsError> {
        let nothing = Self { file: None, values: Vec::new() };
        let Some(sub) = command.find_subcommand(name) else { return Ok(nothing) };
        let args: Vec<&Arg> = sub.get_arguments().filter(|arg| program.can_set(sub, arg)).collect();
        if args.is_empty() {
            return Ok(nothing);
        }
        let given = given_file(arguments);
        let path = given.or_else(|| around.places.iter().find(|place| place.exists()).cloned());
        let file = path.map(|path| SettingsFile::read(&path, program, command)).transpose()?;
        let mut values = Vec::new();
        for flag in args.iter().filter_map(|arg| arg.get_long()) {
            let peers = around.peers.as_deref().filter(|_| flag == PEERS).map(peers).transpose()?;
            if let Some(values_here) = peers.filter(|peers| !peers.is_empty()) {
                values.push(Value { flag: flag.to_owned(), values: values_here, origin: Origin::Environment });
            } else if let Some(setting) = file.as_ref().and_then(|file| file.get(flag)) {
                let (flag, values_here) = (flag.to_owned(), setting.values.clone());
                values.push(Value { flag, values: values_here, origin: Origin::File(setting.clone()) });
            }
        }
        let under = Self { file, values };
        under.refuse_conflicts(sub)?;
        Ok(under)
    }

    /// Two keys of the file that exclude each other are a mistake there.
    fn refuse_conflicts(&self, sub: &Command) -> Result<(), SettingsError> {
        let Some(file) = &self.file else { return Ok(()) };
        let settings: Vec<&Setting> = self.values.iter().filter_map(Value::setting).collect();
        for (number, first) in settings.iter().enumerate() {
            let both = settings[number + 1..].iter().find(|second| exclude(sub, &first.flag, &second.flag));
            if let Some(&second) = both {
                let (above, below) = if first.line < second.line { (*first, second) } else { (second, *first) };
                let what = format!("`{}` and `{}` in line {} exclude each other", below.key, above.key, above.line);
                return Err(file.wrong(below, what).into());
            }
        }
        Ok(())
    }

    /// Parses the command line over what lies under it.
    fn matches(&self, command: Command, name: &str, arguments: &[OsString]) -> Result<ArgMatches, SettingsError> {
        let matches = self.try_matches(command.clone(), name, arguments, &HashSet::new())?;
        let Some(of_command) = matches.subcommand_matches(name) else { return Ok(matches) };
        // A flag wins over what would exclude it.
        let mut built = command.clone();
        built.build();
        let Some(sub) = built.find_subcommand(name) else { return Ok(matches) };
        let is_given = |arg: &&Arg| of_command.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let given: Vec<&str> = sub.get_arguments().filter(is_given).filter_map(Arg::get_long).collect();
        let beaten = |value: &&Value| given.iter().any(|flag| exclude(sub, flag, &value.flag));
        let without: HashSet<&str> = self.values.iter().filter(beaten).map(|value| value.flag.as_str()).collect();
        if without.is_empty() { Ok(matches) } else { self.try_matches(command, name, arguments, &without) }
    }

    fn try_matches(
        &self,
        command: Command,
        name: &str,
        arguments: &[OsString],
        without: &HashSet<&str>,
    ) -> Result<ArgMatches, SettingsError> {
        let command = command.mut_subcommand(name, |mut sub| {
            for value in self.values.iter().filter(|value| !without.contains(value.flag.as_str())) {
                let with_long = |arg: &&Arg| arg.get_long() == Some(value.flag.as_str());
                let Some(id) = sub.get_arguments().find(with_long).map(|arg| arg.get_id().clone()) else { continue };
                sub = sub.mut_arg(id, |arg| arg.required(false).default_values(value.values.clone()));
            }
            sub
        });
        command.try_get_matches_from(arguments).map_err(|error| self.located(error))
    }

    /// Where the value is that clap refuses, if nobody typed it.
    fn located(&self, error: clap::Error) -> SettingsError {
        let arg = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
        let flag = arg.split([' ', '=']).next().unwrap_or_default().trim_start_matches('-');
        let value = error.get(ContextKind::InvalidValue).map(ToString::to_string);
        let ours = self
            .values
            .iter()
            .find(|under| under.flag == flag && value.as_ref().is_some_and(|value| under.values.contains(value)));
        let Some(ours) = ours else { return error.into() };
        let rendered = error.to_string();
        let what = rendered.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
        let what = what.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        match (&ours.origin, &self.file) {
            (Origin::File(setting), Some(file)) => file.wrong(setting, what).into(),
            _ => SettingsError::Environment(what),
        }
    }

    /// What is in force of a flag, if it has a value.
    fn in_force(&self, arg: &Arg, matches: &ArgMatches) -> Option<SettingInForce> {
        let id = arg.get_id().as_str();
        let values: Vec<String> =
            matches.try_get_raw(id).ok()??.map(|value| value.to_string_lossy().into_owned()).collect();
        let under = self.values.iter().find(|value| arg.get_long() == Some(value.flag.as_str()));
        let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
        let source = match (matches.value_source(id)?, under) {
            (ValueSource::CommandLine, _) => Source::Flag,
            (_, Some(Value { origin: Origin::Environment, .. })) => {
                Source::Environment { variable: PEERS_VARIABLE.to_owned() }
            }
            (_, Some(value @ Value { origin: Origin::File(setting), .. })) if values == value.values => {
                Source::File { file: self.file.as_ref()?.path.clone(), line: setting.line }
            }
            // That a switch is off says nothing.
            _ if is_flag => return None,
            _ => Source::Default,
        };
        // Whoever shows this to others does not mean to show a key.
        let values = if SECRETS.contains(&arg.get_long()?) {
            values.iter().map(|value| hidden(value)).collect()
        } else {
            values
        };
        // A switch that is given has no value of its own.
        let values = if is_flag { vec![matches.get_flag(id).to_string()] } else { values };
        Some(SettingInForce { key: arg.get_long()?.replace('-', "_"), values, source })
    }
}

impl Value {
    fn setting(&self) -> Option<&Setting> {
        match &self.origin {
            Origin::File(setting) => Some(setting),
            Origin::Environment => None,
        }
    }
}

/// The beginning of a text, which shows what it is and not what is in it.
fn hidden(value: &str) -> String {
    format!("{}… ({} characters)", value.chars().take(8).collect::<String>(), value.chars().count())
}

/// Whether two flags of a command exclude each other.
fn exclude(sub: &Command, first: &str, second: &str) -> bool {
    let excludes = |one: &str, other: &str| {
        let arg = sub.get_arguments().find(|arg| arg.get_long() == Some(one));
        arg.is_some_and(|arg| sub.get_arg_conflicts_with(arg).iter().any(|found| found.get_long() == Some(other)))
    };
    excludes(first, second) || excludes(second, first)
}

/// The file that the command line names.
fn given_file(arguments: &[OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter().map(OsString::as_os_str).take_while(|argument| *argument != "--");
    while let Some(argument) = arguments.next() {
        if argument == CONFIG {
            return arguments.next().map(PathBuf::from);
        }
        let inline = argument.to_str().and_then(|text| text.strip_prefix(CONFIG)?.strip_prefix('='));
        if let Some(path) = inline {
            return Some(Path::new(path).to_owned());
        }
    }
    None
}

/// The addresses in the variable.
fn peers(value: &OsStr) -> Result<Vec<String>, SettingsError> {
    let text = value.to_str().ok_or_else(|| SettingsError::Environment("it is not UTF-8".to_owned()))?;
    let parts = text.split(|c: char| c == ',' || c.is_whitespace());
    Ok(parts.filter(|part| !part.is_empty()).map(str::to_owned).collect())
}
