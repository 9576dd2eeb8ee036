//! Tells the program which commit it is built from.

#[path = "../crates/settings/build/commit.rs"]
mod commit;

fn main() {
    commit::tell(&["client", "hub", "model", "protocol", "settings", "swarm"]);
}
