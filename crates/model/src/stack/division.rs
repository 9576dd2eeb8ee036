//! Which blocks of a span are on which device.

use petals_protocol::Span;

use crate::device::{Device, Dtype, KvDtype};

/// A device, and what is kept on it in which dtype.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where blocks compute.
    pub device: Device,
    /// How their weights are kept.
    pub dtype: Dtype,
    /// How keys and values of sessions are kept.
    pub kv_dtype: KvDtype,
}

/// A span in consecutive parts, each on a device; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Division(Vec<(Span, Place)>);

impl Division {
    /// Of parts that follow each other, at least one.
    pub(super) fn of(parts: Vec<(Span, Place)>) -> Self {
        Self(parts)
    }

    /// All of a span on one device.
    pub fn whole(span: Span, place: Place) -> Self {
        Self(vec![(span, place)])
    }

    /// The first blocks of a span on the first place, as many as stand beside it, and so on; nothing on those that have none.
    /// `None` unless there are as many as the span has.
    pub fn new(span: Span, counts: impl IntoIterator<Item = (usize, Place)>) -> Option<Self> {
        let (mut parts, mut first) = (Vec::new(), span.start());
        for (count, place) in counts.into_iter().filter(|(count, _)| *count > 0) {
            let end = first.checked_add(u32::try_from(count).ok()?)?;
            parts.push((Span::new(first, end).ok()?, place));
            first = end;
        }
        (first == span.end()).then_some(Self(parts))
    }

    /// The parts in the order of their blocks.
    pub fn parts(&self) -> &[(Span, Place)] {
        &self.0
    }

    /// All blocks.
    pub fn span(&self) -> Span {
        let (first, last) = (self.0.first(), self.0.last());
        let ends = first.zip(last).map(|((first, _), (last, _))| Span::new(first.start(), last.end()));
        ends.and_then(Result::ok).expect("at least one part")
    }

    /// How weights are kept; of several places the one with the fewest bits counts.
    pub fn dtype(&self) -> Dtype {
        let kept = self.0.iter().map(|(_, place)| place.dtype);
        kept.max_by_key(|dtype| Dtype::KEPT.iter().position(|other| other == dtype)).unwrap_or_default()
    }

    /// How keys and values are kept; of several places the one with the fewest bits counts.
    pub fn kv_dtype(&self) -> KvDtype {
        let kept = self.0.iter().map(|(_, place)| place.kv_dtype);
        kept.max_by_key(|dtype| KvDtype::KEPT.iter().position(|other| other == dtype)).unwrap_or_default()
    }

    /// A division of another span in which blocks of both stay where they are. Others take the places of those that leave, in the order of
    /// these; if more come than leave, they join those beside which they are.
    #[must_use]
    pub fn moved(&self, there: Span) -> Self {
        let leaving = |(span, place): &(Span, Place)| {
            let stay = span.intersect(there).map_or(0, Span::len);
            (span.len() - stay, place.clone())
        };
        let mut free: Vec<(usize, Place)> = self.0.iter().map(leaving).collect();
        let staying: Vec<(Span, Place)> =
            self.0.iter().filter_map(|(span, place)| Some((span.intersect(there)?, place.clone()))).collect();
        let (from, to) = match (staying.first(), staying.last()) {
            (Some((first, _)), Some((last, _))) => (first.start(), last.end()),
            _ => (there.end(), there.end()),
        };
        let mut parts = Vec::new();
        for block in there.start()..from {
            push(&mut parts, block, take(&mut free).or_else(|| Some(staying.first().or(self.0.last())?.1.clone())));
        }
        // Where parts meet within what stays, they still do: sessions there go on.
        let mut staying = staying.into_iter();
        if let Some((span, place)) = staying.next() {
            match parts.last_mut().filter(|(_, last)| *last == place) {
                Some((before, _)) => *before = Span::new(before.start(), span.end()).unwrap_or(*before),
                None => parts.push((span, place)),
            }
        }
        parts.extend(staying);
        for block in to..there.end() {
            let beside = parts.last().map(|(_, place): &(Span, Place)| place.clone());
            push(&mut parts, block, take(&mut free).or(beside));
        }
        Self(parts)
    }
}

/// The next place that has room for a block.
fn take(free: &mut [(usize, Place)]) -> Option<Place> {
    let (count, place) = free.iter_mut().find(|(count, _)| *count > 0)?;
    *count -= 1;
    Some(place.clone())
}

/// Adds a block, to the part before it if that is in the same place.
fn push(parts: &mut Vec<(Span, Place)>, block: u32, place: Option<Place>) {
    let Some(place) = place else { return };
    match parts.last_mut().filter(|(_, last)| *last == place) {
        Some((span, _)) => *span = Span::new(span.start(), block + 1).unwrap_or(*span),
        None => parts.extend(Span::new(block, block + 1).ok().map(|span| (span, place))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u32, end: u32) -> Span {
        Span::new(start, end).unwrap()
    }

    /// Places that differ without other devices.
    fn place(number: usize) -> Place {
        let dtype = Dtype::KEPT[number];
        Place { device: Device::cpu(), dtype, kv_dtype: KvDtype::F32 }
    }

    fn of(parts: &[(u32, u32, usize)]) -> Division {
        Division(parts.iter().map(|&(start, end, number)| (span(start, end), place(number))).collect())
    }

    #[test]
    fn the_first_blocks_are_on_the_first_place_and_all_are_somewhere() {
        let counts = |counts: [usize; 3]| (0..3).map(move |number| (counts[number], place(number)));
        assert_eq!(Division::new(span(4, 10), counts([3, 0, 3])), Some(of(&[(4, 7, 0), (7, 10, 2)])));
        assert_eq!(Division::new(span(4, 10), counts([6, 0, 0])), Some(Division::whole(span(4, 10), place(0))));
        assert_eq!(Division::new(span(4, 10), counts([3, 0, 2])), None);
        assert_eq!(Division::new(span(4, 10), counts([9, 0, 0])), None);
        let division = of(&[(4, 7, 2), (7, 10, 0)]);
        assert_eq!((division.span(), division.dtype()), (span(4, 10), Dtype::KEPT[2]));
    }

    #[test]
    fn what_stays_stays_where_it_is_and_others_take_the_places_of_those_that_leave() {
        let two = of(&[(0, 8, 0), (8, 16, 1)]);
        assert_eq!(two.moved(span(8, 24)), of(&[(8, 16, 1), (16, 24, 0)]));
        assert_eq!(two.moved(span(4, 20)), of(&[(4, 8, 0), (8, 16, 1), (16, 20, 0)]));
        assert_eq!(two.moved(span(30, 46)), of(&[(30, 38, 0), (38, 46, 1)]));
        assert_eq!(two.moved(span(0, 16)), two);
        let high = of(&[(8, 16, 0), (16, 24, 1)]);
        assert_eq!(high.moved(span(0, 16)), of(&[(0, 8, 1), (8, 16, 0)]));
        assert_eq!(high.moved(span(4, 20)), of(&[(4, 8, 1), (8, 16, 0), (16, 20, 1)]));
        // More come than leave, or fewer.
        assert_eq!(two.moved(span(0, 20)), of(&[(0, 8, 0), (8, 20, 1)]));
        assert_eq!(high.moved(span(4, 24)), of(&[(4, 16, 0), (16, 24, 1)]));
        assert_eq!(two.moved(span(12, 18)), of(&[(12, 16, 1), (16, 18, 0)]));
        assert_eq!(two.moved(span(20, 40)), of(&[(20, 28, 0), (28, 40, 1)]));
        for (start, end) in (0..20).flat_map(|start| (start + 1..24).map(move |end| (start, end))) {
            let moved = two.moved(span(start, end));
            assert_eq!(moved.span(), span(start, end));
            assert!(moved.0.windows(2).all(|pair| pair[0].0.end() == pair[1].0.start()), "{moved:?}");
        }
    }
}
