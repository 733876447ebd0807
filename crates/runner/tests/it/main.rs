//! The runner on small random models.

mod ahead;
mod common;
mod constrained;
mod engine;
mod faulty;
mod formats;
#[cfg(feature = "cuda")]
mod gpu;
mod hostile;
mod invariants;
#[cfg(feature = "cuda")]
mod transfers;
#[cfg(feature = "cuda")]
mod twins;
