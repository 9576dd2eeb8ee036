//! What users are told to type is what the program takes.

use clap::CommandFactory;
use clap::error::ErrorKind;
use petals_client::{Invitation, parse_peers};

use super::Cli;

#[path = "../../../tests/src/command_lines.rs"]
mod command_lines;

#[test]
fn commands_of_the_documents_are_understood() {
    let peers = parse_peers(["/ip4/192.0.2.1/tcp/1/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj"]).unwrap();
    let invitation = Invitation { peers, model: None, swarm_key: None }.to_string();
    let commands = command_lines::of_documents("petals-tune", &invitation);
    assert!(commands.len() > 40, "{}", commands.len());
    let mut wrong = Vec::new();
    for command in commands {
        let Err(error) = Cli::command().try_get_matches_from(&command.words) else { continue };
        let missing = command.is_partial && error.kind() == ErrorKind::MissingRequiredArgument;
        let shown = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind());
        if !(missing || shown) {
            wrong.push(format!("{}: {}\n{error}", command.place, command.words.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
