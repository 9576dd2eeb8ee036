use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use tempfile::TempDir;

use super::*;

/// A program as those of this project are.
#[derive(Debug, Parser)]
#[command(name = "program", version)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[arg(long, global = true)]
    json: bool,
    #[arg(long, global = true, default_value = "text")]
    log_format: String,
}

#[derive(Debug, Subcommand)]
enum Sub {
    Serve(ServeArgs),
    Keygen(KeygenArgs),
    Config { rest: Vec<String> },
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[arg(long)]
    model: PathBuf,
    #[arg(long, num_args = 1.., value_name = "ADDRESS")]
    peers: Vec<String>,
    #[arg(long)]
    blocks: Option<u32>,
    #[arg(long, conflicts_with = "blocks", value_parser = clap::value_parser!(u32).range(1..))]
    num_blocks: Option<u32>,
    #[arg(long)]
    join: Option<String>,
    #[arg(long, default_value_t = 8)]
    max_rows: u32,
    #[arg(long)]
    no_mdns: bool,
    #[arg(long)]
    identity: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct KeygenArgs {
    #[arg(long)]
    identity: Option<PathBuf>,
}

const PROGRAM: Program = Program { table: "node", show: "config", shown: "serve", settable };

fn settable(command: &Command, arg: &Arg) -> bool {
    command.get_name() == "serve" && !["config", "json"].contains(&arg.get_id().as_str())
}

struct Place {
    directory: TempDir,
    around: Surroundings,
}

impl Place {
    fn with(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("petals.toml");
        std::fs::write(&path, text).unwrap();
        Self { directory, around: Surroundings { peers: None, places: vec![path] } }
    }

    fn peers(mut self, value: &str) -> Self {
        self.around.peers = Some(value.into());
        self
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn parse(&self, line: &str) -> Result<Parsed<Cli>, SettingsError> {
        super::parse(PROGRAM, line.split_whitespace().map(OsString::from), &self.around)
    }

    fn serve(&self, flags: &str) -> ServeArgs {
        match self.parse(&format!("program serve {flags}")).unwrap() {
            Parsed::Run(Cli { command: Sub::Serve(args), .. }) => args,
            other => panic!("{other:?}"),
        }
    }

    fn refused(&self, flags: &str) -> String {
        self.parse(&format!("program serve {flags}")).unwrap_err().to_string()
    }

    fn shown(&self, line: &str) -> InForce {
        match self.parse(line).unwrap() {
            Parsed::Show(shown) => shown,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "peers = ['of-the-file']\nmodel = 'm'\n[node]\nmax_rows = 16\nno-mdns = true\n";
    let place = Place::with(file);
    let args = place.serve("");
    assert_eq!((args.peers, args.max_rows, args.no_mdns), (vec!["of-the-file".to_owned()], 16, true));
    assert_eq!(args.model, place.path().join("m"), "a path begins where the file is");
    let model = |place: &Place| place.serve("").model;
    let place = Place::with("model = 'org/name@main'");
    assert_eq!(model(&place), Path::new("org/name@main"), "what is not there is a name");
    std::fs::create_dir_all(place.path().join("org/name@main")).unwrap();
    assert_eq!(model(&place), place.path().join("org/name@main"));
    let place = place.peers("one, two\nthree");
    assert_eq!(place.serve("").peers, ["one", "two", "three"]);
    let args = place.serve("--peers flag --max-rows 9 --model elsewhere");
    assert_eq!((args.peers, args.max_rows, args.model), (vec!["flag".to_owned()], 9, "elsewhere".into()));
    assert_eq!(Place::with(file).peers(" ").serve("").peers, ["of-the-file"], "an empty variable says nothing");
}

#[test]
fn without_a_file_everything_is_as_clap_has_it() {
    let place = Place { directory: tempfile::tempdir().unwrap(), around: Surroundings::default() };
    assert!(place.refused("").contains("--model"));
    assert_eq!(place.serve("--model m").max_rows, 8);
    let help = place.parse("program serve --help").unwrap_err();
    assert!(matches!(help, SettingsError::CommandLine(error) if error.kind() == clap::error::ErrorKind::DisplayHelp));
}

#[test]
fn a_programs_own_table_counts_more_and_that_of_the_other_one_not_at_all() {
    let place = Place::with("model = 'both'\n[node]\nmodel = 'own'\n[tune]\nanything = 3\n");
    assert_eq!(place.serve("").model, place.path().join("own"));
}

#[test]
fn mistakes_are_named_with_their_line() {
    for (text, line, words) in [
        ("\npers = 'a'", 2, "`pers`"),
        ("model = 'm'\nmax_rows = 3", 2, "[node]"),
        ("model = 'm'\n[node]\nspeed = 3", 3, "`speed`"),
        ("model = 'm'\n[node]\nno_mdns = 1", 3, "`no_mdns` must be true or false, not a number"),
        ("model = true", 1, "`model` must be a text or a number, not true or false"),
        ("model = 'm'\npeers = [['a']]", 2, "`peers`"),
        ("model = ['m']", 1, "not a list"),
        ("model = 'm'\n[other]\na = 1", 2, "`other`"),
        ("[node]\nmax-rows = 1\nmax_rows = 2", 3, "the same key"),
        ("model = 'm'\n[node]\nlog_format = 'json'", 3, "`log_format`"),
        ("model = 'm'\n[node]\n\nmax_rows = 'many'", 4, "many"),
        ("model = 'm'\n[node]\nnum_blocks = 0", 3, "0"),
        ("model = 'm'\n[node]\nblocks = 1\nnum_blocks = 2", 4, "exclude"),
        ("model = 'm'\npeers = [", 2, ""),
    ] {
        let refused = Place::with(text).refused("");
        assert!(refused.contains(&format!("petals.toml, line {line}: ")), "{text:?}: {refused}");
        assert!(refused.contains(words) && !refused.contains('\n'), "{text:?}: {refused}");
    }
    let refused = Place::with("").refused("--config /nonexistent/petals.toml");
    assert!(refused.contains("/nonexistent/petals.toml"), "{refused}");
    assert!(Place::with("pers = 1").refused("--config=/dev/null").contains("--model"), "another file is read");
}

#[test]
fn a_flag_wins_over_what_would_exclude_it() {
    let place = Place::with("model = 'm'\n[node]\nblocks = 4");
    let args = place.serve("--num-blocks 2");
    assert_eq!((args.blocks, args.num_blocks), (None, Some(2)));
    assert_eq!(place.serve("").blocks, Some(4));
    assert!(place.refused("--num-blocks 2 --blocks 3").contains("cannot be used with"));
}

#[test]
fn a_broken_file_stops_only_commands_that_read_it() {
    let place = Place::with("nonsense");
    assert!(place.refused("--model m").contains("line 1"));
    assert!(place.parse("program keygen").is_ok());
    let Ok(Parsed::Run(Cli { command: Sub::Keygen(args), .. })) =
        Place::with("[node]\nidentity = 'k'").parse("program keygen")
    else {
        panic!("another command")
    };
    assert_eq!(args.identity, None, "the key is of another command");
}

#[test]
fn what_is_in_force_is_shown_with_where_it_comes_from() {
    let place = Place::with("model = 'm'\n[node]\nmax_rows = 16\nno_mdns = true").peers("a b");
    let shown = place.shown("program config serve --num-blocks 3");
    let of = |key: &str| shown.settings.iter().find(|setting| setting.key == key).cloned();
    let source = |key: &str| of(key).map(|setting| setting.source);
    let file = place.path().join("petals.toml");
    assert_eq!(shown.file.file.as_ref(), Some(&file));
    assert_eq!(source("num_blocks"), Some(Source::Flag));
    assert_eq!(source("peers"), Some(Source::Environment { variable: PEERS_VARIABLE.to_owned() }));
    assert_eq!(source("max_rows"), Some(Source::File { file, line: 3 }));
    assert_eq!(of("no_mdns").map(|setting| setting.values), Some(vec!["true".to_owned()]));
    assert_eq!((of("blocks"), of("identity")), (None, None));
    assert_eq!(of("peers").map(|setting| setting.values), Some(vec!["a".to_owned(), "b".to_owned()]));
    assert!(!shown.json && place.shown("program config --json").json);
    let secret = Place::with("join = 'petals1:secretsecret'");
    assert_eq!(secret.serve("--model m").join.as_deref(), Some("petals1:secretsecret"));
    let shown = secret.shown("program config");
    let shown: Vec<String> = shown.settings.iter().map(ToString::to_string).collect();
    assert!(
        shown.iter().any(|line| line.starts_with("join = petals1:…")) && !shown.concat().contains("secret"),
        "{shown:?}"
    );
    let shown = place.shown("program --log-format keygen --json config serve");
    assert!(shown.json && shown.file.command == "serve", "values of flags are no commands");
    let bare = Place::with("").shown("program config");
    let rows = bare.settings.iter().find(|setting| setting.key == "max_rows").map(ToString::to_string);
    assert_eq!(rows.as_deref(), Some("max_rows = 8    (default)"));
    assert!(place.parse("program config nothing").unwrap_err().to_string().contains("serve"));
}
