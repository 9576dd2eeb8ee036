//! Scenarios over real networks of nodes, checked against goldens that transformers and PEFT computed.

mod bench;
mod bytes;
mod command_line;
mod curves;
mod decoding;
mod failover;
mod forged_records;
mod generation;
mod gradients;
mod hostile;
mod js;
mod leaving;
mod links;
mod load;
mod logits;
mod misbehaving;
mod narrow_wires;
mod placement;
mod relay;
mod relay_hostile;
mod resume;
mod routing;
mod sampling;
mod sessions;
mod stashes;
mod strangers;
