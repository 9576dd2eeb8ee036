//! What a person pastes on other machines to join a node, or to use what it serves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use petals_swarm::{Multiaddr, SwarmHandle, is_of_this_machine, worth_handing_on};

use super::events::Join;
use super::network::model_name;
use crate::args::ServeArgs;

/// An address that nobody has (RFC 5737). Nothing is sent there: it is asked for the way to it.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The lines for a server that is ready.
pub(super) fn lines(args: &ServeArgs, swarm: &SwarmHandle) -> Join {
    let addresses = addresses(swarm);
    let mut common = vec!["--model".to_owned(), quoted(&args.model.to_string_lossy())];
    if let Some(name) = model_name(&args.network, args.model_name.as_deref()) {
        common.extend(["--model-name".to_owned(), quoted(name)]);
    }
    let invited = args.network.join.as_ref();
    match &args.network.swarm_key {
        Some(key) => common.extend(["--swarm-key".to_owned(), quoted(&key.to_string_lossy())]),
        // The key came in a line and is in no file here. It is not shown: who hands it on does so on purpose.
        None if invited.is_some_and(|invitation| invitation.swarm_key.is_some()) => {
            common.extend(["--swarm-key".to_owned(), "FILE".to_owned()]);
        }
        None => {}
    }
    let this_machine_only = !addresses.is_empty() && addresses.iter().all(is_of_this_machine);
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let (common, peers) = (common.join(" "), addresses.join(" "));
    // The next machine is to have from here what is here.
    let share = if args.share.share_weights { " --share-weights" } else { "" };
    let node = format!("petals-node serve {common}{share} --peers {peers}");
    let client =
        format!("petals-tune generate {common} --peers {peers} --prompt 'Once upon a time' --max-new-tokens 32");
    Join { addresses, node, client, this_machine_only }
}

/// Where others reach this node.
pub(super) fn addresses(swarm: &SwarmHandle) -> Vec<Multiaddr> {
    let told = worth_handing_on(&swarm.external_addresses(), primary());
    if told.is_empty() { worth_handing_on(&swarm.listen_addresses(), primary()) } else { told }
}

/// The address from which this machine talks to others: it has more than one where containers have networks of their own.
fn primary() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ELSEWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_where_a_shell_would_take_them_apart() {
        assert_eq!(quoted("./Llama-3.1-8B"), "./Llama-3.1-8B");
        assert_eq!(quoted("my model"), "'my model'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
