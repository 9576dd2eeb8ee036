//! Swarms of real programs on an internet of network namespaces that loses packets, is cut in two and has NATs.

mod directory;
mod faults;
mod fleet;
mod internet;
mod nat;
mod storm;
mod strangers;
