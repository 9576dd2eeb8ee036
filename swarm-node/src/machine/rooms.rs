//! What a budget of bytes has on each of several devices.

use std::sync::Arc;

use petals_model::{BlockStack, OnePlace};

/// How budgets are divided among the memories that blocks are in. Whatever lies in several of them is counted by the one that it fills most, as though
/// it filled all so far: a budget that is kept as a whole then is kept in each memory, and where everything lies as the budget is
/// divided nothing is lost. In one memory every byte counts as one.
#[derive(Debug, Clone, Default)]
pub struct Rooms(Arc<[Room]>);

#[derive(Debug)]
struct Room {
    /// Who computes in it, by name.
    devices: Vec<String>,
    /// Its part of each budget.
    share: f64,
}

impl Rooms {
    /// Of memories, with what is free in each.
    pub(super) fn new(memories: impl IntoIterator<Item = (Vec<String>, u64)>) -> Self {
        let memories: Vec<_> = memories.into_iter().collect();
        let all = memories.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>().max(1.0);
        let room = |(devices, bytes): (Vec<String>, u64)| Room { devices, share: (bytes as f64 / all).max(1e-6) };
        Self(memories.into_iter().map(room).collect())
    }

    /// What counts of something that stays, given what it takes in each place.
    pub(crate) fn kept(&self, blocks: &BlockStack, of_place: impl Fn(OnePlace<'_>) -> u64) -> u64 {
        self.counted(blocks, of_place, u64::saturating_add)
    }

    /// What counts of a pass, given what it takes in each place: of several in one memory only one computes at a time.
    pub(crate) fn passing(&self, blocks: &BlockStack, of_place: impl Fn(OnePlace<'_>) -> u64) -> u64 {
        self.counted(blocks, of_place, u64::max)
    }

    fn counted(
        &self,
        blocks: &BlockStack,
        of_place: impl Fn(OnePlace<'_>) -> u64,
        together: fn(u64, u64) -> u64,
    ) -> u64 {
        // Asked for every pass; names of devices matter only where there are several memories.
        if self.0.len() < 2 {
            return blocks.places().map(of_place).fold(0, together);
        }
        let places = blocks.places().map(|place| (place.device().to_string(), of_place(place)));
        self.of(&places.collect::<Vec<_>>(), together)
    }

    /// What counts of something that stays and has so many bytes on each device.
    pub(crate) fn of_all(&self, places: &[(String, u64)]) -> u64 {
        self.of(places, u64::saturating_add)
    }

    fn of(&self, places: &[(String, u64)], together: fn(u64, u64) -> u64) -> u64 {
        if self.0.len() < 2 {
            return places.iter().map(|(_, bytes)| *bytes).fold(0, together);
        }
        let in_room = |Room { devices, share }: &Room| {
            let here = places.iter().filter(|(device, _)| devices.contains(device));
            let bytes = here.map(|(_, bytes)| *bytes).fold(0, together);
            (bytes as f64 / share).ceil() as u64
        };
        self.0.iter().map(in_room).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_one_memory_every_byte_is_one() {
        let cpu = "cpu".to_owned();
        let places = [(cpu.clone(), 70), (cpu.clone(), 30)];
        for rooms in [Rooms::default(), Rooms::new([(vec![cpu], 1000)])] {
            assert_eq!(rooms.of(&places, u64::saturating_add), 100);
            assert_eq!(rooms.of(&places, u64::max), 70);
            assert_eq!(rooms.of(&[], u64::max), 0);
        }
    }

    #[test]
    fn no_memory_gets_more_than_its_part_of_a_budget() {
        let [cpu, card] = ["cpu", "cuda:0"].map(str::to_owned);
        // Of a budget of 100 bytes 75 are on the card.
        let rooms = Rooms::new([(vec![card.clone()], 300), (vec![cpu.clone()], 100)]);
        let sum = |on_card, on_cpu| rooms.of(&[(card.clone(), on_card), (cpu.clone(), on_cpu)], u64::saturating_add);
        assert_eq!(sum(75, 25), 100, "as the budget is divided");
        assert_eq!(sum(0, 25), 100, "all that there is on the processor");
        assert_eq!(sum(30, 0), 40);
        assert_eq!(sum(30, 20), 80);
        // Any mixture that fits into the budget fits into each memory.
        for things in [vec![(30, 0), (15, 5), (5, 5)], vec![(0, 10), (3, 10)], vec![(1, 1); 25]] {
            assert!(things.iter().map(|&(card, cpu)| sum(card, cpu)).sum::<u64>() <= 100);
            assert!(things.iter().map(|(card, _)| card).sum::<u64>() <= 75);
            assert!(things.iter().map(|(_, cpu)| cpu).sum::<u64>() <= 25);
        }
        assert!(sum(u64::MAX, u64::MAX) == u64::MAX);
    }
}
