//! Attention in burn's operations: examples padded to the longest, heads outermost.
//!
//! `[key_heads, batch, group, queries, dim]` is the order of queries, scores and outputs: the same memory is
//! `[key_heads·batch, group·queries, dim]` for products with an example's own keys and `[key_heads, batch·group·queries,
//! dim]` for those with the prefix, so that neither the key heads nor the prefix are ever repeated.

use std::iter;
use std::ops::Range;

use super::scores::{self, Probabilities, Scoring};
use super::tensor::{Indices, RawDevice, Tensor, columns, from_vec, indices, rows, stack};
use crate::engine::shapes::{Geometry, Heads, Segment};

/// Queries, `[active, query_heads·dim]`, keys beside values, `[rows, 2·key_heads·dim]`, and the heads' sinks, `[1, query_heads]`.
pub(super) type Given<'a> = (&'a Tensor<2>, &'a Tensor<2>, Option<&'a Tensor<2>>);

/// Segments that are computed together: the prefix alone, or all examples.
#[derive(Debug)]
pub(crate) struct Group {
    prefix: usize,
    batch: usize,
    query_rows: Range<usize>,
    key_rows: Range<usize>,
    queries: Padding,
    keys: Padding,
    /// For scores `[key_heads, batch, group, queries, prefix + keys]`.
    scoring: Scoring<5>,
}

/// Between the packed rows of a group and `[batch·longest]` slots.
#[derive(Debug)]
struct Padding {
    longest: usize,
    /// Absent if every segment is as long as the longest.
    maps: Option<Maps>,
}

#[derive(Debug)]
struct Maps {
    row_of_slot: Indices,
    slot_of_row: Indices,
    /// 1 for slots with a row, else 0; `[slots, 1]`.
    filled: Tensor<2>,
}

impl Padding {
    fn new(ranges: &[Range<usize>], device: &RawDevice) -> Self {
        let longest = ranges.iter().map(Range::len).max().unwrap_or_default();
        if ranges.iter().all(|range| range.len() == longest) {
            return Self { longest, maps: None };
        }
        let (mut row_of_slot, mut slot_of_row, mut filled) = (Vec::new(), Vec::new(), Vec::new());
        for range in ranges {
            for place in 0..longest {
                let real = place < range.len();
                if real {
                    slot_of_row.push(row_of_slot.len() as u32);
                }
                row_of_slot.push(if real { slot_of_row.len() as u32 - 1 } else { 0 });
                filled.push(if real { 1.0 } else { 0.0 });
            }
        }
        let slots = filled.len();
        let maps = Maps {
            row_of_slot: indices(&row_of_slot, device),
            slot_of_row: indices(&slot_of_row, device),
            filled: from_vec(filled, [slots, 1], device),
        };
        Self { longest, maps: Some(maps) }
    }

    /// Packed rows to slots; slots without a row are zero, so that they neither score nor collect gradients.
    fn pad(&self, packed: Tensor<2>) -> Tensor<2> {
        match &self.maps {
            Some(maps) => packed.select(0, maps.row_of_slot.clone()) * maps.filled.clone(),
            None => packed,
        }
    }

    fn unpad(&self, slots: Tensor<2>) -> Tensor<2> {
        match &self.maps {
            Some(maps) => slots.select(0, maps.slot_of_row.clone()),
            None => slots,
        }
    }
}

/// The groups of a pass: the prefix if it is active, then the text.
pub(super) fn groups(heads: Heads, geometry: &Geometry, device: &RawDevice) -> Vec<Group> {
    let own_prefix = geometry.segments.iter().take_while(|s| s.prefix == 0 && s.keys.start == 0).count();
    // Without a prefix the first example also starts at row 0 and sees no prefix: then all segments are text.
    let split = if geometry.segments.get(own_prefix).is_some_and(|s| s.prefix > 0) { own_prefix } else { 0 };
    let (prefix, text) = geometry.segments.split_at(split);
    [prefix, text].into_iter().filter(|s| !s.is_empty()).map(|s| Group::new(heads, s, geometry, device)).collect()
}

impl Group {
    fn new(heads: Heads, segments: &[Segment], geometry: &Geometry, device: &RawDevice) -> Self {
        let ranges = |side: fn(&Segment) -> &Range<usize>| segments.iter().map(side).cloned().collect::<Vec<_>>();
        let (query_ranges, key_ranges) = (ranges(|s| &s.queries), ranges(|s| &s.keys));
        let hull = |r: &[Range<usize>]| r.first().map_or(0, |a| a.start)..r.last().map_or(0, |z| z.end);
        let queries = Padding::new(&query_ranges, device);
        let keys = Padding::new(&key_ranges, device);
        let prefix = segments.first().map_or(0, |s| s.prefix);
        let (batch, seen) = (segments.len(), prefix + keys.longest);
        let mut visible = Vec::with_capacity(batch * queries.longest);
        for range in &query_ranges {
            let of_rows = geometry.visible[range.clone()].iter().map(|seen| seen.start as usize..seen.end as usize);
            // A slot without a query sees the first key; its row is thrown away.
            visible.extend(of_rows.chain(iter::repeat(0..1)).take(queries.longest));
        }
        let scoring = Scoring {
            soft_cap: heads.soft_cap,
            biases: scores::biases(heads, [heads.key_value, 1, heads.group(), 1, seen], device),
            mask: Some(scores::mask(visible, [1, batch, 1, queries.longest, seen], device)),
        };
        Self { prefix, batch, query_rows: hull(&query_ranges), key_rows: hull(&key_ranges), queries, keys, scoring }
    }

    /// `[rows, query_heads·dim]` of the group to `[key_heads·batch, group·queries, dim]`.
    fn split_queries(&self, heads: Heads, packed: &Tensor<2>) -> Tensor<3> {
        let slots = self.queries.pad(rows(packed, self.query_rows.clone()));
        let split = slots.reshape([self.batch, self.queries.longest, heads.key_value, heads.group(), heads.dim]);
        split.permute([2, 0, 3, 1, 4]).reshape([heads.key_value * self.batch, self.per_example(heads), heads.dim])
    }

    /// The inverse of [`Self::split_queries`].
    fn join_queries(&self, heads: Heads, split: Tensor<3>) -> Tensor<2> {
        let split = split.reshape([heads.key_value, self.batch, heads.group(), self.queries.longest, heads.dim]);
        let slots = split.permute([1, 3, 0, 2, 4]);
        self.queries.unpad(slots.reshape([self.batch * self.queries.longest, heads.query_width()]))
    }

    /// Own keys or values, `[key_heads·batch, keys, dim]`, from `[rows, key_heads·dim]` of all rows.
    fn split_keys(&self, heads: Heads, all: &Tensor<2>) -> Tensor<3> {
        let slots = self.keys.pad(rows(all, self.key_rows.clone()));
        let split = slots.reshape([self.batch, self.keys.longest, heads.key_value, heads.dim]);
        split.permute([2, 0, 1, 3]).reshape([heads.key_value * self.batch, self.keys.longest, heads.dim])
    }

    fn join_keys(&self, heads: Heads, split: Tensor<3>) -> Tensor<2> {
        let split = split.reshape([heads.key_value, self.batch, self.keys.longest, heads.dim]);
        let slots = split.permute([1, 2, 0, 3]).reshape([self.batch * self.keys.longest, heads.key_width()]);
        self.keys.unpad(slots)
    }

    /// The prefix's keys or values, `[key_heads, prefix, dim]`.
    fn split_prefix(&self, heads: Heads, all: &Tensor<2>) -> Tensor<3> {
        rows(all, 0..self.prefix).reshape([self.prefix, heads.key_value, heads.dim]).permute([1, 0, 2])
    }

    fn join_prefix(&self, heads: Heads, split: Tensor<3>) -> Tensor<2> {
        split.permute([1, 0, 2]).reshape([self.prefix, heads.key_width()])
    }

    fn per_example(&self, heads: Heads) -> usize {
        heads.group() * self.queries.longest
    }

    /// `left·rightᵀ` with the prefix's and the own rows: `[key_heads·batch, group·queries, prefix + keys]`.
    fn against(&self, heads: Heads, left: &Tensor<3>, right: &Sides) -> Tensor<3> {
        let own = left.clone().matmul(right.own.clone().swap_dims(1, 2));
        let Some(prefix) = &right.prefix else { return own };
        let with_prefix = self.by_head(heads, left.clone()).matmul(prefix.clone().swap_dims(1, 2));
        Tensor::cat(vec![self.by_example(heads, with_prefix), own], 2)
    }

    /// `weights·right`, weights over prefix and own rows as [`Self::against`] makes them.
    fn combine(&self, heads: Heads, weights: &Tensor<3>, right: &Sides) -> Tensor<3> {
        let (of_prefix, of_own) = self.split_weights(weights);
        let own = of_own.matmul(right.own.clone());
        let Some(prefix) = &right.prefix else { return own };
        own + self.by_example(heads, self.by_head(heads, of_prefix).matmul(prefix.clone()))
    }

    /// `weightsᵀ·left` in the shape of keys: for the prefix, if any, and own rows.
    fn collect(&self, heads: Heads, weights: &Tensor<3>, left: &Tensor<3>) -> Sides {
        let (of_prefix, of_own) = self.split_weights(weights);
        let own = of_own.swap_dims(1, 2).matmul(left.clone());
        let with_prefix = || self.by_head(heads, of_prefix).swap_dims(1, 2).matmul(self.by_head(heads, left.clone()));
        Sides { prefix: (self.prefix > 0).then(with_prefix), own }
    }

    fn split_weights(&self, weights: &Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let [outer, inner, seen] = weights.dims();
        let part = |range| weights.clone().slice([0..outer, 0..inner, range]);
        (part(0..self.prefix), part(self.prefix..seen))
    }

    fn by_head(&self, heads: Heads, x: Tensor<3>) -> Tensor<3> {
        let [_, _, last] = x.dims();
        x.reshape([heads.key_value, self.batch * self.per_example(heads), last])
    }

    fn by_example(&self, heads: Heads, x: Tensor<3>) -> Tensor<3> {
        let [_, _, last] = x.dims();
        x.reshape([heads.key_value * self.batch, self.per_example(heads), last])
    }

    fn sides(&self, heads: Heads, all: &Tensor<2>) -> Sides {
        let prefix = (self.prefix > 0).then(|| self.split_prefix(heads, all));
        Sides { prefix, own: self.split_keys(heads, all) }
    }

    /// Of scaled queries, in the shape of [`Self::against`].
    fn probabilities(&self, heads: Heads, q: &Tensor<3>, keys: &Sides, sinks: Option<&Tensor<2>>) -> Probabilities<3> {
        let products = self.against(heads, q, keys);
        let [outer, inner, seen] = products.dims();
        let products = products.reshape([heads.key_value, self.batch, heads.group(), self.queries.longest, seen]);
        let sinks = sinks.map(|sinks| sinks.clone().reshape([heads.key_value, 1, heads.group(), 1, 1]));
        let Probabilities { p, capped } = self.scoring.probabilities(products, sinks);
        let packed = |scores: Tensor<5>| -> Tensor<3> { scores.reshape([outer, inner, seen]) };
        Probabilities { p: packed(p), capped: capped.map(packed) }
    }

    /// The output of the group's queries, `[queries, query_heads·dim]`.
    fn forward(&self, heads: Heads, (q, kv, sinks): Given<'_>) -> Tensor<2> {
        let (keys, values) = keys_values(self, heads, kv);
        let q = self.split_queries(heads, q) * heads.scale;
        let p = self.probabilities(heads, &q, &keys, sinks).p;
        self.join_queries(heads, self.combine(heads, &p, &values))
    }

    /// Gradients of the group's queries; of the prefix's keys and values, if it sees one; and of its own. Sinks change nothing but the
    /// probabilities: theirs goes to no value and has no gradient.
    fn backward(&self, heads: Heads, (q, kv, sinks): Given<'_>, d_out: &Tensor<2>) -> GroupGradients {
        let (keys, values) = keys_values(self, heads, kv);
        let q = self.split_queries(heads, q) * heads.scale;
        let Probabilities { p, capped } = self.probabilities(heads, &q, &keys, sinks);
        let d_out = self.split_queries(heads, d_out);
        let dp = self.against(heads, &d_out, &values);
        let along = (p.clone() * dp.clone()).sum_dim(2);
        let ds = p.clone() * (dp - along);
        let ds = match capped {
            Some(capped) => ds * scores::cap_slope(capped),
            None => ds,
        };
        let dq = self.combine(heads, &ds, &keys) * heads.scale;
        let (dk, dv) = (self.collect(heads, &ds, &q), self.collect(heads, &p, &d_out));
        let join = |k: Tensor<2>, v: Tensor<2>| Tensor::cat(vec![k, v], 1);
        let prefix = dk.prefix.zip(dv.prefix);
        GroupGradients {
            queries: self.join_queries(heads, dq),
            prefix: prefix.map(|(k, v)| join(self.join_prefix(heads, k), self.join_prefix(heads, v))),
            own: join(self.join_keys(heads, dk.own), self.join_keys(heads, dv.own)),
        }
    }
}

/// Keys or values, or their gradients: `[key_heads, prefix, dim]` and `[key_heads·batch, keys, dim]`.
struct Sides {
    prefix: Option<Tensor<3>>,
    own: Tensor<3>,
}

struct GroupGradients {
    queries: Tensor<2>,
    prefix: Option<Tensor<2>>,
    own: Tensor<2>,
}

fn keys_values(group: &Group, heads: Heads, kv: &Tensor<2>) -> (Sides, Sides) {
    let width = heads.key_width();
    (group.sides(heads, &columns(kv, 0..width)), group.sides(heads, &columns(kv, width..2 * width)))
}

/// The output of all queries.
pub(super) fn forward(groups: &[Group], heads: Heads, given: Given<'_>) -> Tensor<2> {
    stack(groups.iter().map(|group| group.forward(heads, given)).collect())
}

/// Gradients of all queries and of all keys and values.
pub(super) fn backward(groups: &[Group], heads: Heads, given: Given<'_>, d_out: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let (mut queries, mut prefix, mut text) = (Vec::new(), None, Vec::new());
    for group in groups {
        let gradients = group.backward(heads, given, d_out);
        queries.push(gradients.queries);
        match gradients.prefix {
            // The examples' share joins what the prefix rows got from their own queries, if those are active.
            Some(share) => {
                let own: Option<Tensor<2>> = text.pop();
                prefix = Some(own.map_or(share.clone(), |own| own + share));
                text.push(gradients.own);
            }
            None => text.push(gradients.own),
        }
    }
    (stack(queries), stack(prefix.into_iter().chain(text).collect()))
}
