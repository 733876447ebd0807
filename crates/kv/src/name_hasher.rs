//! A hasher for names of blocks, which are hashes already.

use std::hash::Hasher;

/// Takes a `u64` as it is.
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
