//! Why dialling failed, for people.

use libp2p::swarm::DialError;

/// What went wrong, address by address, without the layers in between.
pub(crate) fn describe_dial_error(error: &DialError) -> String {
    match error {
        DialError::Transport(failures) => {
            let each = failures.iter().map(|(address, error)| format!("{address}: {}", innermost(error)));
            each.collect::<Vec<_>>().join("; ")
        }
        DialError::WrongPeerId { obtained, address } => format!("{address}: another peer answers there, {obtained}"),
        DialError::LocalPeerId { address } => format!("{address}: that is this node itself"),
        DialError::NoAddresses => "no address of it is known".to_owned(),
        DialError::Denied { cause } => innermost(cause).to_string(),
        DialError::Aborted | DialError::DialPeerConditionFalse(_) => "the attempt was given up".to_owned(),
    }
}

/// The cause that has no other.
pub(crate) fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}
