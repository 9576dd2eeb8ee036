//! From arguments to a running libp2p node.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use petals_protocol::ModelId;
use petals_swarm::{
    Identity, Incoming, MemberFile, PeerId, SwarmConfig, SwarmHandle, SwarmKey, SwarmNode, parse_addresses, parse_peers,
};

use super::events::NodeEvent;
use crate::args::NetworkArgs;
use crate::error::NodeError;

/// How long the start waits for a first peer before it goes on alone.
const FIRST_PEER: Duration = Duration::from_secs(10);
/// The same for members that an earlier run met: fewer of them are there still.
const FIRST_REMEMBERED: Duration = Duration::from_secs(5);
/// Who waits is told so after this: before that, nothing is unusual.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// A wildcard address becomes one address for each interface, within this time.
const INTERFACES: Duration = Duration::from_millis(200);

/// The configuration that the arguments describe.
pub(crate) fn config(args: &NetworkArgs, peers: &[String]) -> Result<SwarmConfig, NodeError> {
    let addresses = |texts: &[String], flag: &str| {
        let parsed = parse_addresses(texts.iter().map(String::as_str));
        parsed.with_context(|| format!("bad {flag}")).map_err(NodeError::input)
    };
    let of_peers = |texts: &[String], flag: &str| {
        let parsed = parse_peers(texts.iter().map(String::as_str));
        parsed.with_context(|| format!("bad {flag}")).map_err(NodeError::input)
    };
    let listen = addresses(&args.listen, "--listen")?;
    let invited_to = args.join.iter().flat_map(|invitation| invitation.peers.iter().cloned());
    let swarm_key = args.swarm_key.as_deref().map(SwarmKey::load).transpose().map_err(NodeError::input)?;
    let defaults = SwarmConfig::server();
    let defaults = if listen.is_empty() { defaults.listening_everywhere() } else { defaults };
    Ok(SwarmConfig {
        listen: if listen.is_empty() { defaults.listen.clone() } else { listen },
        announce: addresses(&args.announce, "--announce")?,
        peers: of_peers(peers, "--peers")?.into_iter().chain(invited_to).collect(),
        swarm_key: swarm_key.or_else(|| args.join.as_ref()?.swarm_key),
        relay_via: of_peers(&args.relay_via, "--relay-via")?,
        relay_server: !args.no_relay_server,
        mdns: !args.no_mdns,
        upnp: !args.no_upnp,
        ..defaults
    })
}

/// The name of a model in the swarm: the one given, or that of the invitation.
pub(crate) fn model_name<'a>(args: &'a NetworkArgs, given: Option<&'a str>) -> Option<&'a str> {
    given.or_else(|| Some(args.join.as_ref()?.model.as_ref()?.name()))
}

/// Refuses a model that is not the one of the invitation: its servers would never form a chain with this one.
pub(crate) fn check_model(args: &NetworkArgs, model: &ModelId) -> Result<(), NodeError> {
    match args.join.as_ref().and_then(|invitation| invitation.model.as_ref()) {
        Some(invited) if invited != model => Err(NodeError::input(anyhow::anyhow!(
            "the invitation is to serve {invited}, and this is {model}: get the files of that model, or leave out --join"
        ))),
        _ => Ok(()),
    }
}

/// Where the members that a node meets are kept: beside its identity. A node without one is another one each time.
pub(crate) fn members(args: &NetworkArgs, config: &SwarmConfig) -> Option<MemberFile> {
    let identity = args.identity.as_deref()?;
    Some(MemberFile::new(beside(identity, "members"), config.swarm_key.as_ref()))
}

/// A file that belongs to an identity.
pub(crate) fn beside(identity: &Path, what: &str) -> PathBuf {
    let mut name = identity.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

/// The peers named by `--allow-peer` and in `--allow-file`; `None`, which is everybody, without either.
pub(crate) fn allowed(peers: &[String], file: Option<&Path>) -> Result<Option<HashSet<PeerId>>, NodeError> {
    if peers.is_empty() && file.is_none() {
        return Ok(None);
    }
    let of_file = file.map(|file| {
        let text = std::fs::read_to_string(file);
        text.with_context(|| format!("cannot read --allow-file {}", file.display())).map_err(NodeError::input)
    });
    let of_file = of_file.transpose()?.unwrap_or_default();
    let lines = of_file.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let names = peers.iter().map(String::as_str).chain(lines.filter(|line| !line.is_empty()));
    let ids = names.map(|name| {
        let id = name.parse::<PeerId>();
        id.with_context(|| format!("`{name}` is not a peer id, such as 12D3Koo...")).map_err(NodeError::input)
    });
    ids.collect::<Result<_, _>>().map(Some)
}

/// The identity in `file`, which no other node of this machine gets as long as this one runs, or a new one for this run.
pub(crate) fn identity(file: Option<&Path>) -> Result<Identity, NodeError> {
    file.map_or_else(
        || Ok(Identity::generate()),
        |file| Identity::load_or_create_locked(file).map_err(NodeError::input),
    )
}

/// Starts the node and tells where it listens.
pub(crate) async fn start(
    identity: Identity,
    config: SwarmConfig,
    json: bool,
) -> Result<(SwarmHandle, Incoming), NodeError> {
    let has_peers = !config.peers.is_empty();
    let everywhere = config.listen.iter().any(|address| is_wildcard(&address.to_string()));
    let (handle, incoming) = SwarmNode::start(identity, config).await.map_err(NodeError::input)?;
    if everywhere {
        tokio::time::sleep(INTERFACES).await;
    }
    let mut addresses: Vec<String> = handle.listen_addresses().iter().map(ToString::to_string).collect();
    // What other machines can use comes first.
    addresses.sort_by_key(|address| is_loopback(address));
    for address in addresses {
        NodeEvent::Listening { address }.emit(json);
    }
    let patience = match has_peers {
        true => FIRST_PEER,
        false if handle.remembered() > 0 => FIRST_REMEMBERED,
        false => return Ok((handle, incoming)),
    };
    if handle.wait_company(FIRST_WORD).await.is_err() {
        NodeEvent::Alone { reason: handle.why_alone(FIRST_WORD).to_string() }.emit(json);
        if handle.wait_company(patience - FIRST_WORD).await.is_ok() {
            NodeEvent::Joined.emit(json);
        }
    }
    Ok((handle, incoming))
}

fn is_wildcard(address: &str) -> bool {
    address.starts_with("/ip4/0.0.0.0/") || address.starts_with("/ip6/::/")
}

fn is_loopback(address: &str) -> bool {
    address.starts_with("/ip4/127.") || address.starts_with("/ip6/::1/")
}
