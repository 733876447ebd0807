//! A hasher for names of blocks, which are hashes already.

use std::hash::Hasher;

/// Passes a `u64` through unchanged.
#[derive(Default)]
pub(crate) struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("names are u64");
    }

    fn write_u64(&mut self, name: u64) {
        self.0 = name;
    }
}
