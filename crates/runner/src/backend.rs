//! Devices that models run on.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
