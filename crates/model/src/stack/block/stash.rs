//! What a block's backward needs of its forward.

use super::InsideStash;
use crate::engine::Engine;

/// All that the backward needs.
#[derive(Debug)]
pub(in crate::stack) struct BlockStash<E: Engine> {
    /// Input, `[R, d]`.
    pub(super) input: E::Rows,
    /// Queries as they attend, `[A, query_heads·dim]`, and keys and values as they are attended to, `[R, 2·key_heads·dim]`, or more rows if some are
    /// given. A step, which has no backward, does not keep them.
    pub(super) turned: Option<(E::Rows, E::Rows)>,
    /// Keys and values before they were scaled, `[R, 2·key_heads·dim]`, if any are.
    pub(super) unscaled: Option<E::Rows>,
    /// Queries and keys before their norms, if the model has those.
    pub(super) before_norms: Option<BeforeNorms<E>>,
    /// What was attended to, `[A, query_heads·dim]`, if what it goes through is adapted.
    pub(super) attended: Option<E::Rows>,
    /// What attention gave before it was normed, `[A, d]`, if it is.
    pub(super) attention_out: Option<E::Rows>,
    /// Input of the MLP's norm, `[A, d]`, if it is not the block's.
    pub(super) residual: Option<E::Rows>,
    /// What is inside of the MLP before the activation.
    pub(super) inside: InsideStash<E>,
    /// What the MLP gave before it was normed, `[A, d]`, if it is.
    pub(super) mlp_out: Option<E::Rows>,
}

#[derive(Debug)]
pub(super) struct BeforeNorms<E: Engine> {
    /// `[A, query_heads·dim]`
    pub(super) queries: E::Rows,
    /// `[R, key_heads·dim]`
    pub(super) keys: E::Rows,
}

/// What a forward keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be no backward.
    Nothing,
    /// What enters each block. The backward repeats the forward block by block, with one block's saved tensors at a time.
    Inputs,
    /// All that the backward needs.
    Everything,
}

/// What is saved of one block.
#[derive(Debug)]
pub(in crate::stack) enum KeptBlock<E: Engine> {
    /// What enters it, `[R, d]`.
    Input(E::Rows),
    Everything(Box<BlockStash<E>>),
}

/// Which rows of the input's gradient are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stack) enum Needed {
    All,
    /// The first so many.
    Prefix(usize),
    /// None: only the tables' gradients are.
    Nothing,
}

impl<E: Engine> BlockStash<E> {
    fn bytes(&self) -> u64 {
        let Self { input, turned, unscaled, before_norms, attended, attention_out, residual, .. } = self;
        let turned = turned.as_ref().map_or(0, |(queries, keys_values)| E::bytes(queries) + E::bytes(keys_values));
        let always = E::bytes(input) + turned;
        let some = [unscaled, attended, attention_out, residual, &self.mlp_out];
        let some = some.map(|rows| rows.as_ref().map_or(0, E::bytes)).iter().sum::<u64>();
        let before = before_norms.as_ref().map_or(0, |before| E::bytes(&before.queries) + E::bytes(&before.keys));
        always + some + before + self.inside.bytes()
    }
}

impl<E: Engine> KeptBlock<E> {
    pub(in crate::stack) fn bytes(&self) -> u64 {
        match self {
            Self::Input(input) => E::bytes(input),
            Self::Everything(stash) => stash.bytes(),
        }
    }

    /// What entered the block.
    pub(in crate::stack) fn input(&self) -> &E::Rows {
        match self {
            Self::Input(input) => input,
            Self::Everything(stash) => &stash.input,
        }
    }

    /// The input alone.
    pub(in crate::stack) fn reduce(self) -> Self {
        match self {
            Self::Everything(stash) => Self::Input(stash.input),
            input @ Self::Input(_) => input,
        }
    }
}
