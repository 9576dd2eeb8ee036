//! Tells the program which commit it is built from.

#[path = "../crates/settings/build/commit.rs"]
mod commit;

fn main() {
    commit::tell(&["hub", "model", "protocol", "settings", "swarm"]);
}
