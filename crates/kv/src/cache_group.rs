//! Groups of layers that share a block table, an element format and a lifetime.
//!
//! Bytes of KV are computed here and nowhere else.

use tokens::BlockSize;

use crate::PoolError;

/// Element format of K and V in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Upper half of single precision.
    Bf16,
}

/// Positions that the layers of a group still read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retention {
    /// All positions before a row.
    All,
    /// The last positions up to a row, its own included: as many as given (sliding-window attention).
    Window(u32),
}

/// Layers whose KV is stored, looked up and freed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheGroup {
    /// Layers of the model, ascending.
    pub layers: Vec<u32>,
    /// Heads of K, and of V, in each layer.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Element format.
    pub format: KvFormat,
    /// Positions that its layers still read.
    pub retention: Retention,
}

/// The groups that a pool is made for, at least one. A block of the pool has room for its tokens in every layer of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheGroups(Vec<CacheGroup>);

impl KvFormat {
    /// Returns the bytes of K and V of one token in one layer.
    #[must_use]
    pub fn token_bytes(self, num_kv_heads: usize, head_dim: usize) -> u64 {
        let element_bytes = match self {
            Self::F32 => size_of::<f32>(),
            Self::F16 | Self::Bf16 => size_of::<u16>(),
        };
        (2 * num_kv_heads * head_dim * element_bytes) as u64
    }
}

impl Retention {
    /// Returns the first position that a row at `position` or later reads.
    #[must_use]
    pub fn first_read(self, position: u32) -> u32 {
        match self {
            Self::All => 0,
            Self::Window(len) => (position + 1).saturating_sub(len),
        }
    }
}

impl Default for CacheGroup {
    /// One element in one layer, for a pool whose bytes are not counted.
    fn default() -> Self {
        Self { layers: vec![0], num_kv_heads: 1, head_dim: 1, format: KvFormat::F16, retention: Retention::All }
    }
}

impl CacheGroup {
    /// Returns the bytes of K and V of one token in all its layers.
    #[must_use]
    pub fn token_bytes(&self) -> u64 {
        self.layers.len() as u64 * self.format.token_bytes(self.num_kv_heads, self.head_dim)
    }
}

impl CacheGroups {
    /// Creates the list of `groups`.
    ///
    /// # Errors
    /// If there is none, or two of them have a layer in common.
    pub fn try_new(groups: Vec<CacheGroup>) -> Result<Self, PoolError> {
        let mut layers: Vec<u32> = groups.iter().flat_map(|group| &group.layers).copied().collect();
        layers.sort_unstable();
        match layers.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(PoolError::SharedLayer { layer: pair[0] }),
            None if groups.is_empty() => Err(PoolError::NoGroups),
            None => Ok(Self(groups)),
        }
    }

    /// Returns the groups.
    pub fn iter(&self) -> impl Iterator<Item = &CacheGroup> {
        self.0.iter()
    }

    /// Returns the bytes of a block of `block_size` tokens, all groups.
    #[must_use]
    pub fn block_bytes(&self, block_size: BlockSize) -> u64 {
        self.iter().map(CacheGroup::token_bytes).sum::<u64>() * u64::from(block_size.get())
    }

    /// Returns the number of blocks that fit into `bytes`.
    #[must_use]
    pub fn num_blocks(&self, bytes: u64, block_size: BlockSize) -> u64 {
        bytes / self.block_bytes(block_size).max(1)
    }

    /// Returns the first position that a row at `position` or later reads in any group.
    #[must_use]
    pub fn first_read(&self, position: u32) -> u32 {
        self.iter().map(|group| group.retention.first_read(position)).min().unwrap_or(0)
    }
}

impl From<CacheGroup> for CacheGroups {
    fn from(group: CacheGroup) -> Self {
        Self(vec![group])
    }
}

impl Default for CacheGroups {
    /// The default group alone.
    fn default() -> Self {
        CacheGroup::default().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Group of `layers` with 2 heads of 64 elements.
    fn group(layers: &[u32], format: KvFormat, retention: Retention) -> CacheGroup {
        CacheGroup { layers: layers.to_vec(), num_kv_heads: 2, head_dim: 64, format, retention }
    }

    #[test]
    fn bytes_are_those_of_k_and_v_in_all_layers_of_all_groups() {
        let local = group(&[0, 1, 3], KvFormat::Bf16, Retention::Window(128));
        let global = group(&[2], KvFormat::F32, Retention::All);
        assert_eq!((local.token_bytes(), global.token_bytes()), (3 * 512, 1024));
        let groups = CacheGroups::try_new(vec![local, global]).unwrap();
        let block_bytes = groups.block_bytes(BlockSize::DEFAULT);
        assert_eq!(block_bytes, 2560 * u64::from(BlockSize::DEFAULT.get()));
        let num_blocks = |bytes| groups.num_blocks(bytes, BlockSize::DEFAULT);
        assert_eq!((num_blocks(3 * block_bytes), num_blocks(3 * block_bytes - 1)), (3, 2));
    }

    #[test]
    fn a_window_ends_with_the_row_and_the_group_that_reads_most_decides() {
        let first_read = |position| Retention::Window(4).first_read(position);
        assert_eq!([0, 3, 4, 9].map(first_read), [0, 0, 1, 6]);
        let local = |layer, window| group(&[layer], KvFormat::F16, Retention::Window(window));
        let groups = CacheGroups::try_new(vec![local(0, 4), local(1, 8)]).unwrap();
        assert_eq!(groups.first_read(9), 2);
        assert_eq!(CacheGroups::default().first_read(9), 0);
    }

    #[test]
    fn impossible_groups_are_refused() {
        assert_eq!(CacheGroups::try_new(Vec::new()), Err(PoolError::NoGroups));
        let of = |layers: &[u32]| group(layers, KvFormat::F16, Retention::All);
        assert_eq!(CacheGroups::try_new(vec![of(&[0, 2]), of(&[1, 2])]), Err(PoolError::SharedLayer { layer: 2 }));
    }
}
