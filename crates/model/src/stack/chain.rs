//! A pass through the parts of a stack: what one device's blocks give goes into those of the next, as between two servers.

use petals_protocol::{PassLayout, Span};

use super::BlockStack;
use super::block::Keep;
use super::pass::{ForwardOutput, ForwardPass, InputGrads, Manner, OutputGrads, PassError, small_enough};
use super::stash::{Stash, StashPart};
use crate::engine::on_engine;

/// What is said of inputs that are too large.
const SQUARED: &str = "the square of a value that enters the span";

impl BlockStack {
    /// Runs the layout's span, any part of this stack's, forward. The output has a [`Stash`] if anything is kept.
    ///
    /// # Errors
    /// [`PassError`] if the layout makes no sense or is not for these blocks, if an input is missing, superfluous or of
    /// the wrong size, if a device fails, or if an output is not finite.
    pub fn forward(&self, pass: ForwardPass<'_>, keep: Keep) -> Result<ForwardOutput, PassError> {
        self.forward_as(pass, keep, Manner::PLAIN)
    }

    /// As [`Self::forward`], in a manner of one's own.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_as(
        &self,
        pass: ForwardPass<'_>,
        keep: Keep,
        manner: Manner<'_>,
    ) -> Result<ForwardOutput, PassError> {
        pass.check(self.span, &self.config)?;
        self.check_layout(pass.layout)?;
        small_enough(SQUARED, &pass.text)?;
        pass.prefix.as_deref().map_or(Ok(()), |prefix| small_enough(SQUARED, prefix))?;
        let layout = pass.layout;
        let mut kept = Vec::new();
        let output = self.run_forward(pass, |part, own, pass| {
            let (output, of_part) = on_engine!(&part.blocks, blocks => blocks.forward(pass, keep, manner.of(own.end() == layout.span.end())))?;
            kept.extend(of_part.map(|kept| StashPart { span: own, device: part.place.device.clone(), kept }));
            Ok(output)
        })?;
        let stash = (keep != Keep::Nothing).then(|| Stash::new(layout.clone(), kept));
        Ok(ForwardOutput { stash, ..output })
    }

    /// As [`Self::forward`], keeping nothing, with the prefix's keys and values in each block.
    ///
    /// # Errors
    /// As [`Self::forward`], and [`PassError::NoPrefix`].
    pub fn forward_with_keys_values(&self, pass: ForwardPass<'_>) -> Result<ForwardOutput, PassError> {
        pass.check(self.span, &self.config)?;
        self.check_layout(pass.layout)?;
        if pass.layout.prefix_len == 0 {
            return Err(PassError::NoPrefix);
        }
        let mut keys_values = Vec::new();
        let output = self.run_forward(pass, |part, _, pass| {
            let output = on_engine!(&part.blocks, blocks => blocks.forward_with_keys_values(pass))?;
            keys_values.extend(output.keys_values.iter().flatten());
            Ok(output)
        })?;
        Ok(ForwardOutput { keys_values: Some(keys_values), ..output })
    }

    /// Runs a pass through each part that has blocks of it.
    fn run_forward(
        &self,
        pass: ForwardPass<'_>,
        mut run: impl FnMut(&super::Part, Span, ForwardPass<'_>) -> Result<ForwardOutput, PassError>,
    ) -> Result<ForwardOutput, PassError> {
        let ForwardPass { layout, text, prefix, mut tables } = pass;
        let of_block = layout.block_values(self.config.block_widths());
        let mut output = ForwardOutput { text, prefix, stash: None, keys_values: None };
        for (own, part) in self.parts_of(layout.span) {
            let own_layout = layout_of(layout, own);
            // What is left of them begins with those of this part.
            let own_tables = tables.as_mut().map(|tables| {
                let rest = tables.split_off(own.len() * of_block);
                std::mem::replace(tables, rest)
            });
            let ForwardOutput { text, prefix, .. } = output;
            output = run(part, own, ForwardPass { layout: &own_layout, text, prefix, tables: own_tables })?;
        }
        Ok(output)
    }

    /// Runs the stash's span backward, to the gradients of its inputs.
    ///
    /// Gradients of the prefix and of tables are sums over the examples. Without `text_grad` the text's gradient is not returned,
    /// and what only it needs in the first block is not computed.
    ///
    /// # Errors
    /// [`PassError`] if the stash is another stack's, if a gradient is missing, superfluous or of the wrong size, if a
    /// device fails, or if a result is not finite.
    pub fn backward(&self, stash: Stash, grads: OutputGrads, text_grad: bool) -> Result<InputGrads, PassError> {
        self.backward_as(stash, grads, text_grad, Manner::PLAIN)
    }

    /// As [`Self::backward`], in a manner of one's own.
    ///
    /// # Errors
    /// As [`Self::backward`].
    pub fn backward_as(
        &self,
        stash: Stash,
        grads: OutputGrads,
        text_grad: bool,
        manner: Manner<'_>,
    ) -> Result<InputGrads, PassError> {
        grads.check(stash.layout(), self.span, &self.config)?;
        let (layout, mut kept) = stash.into_parts();
        let mut result = InputGrads { text: None, prefix: None, tables: None };
        if layout.hidden_prefix_rows() == 0 && !layout.has_tables() && !text_grad {
            return Ok(result);
        }
        let mut grads = Some(grads);
        let mut of_tables = Vec::new();
        let parts: Vec<_> = self.parts_of(layout.span).collect();
        for (number, (own, part)) in parts.into_iter().enumerate().rev() {
            let here = |kept: &StashPart| kept.span == own && kept.device == part.place.device;
            let StashPart { kept, .. } = kept.pop().filter(here).ok_or(PassError::ForeignStash)?;
            let own_layout = layout_of(&layout, own);
            let Some(own_grads) = grads.take() else { return Err(PassError::ForeignStash) };
            result = on_engine!(&part.blocks, blocks => {
                blocks.backward(&own_layout, kept, (own_grads, number > 0 || text_grad), manner.of(number == 0))
            })?;
            of_tables.extend(result.tables.take());
            if number > 0 {
                let text = result.text.take().ok_or(PassError::ForeignStash)?;
                grads = Some(OutputGrads { text, prefix: result.prefix.take() });
            }
        }
        let tables = layout.has_tables().then(|| of_tables.into_iter().rev().flatten().collect());
        Ok(InputGrads { tables, ..result })
    }
}

/// A layout for those of its blocks that are in `own`: rows are read of its last block alone.
fn layout_of(layout: &PassLayout, own: Span) -> PassLayout {
    let is_last = own.end() == layout.span.end();
    PassLayout { span: own, read_rows: layout.read_rows.clone().filter(|_| is_last), ..layout.clone() }
}

#[cfg(test)]
mod tests;
