//! One transformer block with frozen weights: its forward, what that keeps, and its backward.

use crate::ops::attention::Heads;
use crate::ops::linear::Linear;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::rotary::{Turn, rotate};
use crate::ops::swiglu;
use crate::tensor::{DeviceFailure, Tensor, bytes, columns, rows};

use super::plan::{ActiveRows, BlockPlan, StepPlan};
use super::stash::{Keep, Kept};

/// The weights of one block.
///
/// Keys and values share a weight, and so do gate and up. Queries have their own, because they are computed for the
/// active rows only.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) input_norm: RmsNorm,
    pub(crate) queries: Linear,
    pub(crate) keys_values: Linear,
    pub(crate) query_norm: Option<RmsNorm>,
    pub(crate) key_norm: Option<RmsNorm>,
    pub(crate) output: Linear,
    pub(crate) mlp_norm: RmsNorm,
    pub(crate) gate_up: Linear,
    pub(crate) down: Linear,
}

/// What a block's backward needs. `R` rows, `A` of them active.
#[derive(Debug)]
pub(crate) struct BlockStash {
    /// Input, `[R, d]`.
    input: Tensor<2>,
    /// Queries as they attend, `[A, query_heads·dim]`.
    queries: Tensor<2>,
    /// Keys and values as they are attended to, `[R, 2·key_heads·dim]`.
    keys_values: Tensor<2>,
    /// Queries `[A, query_heads·dim]` and keys `[R, key_heads·dim]` before their norms, if the model has those.
    before_norms: Option<(Tensor<2>, Tensor<2>)>,
    /// Input of the MLP's norm, `[A, d]`.
    residual: Tensor<2>,
    /// Gate and up before the activation, `[A, 2·intermediate]`.
    gate_up: Tensor<2>,
}

/// Which rows of the input's gradient are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needed {
    All,
    /// The first so many.
    Prefix(usize),
}

impl BlockStash {
    pub(super) fn bytes(&self) -> u64 {
        let Self { input, queries, keys_values, before_norms, residual, gate_up } = self;
        let always = [input, queries, keys_values, residual, gate_up].map(bytes).iter().sum::<u64>();
        always + before_norms.as_ref().map_or(0, |(q, k)| bytes(q) + bytes(k))
    }

    /// Input and input of the MLP's norm; the rest is freed.
    pub(super) fn into_ends(self) -> (Tensor<2>, Tensor<2>) {
        (self.input, self.residual)
    }
}

impl Block {
    /// From all rows `[R, d]` to the active ones `[A, d]`, with what is kept, if anything.
    pub(super) fn forward(
        &self,
        x: Tensor<2>,
        plan: BlockPlan<'_>,
        keep: Keep,
    ) -> Result<(Tensor<2>, Option<Kept>), DeviceFailure> {
        let mut stash = self.up_to_activation(x, plan.step, |q, kv| plan.attention.forward(q, kv))?;
        let mut activated = swiglu::forward(&mut stash.gate_up, plan.step.kernels)?;
        let (residual, kept) = match keep {
            Keep::Nothing => (stash.into_ends().1, None),
            Keep::Inputs => {
                let (input, residual) = stash.into_ends();
                (residual, Some(Kept::Input(input)))
            }
            Keep::Everything => (stash.residual.clone(), Some(Kept::Everything(Box::new(stash)))),
        };
        Ok((self.down.forward_onto(&mut activated, residual)?, kept))
    }

    /// A forward of rows whose queries attend as `attend` says, given those and the rows' keys and values.
    pub(super) fn step(
        &self,
        x: Tensor<2>,
        plan: StepPlan<'_>,
        attend: impl FnOnce(&mut Tensor<2>, &mut Tensor<2>) -> Result<Tensor<2>, DeviceFailure>,
    ) -> Result<Tensor<2>, DeviceFailure> {
        let mut stash = self.up_to_activation(x, plan, attend)?;
        let mut activated = swiglu::forward(&mut stash.gate_up, plan.kernels)?;
        let (_, residual) = stash.into_ends();
        self.down.forward_onto(&mut activated, residual)
    }

    /// Keys and values of all rows as they are attended to, `[R, 2·key_heads·dim]`, and nothing else.
    pub(super) fn keys_and_values(&self, mut x: Tensor<2>, plan: StepPlan<'_>) -> Result<Tensor<2>, DeviceFailure> {
        let mut kv = self.keys_values.forward(&mut self.input_norm.forward(&mut x)?, 0)?;
        if let Some(key_norm) = &self.key_norm {
            let keys = columns(&kv, 0..plan.heads.key_width());
            kv = replace_keys(&kv, per_head(keys, plan.heads, |keys| key_norm.forward(keys))?);
        }
        rotate(kv, plan.heads.key_value, plan.key_angles, Turn::Forward)
    }

    /// The part of the forward that a backward needs.
    fn up_to_activation(
        &self,
        mut x: Tensor<2>,
        plan: StepPlan<'_>,
        attend: impl FnOnce(&mut Tensor<2>, &mut Tensor<2>) -> Result<Tensor<2>, DeviceFailure>,
    ) -> Result<BlockStash, DeviceFailure> {
        let mut normed = self.input_norm.forward(&mut x)?;
        let mut q = plan.rows.project(&self.queries, &mut normed)?;
        let mut kv = self.keys_values.forward(&mut normed, 0)?;
        drop(normed);
        let before_norms = self.norm_heads(&mut q, &mut kv, plan.heads)?;
        q = rotate(q, plan.heads.query, plan.query_angles, Turn::Forward)?;
        kv = rotate(kv, plan.heads.key_value, plan.key_angles, Turn::Forward)?;
        let mut attended = attend(&mut q, &mut kv)?;
        let mut residual = self.output.forward_onto(&mut attended, plan.rows.gather(&x))?;
        drop(attended);
        let mut normed = self.mlp_norm.forward(&mut residual)?;
        let gate_up = self.gate_up.forward(&mut normed, 0)?;
        Ok(BlockStash { input: x, queries: q, keys_values: kv, before_norms, residual, gate_up })
    }

    /// The input's gradient, `[R, d]` or `[m, d]` as `needed`, from that of the output, `[A, d]`. If only the input was
    /// kept, the forward is repeated as far as needed.
    pub(super) fn backward(
        &self,
        kept: Kept,
        mut dy: Tensor<2>,
        plan: BlockPlan<'_>,
        needed: Needed,
    ) -> Result<Tensor<2>, DeviceFailure> {
        let stash = match kept {
            Kept::Input(input) => self.up_to_activation(input, plan.step, |q, kv| plan.attention.forward(q, kv))?,
            Kept::Everything(stash) => *stash,
        };
        let BlockStash { input, queries, keys_values, before_norms, mut residual, gate_up } = stash;
        let BlockPlan { step: plan, attention } = plan;
        let d_activated = self.down.backward(&mut dy)?;
        let mut d_gate_up = swiglu::backward(gate_up, d_activated, plan.kernels)?;
        let d_normed = self.gate_up.backward(&mut d_gate_up)?;
        drop(d_gate_up);
        let mut d_residual = self.mlp_norm.backward(&mut residual, d_normed)? + dy;
        drop(residual);
        let d_attended = self.output.backward(&mut d_residual)?;
        let prefix_only = needed != Needed::All;
        let (dq, dkv) = attention.backward(queries, keys_values, d_attended, prefix_only)?;
        let mut dq = rotate(dq, plan.heads.query, plan.query_angles, Turn::Back)?;
        let mut dkv = rotate(dkv, plan.heads.key_value, plan.key_angles, Turn::Back)?;
        self.unnorm_heads(before_norms, &mut dq, &mut dkv, plan.heads)?;
        self.to_input(input, (dq, dkv, d_residual), plan.rows, needed)
    }

    /// From the gradients of queries, keys and values, and of what the residual carries past them, to the input's.
    fn to_input(
        &self,
        mut input: Tensor<2>,
        (mut dq, mut dkv, mut d_residual): (Tensor<2>, Tensor<2>, Tensor<2>),
        active: &ActiveRows,
        needed: Needed,
    ) -> Result<Tensor<2>, DeviceFailure> {
        let mut prefix_is_active = true;
        if let Needed::Prefix(m) = needed {
            prefix_is_active = matches!(active, ActiveRows::All);
            (input, dkv) = (rows(&input, 0..m), rows(&dkv, 0..m));
            if prefix_is_active {
                (dq, d_residual) = (rows(&dq, 0..m), rows(&d_residual, 0..m));
            }
        }
        let d_normed = self.keys_values.backward(&mut dkv)?;
        if !prefix_is_active {
            return self.input_norm.backward(&mut input, d_normed);
        }
        let d_normed = active.project_back(&self.queries, &mut dq, d_normed)?;
        Ok(active.add(self.input_norm.backward(&mut input, d_normed)?, d_residual))
    }

    /// Norms queries and keys per head, where the model does; returns what they were before.
    fn norm_heads(
        &self,
        q: &mut Tensor<2>,
        kv: &mut Tensor<2>,
        heads: Heads,
    ) -> Result<Option<(Tensor<2>, Tensor<2>)>, DeviceFailure> {
        let (Some(query_norm), Some(key_norm)) = (&self.query_norm, &self.key_norm) else { return Ok(None) };
        let keys = columns(kv, 0..heads.key_width());
        let before = (q.clone(), keys.clone());
        let normed = per_head(q.clone(), heads, |q| query_norm.forward(q))?;
        let normed_keys = per_head(keys, heads, |keys| key_norm.forward(keys))?;
        *q = normed;
        *kv = replace_keys(kv, normed_keys);
        Ok(Some(before))
    }

    /// The backward of [`Self::norm_heads`], on gradients.
    fn unnorm_heads(
        &self,
        before: Option<(Tensor<2>, Tensor<2>)>,
        dq: &mut Tensor<2>,
        dkv: &mut Tensor<2>,
        heads: Heads,
    ) -> Result<(), DeviceFailure> {
        let (Some(query_norm), Some(key_norm), Some((q, keys))) = (&self.query_norm, &self.key_norm, before) else {
            return Ok(());
        };
        let d_keys = columns(dkv, 0..heads.key_width()).reshape([-1, heads.dim as i32]);
        let d_queries = dq.clone().reshape([-1, heads.dim as i32]);
        *dq = per_head(q, heads, |q| query_norm.backward(q, d_queries))?;
        *dkv = replace_keys(dkv, per_head(keys, heads, |keys| key_norm.backward(keys, d_keys))?);
        Ok(())
    }
}

/// Runs `norm` on `[rows·heads, dim]`.
fn per_head(
    x: Tensor<2>,
    heads: Heads,
    norm: impl FnOnce(&mut Tensor<2>) -> Result<Tensor<2>, DeviceFailure>,
) -> Result<Tensor<2>, DeviceFailure> {
    let [height, width] = x.dims();
    let mut split = x.reshape([height * width / heads.dim, heads.dim]);
    Ok(norm(&mut split)?.reshape([height, width]))
}

/// Keys and values with other keys.
fn replace_keys(kv: &Tensor<2>, keys: Tensor<2>) -> Tensor<2> {
    let ([_, both], [_, width]) = (kv.dims(), keys.dims());
    Tensor::cat(vec![keys, columns(kv, width..both)], 1)
}
