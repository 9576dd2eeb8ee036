//! How a micro-batch goes from server to server without passing through the client.
//!
//! The client still asks every server on its own stream. The servers' requests only say that the rows between two of them
//! travel from one to the other, under a token that these two and the client know.

use serde::{Deserialize, Serialize};

/// Names one transfer from one server to the next: 128 random bits that the client draws for it. Whoever does not know
/// them can deliver nothing, and nothing is delivered twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RelayToken(pub [u8; 16]);

/// Where the rows come from that flow into a pass: the text's and, where the layout has them, the prefix's. In a forward
/// these are hidden states, in a backward gradients of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RowSource {
    /// They are among the request's own tensors.
    #[default]
    Inline,
    /// Another server sends them by [`crate::Request::Relay`], before or after this request. The request's own tensors
    /// are the others.
    Relay(RelayToken),
}

/// Where the rows go that flow out of a pass: the text's and, where the layout has them, the prefix's. In a forward these
/// are hidden states, in a backward gradients of the input.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RowTarget {
    /// Back to the client, with the reply.
    #[default]
    Reply,
    /// On to another server of the same model. The reply, without them, follows once that server has taken them.
    Relay(NextServer),
}

/// The server that gets the rows which flow out of a pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextServer {
    /// Its libp2p peer id in binary form. Only a server that announces the block next to the span is sent anything.
    pub peer: Vec<u8>,
    /// What the rows are sent under.
    pub token: RelayToken,
}

impl std::fmt::Debug for RelayToken {
    /// Only its beginning: a log must not tell what would be needed to use it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, ..] = self.0;
        write!(f, "RelayToken({a:02x}{b:02x}…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_does_not_tell_the_token() {
        assert_eq!(format!("{:?}", RelayToken([0xab; 16])), "RelayToken(abab…)");
    }

    #[test]
    fn the_bytes_are_as_specified() {
        let next = NextServer { peer: vec![7, 8], token: RelayToken([1; 16]) };
        let encoded = crate::encode(&RowTarget::Relay(next));
        let expected: [&[u8]; 3] = [&[1, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0, 7, 8], &[1; 16]];
        assert_eq!(encoded, expected.concat());
        assert_eq!(crate::encode(&RowSource::Inline), [0; 4]);
    }
}
