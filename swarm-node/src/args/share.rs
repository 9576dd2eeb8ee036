//! What this server lets peers have of what is here: files of the model, and what others' texts left.

use clap::Args;

use crate::sharing::LEAST_RATE;
use petals_settings::byte_size;

/// What is passed on.
#[derive(Debug, Clone, Args)]
pub struct ShareArgs {
    /// Take files of a model from the hub from other servers of it that have them and share them too, before the hub is asked, and give them those that are
    /// here. Whoever may use this server gets them, without the token that the hub may ask for. What is taken is checked by the hub's hashes.
    #[arg(long)]
    pub share_weights: bool,
    /// Most bytes a second that others are given, such as 10M. Default: as many as the link carries.
    #[arg(long, value_name = "SIZE", requires = "share_weights", value_parser = share_rate)]
    pub share_rate: Option<u64>,
    /// Let peers have the keys and values of what others' texts begin with, so that a system prompt that many have is computed once. The price is privacy:
    /// anybody who guesses the first 64 tokens of somebody's text (and then the next 64) can tell by the time of an answer that it was here. Default:
    /// each peer has its own.
    #[arg(long)]
    pub share_prefixes: bool,
}

fn share_rate(text: &str) -> Result<u64, String> {
    match byte_size(text)? {
        rate if rate < LEAST_RATE => Err("at least 1M: with less, others would sooner ask the hub".to_owned()),
        rate => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_one_that_others_would_wait_for() {
        assert_eq!((share_rate("10M"), share_rate("1M")), (Ok(10 << 20), Ok(1 << 20)));
        assert!(share_rate("1023K").is_err_and(|error| error.contains("at least 1M")));
        assert!(share_rate("fast").is_err());
    }
}
