//! A hub on loopback with models of one's own, for trying out by hand what `--model org/name` does.
//!
//! usage: cargo run --release -p petals-e2e --example hub -- [--shards] NAME=DIRECTORY...
//!
//! For example, and then in another shell with what it prints:
//!
//!     hub org/tiny=tests/goldens/llama-gqa/model
//!     HF_ENDPOINT=http://127.0.0.1:41234 HF_HOME=/tmp/hf petals-node serve --model org/tiny
//!
//! With --shards models get a file for each of their blocks. Prints its address, and when its standard input ends every request that it had.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use petals_e2e::{HubServer, write_shards};

fn main() -> anyhow::Result<()> {
    let (mut shards, mut models) = (false, Vec::new());
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some((name, directory)) => models.push((name.to_owned(), directory.to_owned())),
            None if argument == "--shards" => shards = true,
            None => bail!("{argument} is not NAME=DIRECTORY"),
        }
    }
    if models.is_empty() {
        bail!("usage: hub [--shards] NAME=DIRECTORY...");
    }
    let server = HubServer::start()?;
    for (name, directory) in &models {
        let sharded = tempfile::tempdir()?;
        let directory = Path::new(directory);
        let published = if shards {
            write_shards(directory, sharded.path())?;
            sharded.path()
        } else {
            directory
        };
        server.publish(name, "main", published).with_context(|| format!("cannot publish {}", directory.display()))?;
    }
    println!("{}", server.endpoint());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for asked in server.log() {
        let who = if asked.store { "store" } else { "hub" };
        println!("{who} {} {} {}", asked.method, asked.path, asked.range.unwrap_or_default());
    }
    Ok(())
}
