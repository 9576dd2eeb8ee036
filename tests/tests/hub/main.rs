//! The client of Hugging Face's hub against a hub on loopback, with everything that goes wrong on the way.

mod disk;
mod fetching;
mod interrupted;
mod nearby;
mod offline;
mod refused;
mod support;
