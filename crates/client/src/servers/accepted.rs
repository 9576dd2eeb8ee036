//! In which dtypes servers may compute.
//!
//! What a server says of its dtype decides what is forgiven when results are compared. So the user says which ones are accepted, and with verification
//! those of four bits are not unless they are named: what they may differ by hides most lies.

use std::collections::BTreeSet;

use petals_protocol::ServerInfo;

use crate::planner::Exclusion;

/// The dtypes of servers that may be used.
#[derive(Debug, Default)]
pub(crate) struct Accepted {
    /// Those named; none for all.
    named: BTreeSet<String>,
    /// Whether results are compared.
    verified: bool,
}

impl Accepted {
    /// Those named, or if none are all that results can be compared with if they are `verified`.
    pub(crate) fn new(named: &[String], verified: bool) -> Self {
        Self { named: named.iter().cloned().collect(), verified }
    }

    /// Whether servers of this dtype may be used.
    pub(crate) fn accepts(&self, dtype: &str) -> bool {
        if self.named.is_empty() { !self.verified || dtype != "int4" } else { self.named.contains(dtype) }
    }

    /// Why a server may not be used, if its dtype is the reason.
    pub(crate) fn exclusion(&self, info: &ServerInfo) -> Option<Exclusion> {
        (!self.accepts(&info.dtype)).then_some(Exclusion::Dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_are_compared_only_if_they_are_wanted() {
        let named = |named: &[&str], verified| {
            Accepted::new(&named.iter().map(|dtype| (*dtype).to_owned()).collect::<Vec<_>>(), verified)
        };
        let accepts = |accepted: Accepted| ["f32", "bf16", "int8", "int4", ""].map(|dtype| accepted.accepts(dtype));
        assert_eq!(accepts(named(&[], false)), [true; 5]);
        assert_eq!(accepts(named(&[], true)), [true, true, true, false, true]);
        assert_eq!(accepts(named(&["bf16", "int4"], true)), [false, true, false, true, false]);
    }
}
