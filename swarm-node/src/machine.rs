//! What this machine can do: how fast it is, how much memory it has, and who may take of it.
//!
//! | file | subject |
//! |---|---|
//! | `measure` | how fast the blocks are, measured once and kept on disk |
//! | `speed` | the same, learnt from what is served; and what the link carries |
//! | `memory` | free memory, and what for |
//! | `kept` | memory that was freed and is not given back yet |
//! | `rooms` | what a budget has on each of several devices |
//! | `division` | which blocks go to which device |
//! | `budget` | a share of the requests' memory for each peer |
//!
//! At the bottom because everything else asks it: streams reserve memory, the executor tells how long passes took, placement
//! tells others. It knows of none of them.

pub(crate) mod budget;
pub(crate) mod division;
pub(crate) mod kept;
pub(crate) mod measure;
pub(crate) mod memory;
pub(crate) mod rooms;
pub(crate) mod speed;
