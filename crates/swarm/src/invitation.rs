//! A line that leads into a swarm: where members are, which model they serve, and the swarm's key if whoever invites wants that.
//!
//! `petals1:` and, in base64 for addresses, the encoded payload with four bytes of its SHA-256 behind it: a line that was cut or changed on its
//! way, through a chat or a hand, is refused instead of leading elsewhere.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use libp2p::Multiaddr;
use petals_protocol::{ModelId, decode, encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::addresses::{MAX_ADDRESS_LEN, split_peer};
use crate::swarm_key::SwarmKey;

/// What every line begins with.
const WORD: &str = "petals";
/// Version of the payload.
const VERSION: &str = "1";
/// Bytes of the checksum.
const CHECK: usize = 4;
/// Addresses in one line. More do not make it any more likely that one answers.
const MOST_ADDRESSES: usize = 8;
/// Longest line that is looked at.
const MAX_LEN: usize = 8 * 1024;

/// What a line of an invitation says.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// Members of the swarm, each address ending in `/p2p/` and its id.
    pub peers: Vec<Multiaddr>,
    /// The model that is served there.
    pub model: Option<ModelId>,
    /// The key of the swarm, if it is private and the line is to let in whoever reads it.
    pub swarm_key: Option<SwarmKey>,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    peers: Vec<Vec<u8>>,
    model: Option<String>,
    swarm_key: Option<[u8; 32]>,
}

/// Why a text is not an invitation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvitationError {
    /// Something else.
    #[error("it is no invitation, which begins with `petals1:`; `petals-node invite` makes one")]
    Other,
    /// Made by a version that writes them differently.
    #[error("it is an invitation of version {0}, and this program reads version 1: update it")]
    Version(String),
    /// A character that no invitation has.
    #[error("it has {0:?} as its character number {1}, which no invitation has: copy the line again")]
    Character(char, usize),
    /// The end is missing, or something was changed.
    #[error("a part is missing or was changed on the way, its checksum is wrong: copy the whole line again")]
    Damaged,
    /// The line is whole, but says something that leads nowhere.
    #[error("it is whole, but {0}: ask for another one")]
    Useless(&'static str),
}

impl Invitation {
    fn payload(&self) -> Payload {
        Payload {
            peers: self.peers.iter().take(MOST_ADDRESSES).map(Multiaddr::to_vec).collect(),
            model: self.model.as_ref().map(ToString::to_string),
            swarm_key: self.swarm_key.as_ref().map(SwarmKey::bytes),
        }
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = encode(&self.payload());
        let check = Sha256::digest(&bytes);
        bytes.extend(check.iter().take(CHECK));
        write!(f, "{WORD}{VERSION}:{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Invitation {
    type Err = InvitationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (version, body) =
            text.strip_prefix(WORD).and_then(|rest| rest.split_once(':')).ok_or(InvitationError::Other)?;
        if version != VERSION {
            let is_version = (1..=4).contains(&version.len()) && version.bytes().all(|byte| byte.is_ascii_digit());
            return Err(if is_version { InvitationError::Version(version.to_owned()) } else { InvitationError::Other });
        }
        if text.len() > MAX_LEN {
            return Err(InvitationError::Damaged);
        }
        let known = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let before = text.chars().count() - body.chars().count();
        if let Some((at, c)) = body.chars().enumerate().find(|(_, c)| !known(*c)) {
            return Err(InvitationError::Character(c, before + at + 1));
        }
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| InvitationError::Damaged)?;
        let (payload, check) = bytes.split_last_chunk::<CHECK>().ok_or(InvitationError::Damaged)?;
        if !Sha256::digest(payload).starts_with(check) {
            return Err(InvitationError::Damaged);
        }
        let payload: Payload = decode(payload).map_err(|_| InvitationError::Useless("this program cannot read it"))?;
        let address = |bytes: Vec<u8>| {
            let address = Multiaddr::try_from(bytes).ok().filter(|address| address.len() <= MAX_ADDRESS_LEN);
            address.filter(|address| split_peer(address).is_ok())
        };
        // One of a kind that this version does not know is left out; the others still serve.
        let peers: Vec<Multiaddr> = payload.peers.into_iter().filter_map(address).take(MOST_ADDRESSES).collect();
        if peers.is_empty() {
            return Err(InvitationError::Useless("it has no address that can be used"));
        }
        let model = payload.model.map(|model| model.parse()).transpose();
        let model = model.map_err(|_| InvitationError::Useless("it names a model that cannot be"))?;
        Ok(Self { peers, model, swarm_key: payload.swarm_key.map(SwarmKey::from_bytes) })
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    fn invitation() -> Invitation {
        let address = |port| format!("/ip4/203.0.113.5/tcp/{port}/p2p/{}", PeerId::random()).parse().unwrap();
        let model = "org/demo@0000000000000001".parse().unwrap();
        Invitation { peers: (1..4).map(address).collect(), model: Some(model), swarm_key: Some(SwarmKey::generate()) }
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let one = invitation();
        let line = one.to_string();
        assert!(line.starts_with("petals1:") && !line.contains(char::is_whitespace), "{line}");
        let read: Invitation = format!(" {line}\n").parse().unwrap();
        assert_eq!((read.peers, read.model), (one.peers.clone(), one.model.clone()));
        assert_eq!(read.swarm_key.map(|key| key.fingerprint()), one.swarm_key.map(|key| key.fingerprint()));
        let plain = Invitation { model: None, swarm_key: None, ..one };
        let read: Invitation = plain.to_string().parse().unwrap();
        assert!(read.model.is_none() && read.swarm_key.is_none());
        let many = Invitation { peers: invitation().peers.into_iter().cycle().take(27).collect(), ..plain };
        assert_eq!(many.to_string().parse::<Invitation>().unwrap().peers.len(), MOST_ADDRESSES);
    }

    #[test]
    fn a_damaged_line_is_refused_with_what_is_wrong() {
        let line = invitation().to_string();
        let refused = |text: &str| text.parse::<Invitation>().unwrap_err();
        for end in 9..line.len() {
            assert_eq!(refused(&line[..end]), InvitationError::Damaged, "{end}");
        }
        for at in 8..line.len() {
            let other = if line.as_bytes()[at] == b'A' { "B" } else { "A" };
            let changed = format!("{}{other}{}", &line[..at], &line[at + 1..]);
            assert_eq!(refused(&changed), InvitationError::Damaged, "{at}");
        }
        assert_eq!(refused(&format!("{}…", &line[..20])), InvitationError::Character('…', 21));
        assert_eq!(refused(&line.replace("petals1:", "petals2:")), InvitationError::Version("2".to_owned()));
        for other in ["", "petals", "petals:", "/ip4/1.2.3.4/tcp/1", "petalsx:abc", &line[8..]] {
            assert_eq!(refused(other), InvitationError::Other, "{other}");
        }
        assert_eq!(refused(&format!("petals1:{}", "A".repeat(MAX_LEN))), InvitationError::Damaged);
        let nobody = Invitation { peers: Vec::new(), ..invitation() };
        assert!(matches!(refused(&nobody.to_string()), InvitationError::Useless(_)));
        let no_peer = Invitation { peers: vec!["/ip4/1.2.3.4/tcp/1".parse().unwrap()], ..invitation() };
        assert!(matches!(refused(&no_peer.to_string()), InvitationError::Useless(_)));
    }

    #[test]
    fn a_key_is_not_shown_by_accident() {
        let one = invitation();
        let key = one.swarm_key.map(|key| key.bytes().map(|byte| format!("{byte:02x}")).concat()).unwrap();
        assert!(!format!("{one:?}").contains(&key));
    }
}
