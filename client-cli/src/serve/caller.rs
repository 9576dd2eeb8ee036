//! Whose request it is. What is left of one caller's texts, here and on the servers, is for the same caller alone: who shares it with somebody can tell by
//! `cached_tokens` and by the time what the other one wrote, by trying.

use std::hash::{BuildHasher, RandomState};

use axum::extract::Request;
use petals_page::Origin;

/// One of those who use the server, as far as they can be told apart: by their keys or, where none is needed, by their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller(u64);

impl Caller {
    /// All of them, where they share.
    const EVERYBODY: Self = Self(0);

    /// Whose a request is; [`Callers`] said so before.
    pub(super) fn of(request: &Request) -> Self {
        request.extensions().get().copied().unwrap_or(Self::EVERYBODY)
    }

    /// What keeps this one's pages apart from others' on the servers; 0 for everybody.
    pub(super) fn salt(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Tells callers apart.
#[derive(Debug)]
pub(super) struct Callers {
    /// Unknown to callers, of whom one may choose among many addresses.
    secret: RandomState,
    together: bool,
}

impl Callers {
    /// With `together` all of them are one.
    pub(super) fn new(together: bool) -> Self {
        Self { secret: RandomState::new(), together }
    }

    /// Who has the key of this number.
    pub(super) fn by_key(&self, number: usize) -> Caller {
        self.caller(("key", number))
    }

    /// Who sent a request without a key. Behind a proxy that is the proxy.
    pub(super) fn by_address(&self, request: &Request) -> Caller {
        self.caller(("address", request.extensions().get::<Origin>()))
    }

    fn caller(&self, who: impl std::hash::Hash) -> Caller {
        // The salt of everybody is 0.
        if self.together { Caller::EVERYBODY } else { Caller(self.secret.hash_one(who) | 1 << 32) }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn from(ip: &str) -> Request {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Origin::of_ip(ip.parse().unwrap()));
        request
    }

    #[test]
    fn keys_and_addresses_are_told_apart_unless_all_share() {
        let callers = Callers::new(false);
        assert_eq!(callers.by_key(1), callers.by_key(1));
        assert_ne!(callers.by_key(0), callers.by_key(1));
        let of = |ip: &str| callers.by_address(&from(ip));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"), "one network");
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_ne!(of("10.0.0.1"), callers.by_key(0));
        assert!((0..64).all(|number| callers.by_key(number).salt() != 0));
        let together = Callers::new(true);
        assert_eq!(together.by_key(0), together.by_address(&from("10.0.0.1")));
        assert_eq!(together.by_key(0).salt(), 0);
    }

    #[test]
    fn a_request_says_whose_it_is() {
        let (callers, mut request) = (Callers::new(false), from("10.0.0.1"));
        assert_eq!(Caller::of(&request), Caller::EVERYBODY);
        request.extensions_mut().insert(callers.by_key(3));
        assert_eq!(Caller::of(&request), callers.by_key(3));
    }
}
