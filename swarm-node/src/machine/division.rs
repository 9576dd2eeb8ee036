//! How the blocks of a span are divided among the devices of this machine.

use petals_model::{Checkpoint, Device, Division, Place};
use petals_protocol::Span;

use super::memory::Free;

/// What a device has for blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Offer {
    /// Bytes that weights may take there.
    room: u64,
    /// Bytes of one block there, at least 1.
    block: u64,
    /// How fast it is, in any measure, if that is known.
    speed: Option<f64>,
    /// Whether it is the processor, or one that the processor plays, which gets what cards do not hold.
    is_processor: bool,
}

impl Offer {
    /// Blocks that fit.
    fn fitting(self) -> usize {
        usize::try_from(self.room / self.block.max(1)).unwrap_or(usize::MAX)
    }
}

/// How many of `count` blocks each device gets. Cards are filled in proportion to their room times their speed (where all speeds are known; else
/// to their room alone), each up to its room; what is left goes to the processor, and what does not fit there either to the
/// processor too, or where none was named to all cards in proportion to their room.
fn counts(count: usize, offers: &[Offer]) -> Vec<usize> {
    let mut counts = vec![0; offers.len()];
    let mut left = count;
    for processors in [false, true] {
        let group: Vec<usize> = (0..offers.len()).filter(|&n| offers[n].is_processor == processors).collect();
        let most: Vec<usize> = offers.iter().map(|offer| offer.fitting()).collect();
        left = deal(left, &group, offers, &mut counts, &most);
    }
    let processors: Vec<usize> = (0..offers.len()).filter(|&n| offers[n].is_processor).collect();
    let rest = if processors.is_empty() { (0..offers.len()).collect() } else { processors };
    deal(left, &rest, offers, &mut counts, &vec![usize::MAX; offers.len()]);
    counts
}

/// Gives each of `left` blocks to the device of the group that has the fewest for its weight, and fewer than `most`. Returns how many
/// nobody took.
fn deal(left: usize, group: &[usize], offers: &[Offer], counts: &mut [usize], most: &[usize]) -> usize {
    let known: Option<Vec<f64>> = group.iter().map(|&n| offers[n].speed.filter(|speed| *speed > 0.0)).collect();
    let weight = |at: usize| {
        let speed = known.as_ref().map_or(1.0, |speeds| speeds[at]);
        // Even a device without room counts for something, or nobody would take what has to go somewhere.
        offers[group[at]].fitting().max(1) as f64 * speed
    };
    for taken in 0..left {
        let with_room = (0..group.len()).filter(|&at| counts[group[at]] < most[group[at]]);
        let next = with_room.min_by(|&a, &b| {
            let load = |at: usize| (counts[group[at]] + 1) as f64 / weight(at);
            load(a).total_cmp(&load(b))
        });
        match next {
            Some(at) => counts[group[at]] += 1,
            None => return left - taken,
        }
    }
    0
}

fn offers(
    checkpoint: &Checkpoint,
    span: Span,
    places: &[Place],
    free: &Free,
    speed: impl Fn(&Place) -> Option<f64>,
) -> Vec<Offer> {
    let offer = |place: &Place| {
        let name = place.device.to_string();
        // Whoever computes in the same memory has an equal part of it.
        let sharing = places.iter().filter(|other| free.is_shared(&name, &other.device.to_string())).count().max(1);
        Offer {
            room: free.for_weights_on(&name) / sharing as u64,
            block: (checkpoint.span_bytes(span, place.dtype) / span.len() as u64).max(1),
            speed: speed(place),
            is_processor: !place.device.is_gpu(),
        }
    };
    places.iter().map(offer).collect()
}

/// How many blocks fit on these devices together.
pub(crate) fn fitting(checkpoint: &Checkpoint, places: &[Place], free: &Free) -> usize {
    let offers = offers(checkpoint, checkpoint.blocks(), places, free, |_| None);
    offers.into_iter().map(Offer::fitting).fold(0, usize::saturating_add)
}

/// Which blocks of `span` go where, in the order of `places`. `None` without any places.
pub(crate) fn divide(
    checkpoint: &Checkpoint,
    span: Span,
    places: &[Place],
    free: &Free,
    speed: impl Fn(&Place) -> Option<f64>,
) -> Option<Division> {
    let counts = counts(span.len(), &offers(checkpoint, span, places, free, speed));
    Division::new(span, counts.into_iter().zip(places.iter().cloned()))
}

/// Bytes of the weights of each part of a division, with the name of its device.
pub(crate) fn weights(checkpoint: &Checkpoint, division: &Division) -> Vec<(String, u64)> {
    let of_part = |(span, place): &(Span, Place)| (place.device.to_string(), checkpoint.span_bytes(*span, place.dtype));
    division.parts().iter().map(of_part).collect()
}

/// The same of those blocks alone that `held` does not have on the same device already.
pub(crate) fn weights_beside(checkpoint: &Checkpoint, division: &Division, held: &Division) -> Vec<(String, u64)> {
    let of_part = |(span, place): &(Span, Place)| {
        let same = held.parts().iter().filter(|(_, other)| other == place);
        let there: usize = same.filter_map(|(other, _)| other.intersect(*span)).map(Span::len).sum();
        let one = checkpoint.span_bytes(*span, place.dtype) / span.len() as u64;
        (place.device.to_string(), one * (span.len() - there) as u64)
    };
    division.parts().iter().map(of_part).collect()
}

/// The names of devices, short enough for records: of cards of one kind side by side the numbers.
pub(crate) fn names<'a>(devices: impl IntoIterator<Item = &'a Device>) -> String {
    short(devices.into_iter().map(Device::to_string))
}

fn short(names: impl IntoIterator<Item = String>) -> String {
    let (mut all, mut last) = (String::new(), None::<String>);
    for name in names {
        let (kind, number) = name.split_once(':').map_or((name.as_str(), None), |(kind, n)| (kind, Some(n)));
        let comma = if all.is_empty() { "" } else { "," };
        all.push_str(comma);
        all.push_str(number.filter(|_| last.as_deref() == Some(kind)).unwrap_or(&name));
        last = Some(kind.to_owned());
    }
    all
}

/// Which blocks are where, for people.
pub(crate) fn words(division: &Division) -> String {
    match division.parts() {
        [(_, only)] => only.device.to_string(),
        parts => parts.iter().map(|(span, place)| format!("{} ({span})", place.device)).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(room: u64) -> Offer {
        Offer { room, block: 10, speed: None, is_processor: false }
    }

    fn processor(room: u64) -> Offer {
        Offer { is_processor: true, block: 20, ..card(room) }
    }

    #[test]
    fn cards_are_filled_by_their_room_and_the_processor_takes_the_rest() {
        assert_eq!(counts(24, &[card(1000), card(500)]), [16, 8]);
        assert_eq!(counts(24, &[card(200), processor(1000)]), [20, 4], "what does not fit on the card");
        assert_eq!(counts(24, &[processor(1000), card(200)]), [4, 20], "in the order that was given");
        assert_eq!(counts(24, &[card(1000), processor(1000)]), [24, 0]);
        assert_eq!(counts(24, &[card(100), card(120), processor(1000)]), [10, 12, 2]);
        assert_eq!(counts(5, &[processor(400), processor(400)]), [3, 2]);
        assert_eq!(counts(1, &[card(100), card(100)]), [1, 0]);
    }

    #[test]
    fn faster_cards_get_more_as_far_as_they_have_room() {
        let with = |room, speed| Offer { speed: Some(speed), ..card(room) };
        assert_eq!(counts(12, &[with(1000, 3.0), with(1000, 1.0)]), [9, 3]);
        assert_eq!(counts(24, &[with(100, 9.0), with(1000, 1.0)]), [10, 14], "no more than fit");
        assert_eq!(counts(12, &[with(1000, 3.0), card(1000)]), [6, 6], "one speed alone says nothing");
        let processor = Offer { speed: Some(1e9), ..processor(1000) };
        assert_eq!(counts(12, &[with(100, 3.0), processor]), [10, 2]);
    }

    #[test]
    fn names_of_many_cards_are_short() {
        let of = |names: &[&str]| short(names.iter().map(|name| (*name).to_owned()));
        assert_eq!(of(&["cuda:0", "cuda:1", "cuda:2", "vulkan:1", "cpu"]), "cuda:0,1,2,vulkan:1,cpu");
        assert_eq!((of(&["cpu", "cpu"]), of(&["cuda:3"])), ("cpu,cpu".to_owned(), "cuda:3".to_owned()));
    }

    #[test]
    fn blocks_that_were_demanded_go_somewhere_even_without_room() {
        assert_eq!(counts(30, &[card(100), processor(100)]), [10, 20]);
        assert_eq!(counts(30, &[card(100), card(100)]), [15, 15]);
        assert_eq!(counts(3, &[card(0)]), [3]);
        assert_eq!(counts(4, &[card(0), card(0)]), [2, 2]);
        assert_eq!(counts(3, &[]), Vec::<usize>::new());
    }
}
