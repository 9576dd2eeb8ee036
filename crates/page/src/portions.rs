//! Who holds how much of what there is, by address: what is held by who asks for nothing leaves some to others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use petals_swarm::Origin;

/// An address has at most so many times what is left free then: alone three quarters of it, as a proxy needs.
const TIMES_FREE: usize = 3;

/// Something of which there is so much.
#[derive(Debug)]
pub struct Portions {
    most: usize,
    /// In all, and by address.
    held: Mutex<(usize, HashMap<Origin, usize>)>,
}

/// What one holder has, until it is dropped.
#[derive(Debug)]
pub struct Portion {
    portions: Arc<Portions>,
    origin: Origin,
    amount: usize,
}

impl Portions {
    /// So much of it.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: Mutex::default() })
    }

    /// So much for an address, unless it has enough; one that has nothing gets it whenever it is there.
    pub fn take(self: &Arc<Self>, origin: Origin, amount: usize) -> Option<Portion> {
        let mut portion = Portion { portions: self.clone(), origin, amount: 0 };
        portion.grow(amount).then_some(portion)
    }

    fn lock(&self) -> MutexGuard<'_, (usize, HashMap<Origin, usize>)> {
        // Nothing panics while it is locked.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Portion {
    /// Takes more, if the address may have it; else nothing changes.
    pub fn grow(&mut self, more: usize) -> bool {
        let mut held = self.portions.lock();
        let (all, of_origins) = &mut *held;
        let of_origin = of_origins.get(&self.origin).copied().unwrap_or_default();
        let Some(left) = self.portions.most.checked_sub(*all).and_then(|free| free.checked_sub(more)) else {
            return false;
        };
        if of_origin > 0 && of_origin + more > TIMES_FREE * left {
            return false;
        }
        of_origins.insert(self.origin, of_origin + more);
        *all += more;
        self.amount += more;
        true
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        let mut held = self.portions.lock();
        let (all, of_origins) = &mut *held;
        *all = all.saturating_sub(self.amount);
        if let Some(of_origin) = of_origins.get_mut(&self.origin) {
            *of_origin = of_origin.saturating_sub(self.amount);
            if *of_origin == 0 {
                of_origins.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_some_to_others() {
        let portions = Portions::new(64);
        let open = |ip: &str| portions.take(Origin::of_ip(ip.parse().unwrap()), 1);
        let held: Vec<Portion> = std::iter::from_fn(|| open("10.0.0.1")).collect();
        assert_eq!(held.len(), 48);
        let net: Vec<Portion> = (0..64).filter_map(|n| open(&format!("2001:db8::{n:x}"))).collect();
        assert_eq!(net.len(), 12, "a net of IPv6 is one address");
        assert!(open("10.0.0.2").is_some(), "there is some left for the next");
        drop((held, net));
        let (all, of_origins) = &*portions.held.lock().unwrap();
        assert_eq!((*all, of_origins.len()), (0, 0));
    }

    #[test]
    fn what_grows_is_given_back_as_a_whole() {
        let portions = Portions::new(100);
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| Origin::of_ip(ip.parse().unwrap()));
        let mut first = portions.take(one, 60).unwrap();
        assert!(first.grow(15) && !first.grow(1), "three quarters");
        assert!(portions.take(other, 26).is_none(), "so much is not there");
        let second = portions.take(other, 25).unwrap();
        drop((first, second));
        assert!(portions.take(one, 100).is_some());
    }
}
