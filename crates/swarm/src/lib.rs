//! The network: a libp2p node that knows who serves what and opens streams to them. No tensors are computed here.
//!
//! [`SwarmNode::start`] spawns one event loop that owns the sockets and gives back two ends: a [`SwarmHandle`] (clone it
//! freely) to announce, look up and open streams, and [`Incoming`], the streams that others open to this node.
//!
//! The directory lives in a private Kademlia table: a server is a *provider* of every block it hosts, and publishes a
//! record signed with its key, which says what it serves and where it is reachable. Nodes store and return only records
//! that verify; see `record.rs` for the format and `store.rs` for what is refused.

mod addresses;
mod asked;
mod behaviour;
mod carried;
mod clock;
mod config;
mod directory;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod identity;
mod invitation;
mod keys;
mod member_file;
mod models;
mod namesake;
mod neighbours;
mod node;
mod rates;
mod record;
mod requests;
mod shares;
mod status;
mod store;
mod streams;
mod swarm_key;
mod told_models;

pub use addresses::{
    AddressError, is_of_this_machine, network_of, parse_address, parse_addresses, parse_peers, worth_handing_on,
};
pub use clock::{ClockOffset, WrongClock};
pub use config::{RelayLimits, SwarmConfig, SwarmMode};
pub use directory::{DirectoryEntry, Listed, LookupError};
pub use identity::{Identity, IdentityError};
pub use invitation::{Invitation, InvitationError};
pub use libp2p::{Multiaddr, PeerId};
pub use member_file::MemberFile;
pub use namesake::Namesake;
pub use node::{AnnounceError, ConnectError, DirectoryTraffic, Reachability, StartError, SwarmHandle, SwarmNode};
pub use requests::{Exchange, RequestError, RequestStream};
pub use shares::{Holder, Origin, Party, Seat, Shares};
pub use status::{BlockCount, ModelStatus, SwarmStatus, swarm_status};
pub use streams::{Incoming, IncomingStream, OpenError, PeerStream, StreamPath, Traffic};
pub use swarm_key::{SwarmKey, SwarmKeyError};
