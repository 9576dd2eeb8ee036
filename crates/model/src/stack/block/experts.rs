//! A mixture of experts: each row goes through those experts that the router likes best, and their outputs are added by its weights
//! (Shazeer et al. 2017; `MixtralSparseMoeBlock`, `Qwen2MoeSparseMoeBlock`).
//!
//! Rows are gathered per expert, so that only the products of chosen experts are computed. Who is chosen has no gradient; the weights do: with
//! `p` the softmax of the router's scores and `g` the gradients of the weights, `ds = p ∘ (g - sum(p ∘ g))` over whatever the softmax is over.

use super::mlp::Mlp;
use crate::config::{ExpertWeights, ExpertsDesign};
use crate::engine::Engine;

/// The experts of a block.
#[derive(Debug)]
pub(in crate::stack) struct Experts<E: Engine> {
    pub(in crate::stack) design: ExpertsDesign,
    /// From rows to a score for each expert.
    pub(in crate::stack) router: E::Linear,
    pub(in crate::stack) experts: Vec<Mlp<E>>,
    pub(in crate::stack) shared: Option<Shared<E>>,
}

/// The expert that all rows go through.
#[derive(Debug)]
pub(in crate::stack) struct Shared<E: Engine> {
    pub(in crate::stack) mlp: Mlp<E>,
    /// From rows to one value, whose sigmoid its output is multiplied by.
    pub(in crate::stack) gate: Option<E::Linear>,
}

/// What the backward needs.
#[derive(Debug)]
pub(super) struct ExpertsStash<E: Engine> {
    routes: Vec<Route<E>>,
    /// The probabilities of all experts, `[A, experts]`, if the softmax is over all of them; else nothing.
    of_all: Vec<f32>,
    shared: Option<SharedStash<E>>,
    rows: usize,
}

/// Rows that go through one expert.
#[derive(Debug)]
struct Route<E: Engine> {
    expert: usize,
    rows: Vec<u32>,
    weights: Vec<f32>,
    /// Before the activation, `[rows, 2·width]`.
    inside: E::Rows,
}

#[derive(Debug)]
struct SharedStash<E: Engine> {
    inside: E::Rows,
    /// What each row's output is multiplied by, `[A]`, or nothing.
    gates: Vec<f32>,
}

impl<E: Engine> ExpertsStash<E> {
    pub(super) fn bytes(&self) -> u64 {
        let of_route = |route: &Route<E>| {
            E::bytes(&route.inside)
                + (size_of_val(route.rows.as_slice()) + size_of_val(route.weights.as_slice())) as u64
        };
        let shared = self.shared.as_ref();
        let shared = shared.map_or(0, |shared| E::bytes(&shared.inside) + size_of_val(shared.gates.as_slice()) as u64);
        self.routes.iter().map(of_route).sum::<u64>() + size_of_val(self.of_all.as_slice()) as u64 + shared
    }
}

impl<E: Engine> Experts<E> {
    /// The router's scores of the normed rows `x`.
    pub(super) fn scores(&self, engine: &E, x: &E::Rows) -> E::Rows {
        engine.project(&self.router, x, 0)
    }

    /// Chooses experts for the normed rows `x` by their scores, and computes those up to the activation.
    pub(super) fn inside(&self, engine: &E, x: &E::Rows, scores: E::Rows) -> ExpertsStash<E> {
        let rows = engine.height(x);
        let scores = values(engine, scores, rows * self.design.count);
        let (chosen, of_all) = choose(self.design, &scores);
        let route = |(expert, chosen): (usize, Chosen)| {
            let Chosen { rows, weights } = chosen;
            let own = engine.gather(x, &engine.pick(&rows));
            Route { expert, rows, weights, inside: self.experts[expert].inside(engine, &own) }
        };
        let chosen = chosen.into_iter().enumerate().filter(|(_, chosen)| !chosen.rows.is_empty());
        let shared = self.shared.as_ref().map(|shared| {
            let gates = shared.gate.as_ref().map(|gate| values(engine, engine.project(gate, x, 0), rows));
            let gates = gates.unwrap_or_default().into_iter().map(|gate| 1.0 / (1.0 + (-gate).exp())).collect();
            SharedStash { inside: shared.mlp.inside(engine, x), gates }
        });
        ExpertsStash { routes: chosen.map(route).collect(), of_all, shared, rows }
    }

    /// The experts' outputs by their weights, added to `sum` if there is one.
    pub(super) fn out(&self, engine: &E, stash: &ExpertsStash<E>, sum: Option<E::Rows>) -> E::Rows {
        let mut sum = sum;
        if let Some((shared, stash)) = self.shared.as_ref().zip(stash.shared.as_ref()) {
            let mut y = shared.mlp.out(engine, &stash.inside);
            if !stash.gates.is_empty() {
                y = engine.scale_rows(y, &stash.gates);
            }
            sum = Some(match sum {
                Some(sum) => engine.add(sum, &y, 0),
                None => y,
            });
        }
        for Route { expert, rows, weights, inside } in &stash.routes {
            let y = engine.scale_rows(self.experts[*expert].out(engine, inside), weights);
            let all = sum.unwrap_or_else(|| zeros(engine, stash.rows, engine.width(&y)));
            sum = Some(engine.add_picked(all, &y, &engine.pick(rows)));
        }
        // Every row goes through at least one expert.
        sum.unwrap_or_else(|| zeros(engine, 0, 1))
    }

    /// The gradient of the normed rows.
    pub(super) fn back(&self, engine: &E, stash: ExpertsStash<E>, dy: &E::Rows) -> E::Rows {
        let ExpertsStash { routes, of_all, shared, rows } = stash;
        let mut dx = match self.shared.as_ref().zip(shared) {
            Some((shared, stash)) => shared.back(engine, stash, dy),
            None => zeros(engine, rows, engine.width(dy)),
        };
        let mut of_weights = vec![0.0; rows * self.design.count];
        let mut weights_of = vec![0.0; rows * self.design.count];
        for Route { expert, rows, weights, inside } in routes {
            let mlp = &self.experts[expert];
            let picked = engine.pick(&rows);
            let own = engine.gather(dy, &picked);
            let (d_activated, along) = mlp.weighed_back(engine, &inside, &own, self.design.bias);
            for ((row, gradient), weight) in rows.iter().zip(values(engine, along, rows.len())).zip(&weights) {
                let at = *row as usize * self.design.count + expert;
                (of_weights[at], weights_of[at]) = (gradient, *weight);
            }
            let back = mlp.inside_back(engine, inside, &engine.scale_rows(d_activated, &weights));
            dx = engine.add_picked(dx, &back, &picked);
        }
        let probabilities = if of_all.is_empty() { &weights_of } else { &of_all };
        let d_scores = scores_back(self.design, &of_weights, probabilities);
        engine.project_back_onto(&self.router, &engine.upload(d_scores, self.design.count), dx, 0)
    }
}

impl<E: Engine> Shared<E> {
    fn back(&self, engine: &E, SharedStash { inside, gates }: SharedStash<E>, dy: &E::Rows) -> E::Rows {
        let Some(gate) = &self.gate else { return self.mlp.back(engine, inside, dy) };
        let along = engine.dot_rows(&self.mlp.out(engine, &inside), dy);
        let along = values(engine, along, gates.len());
        let d_gates = along.iter().zip(&gates).map(|(along, gate)| along * gate * (1.0 - gate)).collect();
        let dx = self.mlp.back(engine, inside, &engine.scale_rows(dy.clone(), &gates));
        engine.project_back_onto(gate, &engine.upload(d_gates, 1), dx, 0)
    }
}

/// Rows that chose an expert, ascending, and the weight of each.
#[derive(Debug, Clone, Default)]
struct Chosen {
    rows: Vec<u32>,
    weights: Vec<f32>,
}

/// What each expert is chosen by, given the router's scores `[rows, experts]`, and the probabilities of all if the softmax is over all of them.
fn choose(design: ExpertsDesign, scores: &[f32]) -> (Vec<Chosen>, Vec<f32>) {
    let mut chosen = vec![Chosen::default(); design.count];
    let mut of_all = Vec::new();
    let mut order: Vec<usize> = Vec::with_capacity(design.count);
    for (row, scores) in scores.chunks_exact(design.count).enumerate() {
        order.clear();
        order.extend(0..design.count);
        // Of equal scores the first wins; a device that failed hands over NaN, of which any order will do.
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let best = &order[..design.used];
        let over = match design.weights {
            ExpertWeights::OfAll => &order[..],
            ExpertWeights::OfChosen => best,
        };
        let largest = scores[order[0]];
        let total: f32 = over.iter().map(|&expert| (scores[expert] - largest).exp()).sum();
        let probability = |expert: usize| (scores[expert] - largest).exp() / total;
        for &expert in best {
            chosen[expert].rows.push(row as u32);
            chosen[expert].weights.push(probability(expert));
        }
        if design.weights == ExpertWeights::OfAll {
            of_all.extend((0..design.count).map(probability));
        }
    }
    (chosen, of_all)
}

/// The gradients of the scores from those of the weights and what the softmax gave, all `[rows, experts]` and zero where it gave nothing.
fn scores_back(design: ExpertsDesign, of_weights: &[f32], probabilities: &[f32]) -> Vec<f32> {
    let rows = of_weights.chunks_exact(design.count).zip(probabilities.chunks_exact(design.count));
    let back = |(gradients, p): (&[f32], &[f32])| {
        let along: f32 = gradients.iter().zip(p).map(|(g, p)| g * p).sum();
        gradients.iter().zip(p).map(|(g, p)| p * (g - along)).collect::<Vec<_>>()
    };
    rows.flat_map(back).collect()
}

/// The values of a matrix on the host. If the device failed they are NaN, and whoever fetches the pass's result is told.
fn values<E: Engine>(engine: &E, rows: E::Rows, count: usize) -> Vec<f32> {
    engine.download(rows).unwrap_or_else(|_| vec![f32::NAN; count])
}

fn zeros<E: Engine>(engine: &E, rows: usize, width: usize) -> E::Rows {
    engine.upload(vec![0.0; rows * width], width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn design(weights: ExpertWeights) -> ExpertsDesign {
        ExpertsDesign { count: 4, used: 2, width: 8, weights, bias: false, shared: None }
    }

    #[test]
    fn the_best_experts_share_their_probabilities_or_keep_those_among_all() {
        let scores = [0.0, 2.0, 1.0, -1.0];
        let (chosen, of_all) = choose(design(ExpertWeights::OfChosen), &scores);
        assert!(of_all.is_empty() && chosen[0].rows.is_empty() && chosen[3].rows.is_empty());
        let sigmoid = 1.0 / (1.0 + (-1.0f32).exp());
        assert!((chosen[1].weights[0] - sigmoid).abs() < 1e-6 && (chosen[2].weights[0] - 1.0 + sigmoid).abs() < 1e-6);
        let (chosen, of_all) = choose(design(ExpertWeights::OfAll), &scores);
        assert!((of_all.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!((chosen[1].weights[0], chosen[2].weights[0]), (of_all[1], of_all[2]));
    }

    #[test]
    fn scores_of_a_failed_device_choose_somebody() {
        let (chosen, _) = choose(design(ExpertWeights::OfChosen), &[f32::NAN; 8]);
        assert_eq!(chosen.iter().map(|chosen| chosen.rows.len()).sum::<usize>(), 4);
    }
}
