//! Tables that the requests of a stream share.

use petals_protocol::{Injection, PassLayout, Refusal, Span, TablesId, WeightChange};

use crate::executor::Tables;
use crate::machine::budget::PartyBudget;

/// What one stream has kept: tables under one name, for one or several spans.
#[derive(Debug)]
pub(crate) struct TableCache {
    memory: PartyBudget,
    id: Option<TablesId>,
    kept: Vec<(Shape, Tables)>,
}

/// What the shape of tables follows from.
type Shape = (Span, u32, Injection, WeightChange);

fn shape(layout: &PassLayout) -> Shape {
    (layout.span, layout.prefix_len, layout.injection, layout.weights)
}

impl TableCache {
    /// An empty cache that takes its memory from `memory`.
    pub(crate) fn new(memory: PartyBudget) -> Self {
        Self { memory, id: None, kept: Vec::new() }
    }

    /// Keeps the tables that came with a request, if there is memory for them; those of other names are dropped.
    pub(crate) fn keep(&mut self, id: TablesId, layout: &PassLayout, values: Vec<f32>) -> Tables {
        if self.id != Some(id) {
            self.kept.clear();
            self.id = Some(id);
        }
        self.kept.retain(|(kept, _)| *kept != shape(layout));
        let Ok(memory) = self.memory.try_reserve(4 * values.len() as u64, 0) else { return Tables::new(values) };
        let tables = Tables::kept(values, memory);
        self.kept.push((shape(layout), tables.clone()));
        tables
    }

    /// The tables kept under a name for the layout's span.
    pub(crate) fn get(&self, id: TablesId, layout: &PassLayout) -> Result<Tables, Refusal> {
        let found = self.kept.iter().find(|(kept, _)| *kept == shape(layout)).filter(|_| self.id == Some(id));
        found.map(|(_, tables)| tables.clone()).ok_or(Refusal::TablesGone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::budget::Budget;
    use petals_protocol::Injection;
    use petals_swarm::{Party, PeerId};

    fn layout(start: u32) -> PassLayout {
        let span = Span::new(start, 4).unwrap();
        PassLayout {
            span,
            lengths: vec![1],
            prefix_len: 2,
            injection: Injection::Add,
            weights: Default::default(),
            read_rows: None,
        }
    }

    #[test]
    fn prompts_are_found_under_their_name_and_span_until_another_name_comes() {
        let mut cache = TableCache::new(Budget::new(1 << 20).of(Party::unplaced(PeerId::random())));
        assert_eq!(cache.get(TablesId(1), &layout(0)).unwrap_err(), Refusal::TablesGone);
        cache.keep(TablesId(1), &layout(0), vec![1.0]);
        cache.keep(TablesId(1), &layout(1), vec![2.0]);
        let get = |cache: &TableCache, id, start| cache.get(TablesId(id), &layout(start)).map(Tables::into_values);
        assert_eq!((get(&cache, 1, 0), get(&cache, 1, 1)), (Ok(vec![1.0]), Ok(vec![2.0])));
        let longer = PassLayout { prefix_len: 3, ..layout(0) };
        assert_eq!(cache.get(TablesId(1), &longer).unwrap_err(), Refusal::TablesGone);
        cache.keep(TablesId(2), &layout(0), vec![3.0]);
        assert_eq!(get(&cache, 2, 0), Ok(vec![3.0]));
        assert_eq!((get(&cache, 1, 1), get(&cache, 2, 1)), (Err(Refusal::TablesGone), Err(Refusal::TablesGone)));
    }

    #[test]
    fn kept_prompts_take_memory_until_nobody_needs_them() {
        let budget = Budget::new(8 << 10);
        let peer = Party::unplaced(PeerId::random());
        let (mut cache, share) = (TableCache::new(budget.of(peer)), budget.of(peer));
        let kept = cache.keep(TablesId(1), &layout(0), vec![1.0; 1024]);
        assert!(share.try_reserve(4 << 10, 0).is_err(), "the share is used up");
        // A request that waits still has the old ones: nothing more fits, so the new ones are for their request alone.
        assert_eq!(cache.keep(TablesId(2), &layout(0), vec![2.0; 1024]).into_values(), vec![2.0; 1024]);
        assert_eq!(cache.get(TablesId(2), &layout(0)).unwrap_err(), Refusal::TablesGone);
        assert_eq!(kept.into_values(), vec![1.0; 1024]);
        assert!(share.try_reserve(4 << 10, 0).is_ok());
    }
}
