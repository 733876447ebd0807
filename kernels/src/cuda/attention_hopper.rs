//! Attention of prefill on Hopper, for arbitrary query positions.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
    CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
    cuTensorMapEncodeTiled,
};
use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};
use super::tiles::Tile;

/// Slots of a block, as in `common.cuh`.
const BLOCK: usize = 32;
/// Rows (token and head of its group) of a tile, keys of a tile, buffers for keys and values, threads: as in the source.
const TILE_ROWS: usize = 128;
const STAGES: usize = 2;
const THREADS: usize = 384;
/// Numbers of 128 bytes, the widest row the copy engine swizzles.
const COLUMNS: usize = 64;

/// What prefill attention reads.
pub struct PrefillAttention<'a> {
    /// `[rows, q_stride]`; a row starts with its `num_heads` queries of `head_dim` numbers.
    pub q: &'a CudaSlice<bf16>,
    /// Numbers from one row to the next, a multiple of 8.
    pub q_stride: usize,
    /// Position of each row.
    pub positions: CudaView<'a, u32>,
    /// Of [`super::tiles`], made for [`AttentionHopper::tile_tokens`].
    pub tiles: CudaView<'a, Tile>,
    /// How many of them to compute.
    pub num_tiles: usize,
    /// `[sequences, max_blocks]`; a sequence's entries cover its largest position.
    pub block_tables: CudaView<'a, u32>,
    /// Entries from one table to the next.
    pub max_blocks: usize,
    /// `[num_layers, num_blocks, num_kv_heads, 32, head_dim]`, every number finite.
    pub keys: &'a CudaSlice<bf16>,
    /// As `keys`.
    pub values: &'a CudaSlice<bf16>,
    /// Layer of the pool.
    pub layer: usize,
    /// Blocks of a layer.
    pub num_blocks: usize,
    /// Query heads, a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Heads of the pool.
    pub num_kv_heads: usize,
    /// 64 or 128.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
}

/// [`super::super::cpu::attention`] through the copy engine and warpgroup products of compute capability 9.0.
pub struct AttentionHopper {
    device: Arc<Device>,
    num_multiprocessors: usize,
    head_64: CudaFunction,
    head_128: CudaFunction,
}

impl AttentionHopper {
    /// Loads the functions.
    ///
    /// # Errors
    /// If the device cannot run them.
    ///
    /// # Panics
    /// If the device is not of compute capability 9.0.
    pub fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        assert_eq!(device.capability()?, 90, "only compute capability 9.0 has these instructions");
        Ok(Self {
            device: Arc::clone(device),
            num_multiprocessors: device.num_multiprocessors()?,
            head_64: device.function("attention_hopper", "attention_hopper_64", shared_bytes(64))?,
            head_128: device.function("attention_hopper", "attention_hopper_128", shared_bytes(128))?,
        })
    }

    /// Tokens of a tile where `group` query heads share a key head.
    ///
    /// # Panics
    /// If `group` is 0 or over 64.
    #[must_use]
    pub fn tile_tokens(group: usize) -> usize {
        assert!((1..=64).contains(&group), "groups of 1 to 64 heads");
        TILE_ROWS / group
    }

    /// `out[row] = softmax(scale * q Kᵀ) V` for all rows of the tiles, keys up to the row's position; `out` is
    /// `[rows, num_heads * head_dim]`. `lse`, `[rows, num_heads]`, gets the natural logarithm of each softmax's denominator.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn attend(
        &self,
        from: &PrefillAttention<'_>,
        out: &mut CudaSlice<bf16>,
        lse: Option<&mut CudaSlice<f32>>,
    ) -> Result<(), DeviceError> {
        if from.num_tiles == 0 {
            return Ok(());
        }
        let num_rows = from.check();
        assert!(out.len() >= num_rows * from.num_heads * from.head_dim, "rows lie in the output");
        assert!(lse.as_ref().is_none_or(|lse| lse.len() >= num_rows * from.num_heads), "rows lie in the output");
        let stream = self.device.stream();
        let num_items = from.num_tiles * from.num_kv_heads;
        let arguments = Arguments {
            positions: address(&from.positions, stream),
            tiles: address(&from.tiles, stream),
            block_tables: address(&from.block_tables, stream),
            out: out.device_ptr_mut(stream).0,
            lse: lse.map_or(0, |lse| lse.device_ptr_mut(stream).0),
            num_items: num_items as i32,
            max_blocks: from.max_blocks as i32,
            layer: from.layer as i32,
            num_blocks: from.num_blocks as i32,
            num_heads: from.num_heads as i32,
            num_kv_heads: from.num_kv_heads as i32,
            scale: from.scale,
        };
        let maps = [from.q_map(stream)?, from.pool_map(from.keys, stream)?, from.pool_map(from.values, stream)?];
        let function = if from.head_dim == 64 { &self.head_64 } else { &self.head_128 };
        let grid = (num_items.min(self.num_multiprocessors), 1, 1);
        let mut call = stream.launch_builder(function);
        call.arg(&maps[0]).arg(&maps[1]).arg(&maps[2]).arg(&arguments);
        // SAFETY: buffers hold what was asserted; that tiles, tables and positions agree with them is the caller's promise.
        unsafe { call.launch(launch(grid, THREADS, shared_bytes(from.head_dim))) }?;
        Ok(())
    }
}

impl PrefillAttention<'_> {
    /// Checks lengths; rows that the query buffer holds.
    fn check(&self) -> usize {
        let (group, width) = (self.num_heads / self.num_kv_heads, self.num_heads * self.head_dim);
        assert_eq!(group * self.num_kv_heads, self.num_heads, "query heads share key heads evenly");
        assert!((1..=64).contains(&group) && matches!(self.head_dim, 64 | 128), "groups of 1 to 64 heads of 64 or 128 numbers");
        assert!(self.q_stride >= width && self.q_stride.is_multiple_of(8), "a row holds its queries, aligned to 16 bytes");
        let layer_len = self.num_blocks * self.num_kv_heads * BLOCK * self.head_dim;
        assert!(
            self.keys.len() == self.values.len() && self.keys.len() >= (self.layer + 1) * layer_len,
            "the layer lies in the pool"
        );
        assert!(self.keys.len() / self.head_dim <= i32::MAX as usize, "the copy engine counts rows in 31 bits");
        assert!(self.num_tiles <= self.tiles.len() && self.num_tiles * self.num_kv_heads <= i32::MAX as usize / 2);
        self.q.len() / self.q_stride
    }

    /// Queries of a group, some tokens at once: rows (token, head) of 64 columns.
    fn q_map(&self, stream: &Arc<CudaStream>) -> Result<TensorMap, DeviceError> {
        let group = self.num_heads / self.num_kv_heads;
        TensorMap::new(
            address(self.q, stream),
            [self.head_dim, self.num_heads, self.q.len() / self.q_stride],
            [self.head_dim, self.q_stride],
            [COLUMNS, group, TILE_ROWS / group],
        )
    }

    /// One head of a block: rows (slot) of 64 columns.
    fn pool_map(&self, pool: &CudaSlice<bf16>, stream: &Arc<CudaStream>) -> Result<TensorMap, DeviceError> {
        TensorMap::new(address(pool, stream), [self.head_dim, pool.len() / self.head_dim], [self.head_dim], [COLUMNS, BLOCK])
    }
}

/// As in the source.
#[repr(C)]
struct Arguments {
    positions: u64,
    tiles: u64,
    block_tables: u64,
    out: u64,
    lse: u64,
    num_items: i32,
    max_blocks: i32,
    layer: i32,
    num_blocks: i32,
    num_heads: i32,
    num_kv_heads: i32,
    scale: f32,
}

// SAFETY: the struct of the same name in the source.
unsafe impl DeviceRepr for Arguments {}

/// How the copy engine reads a tensor of bf16.
#[repr(transparent)]
struct TensorMap(CUtensorMap);

// SAFETY: 128 bytes that mean something to the device only.
unsafe impl DeviceRepr for TensorMap {}

impl TensorMap {
    /// Tensor of `lens`, innermost first, at `address`, `strides` numbers from one to the next beyond the innermost; a copy takes
    /// `copied` of each and swizzles rows of 128 bytes.
    fn new<const RANK: usize, const OUTER: usize>(
        address: u64,
        lens: [usize; RANK],
        strides: [usize; OUTER],
        copied: [usize; RANK],
    ) -> Result<Self, DeviceError> {
        const { assert!(OUTER + 1 == RANK, "one stride less than dimensions") };
        let mut map = Self(CUtensorMap { opaque: [0; 16] });
        let (lens, bytes) = (lens.map(|len| len as u64), strides.map(|stride| 2 * stride as u64));
        let (copied, steps) = (copied.map(|len| len as u32), [1u32; RANK]);
        // SAFETY: all pointers are valid for `RANK` numbers, the map for a write; the address is not read here.
        unsafe {
            cuTensorMapEncodeTiled(
                &raw mut map.0,
                CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                RANK as u32,
                address as *mut c_void,
                lens.as_ptr(),
                bytes.as_ptr(),
                copied.as_ptr(),
                steps.as_ptr(),
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()?;
        Ok(map)
    }
}

fn address<T>(slice: &impl DevicePtr<T>, stream: &Arc<CudaStream>) -> u64 {
    slice.device_ptr(stream).0
}

/// A tile of queries, the stages of keys and values, barriers, and room to begin at a multiple of 1024.
const fn shared_bytes(head_dim: usize) -> usize {
    (1 + 2 * STAGES) * TILE_ROWS * head_dim * 2 + (2 + 4 * STAGES) * 8 + 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{self, AttentionShape, KvDtype, KvLayer, KvShape, QuerySequence, Threads, testing::noise};
    use crate::cuda::testing::{assert_close, device};
    use crate::cuda::tiles::{TileSequence, tiles};

    const SCALE: f32 = 0.3;

    /// Query rows of some sequences, each at the positions given.
    struct World {
        head_dim: usize,
        num_heads: usize,
        num_kv_heads: usize,
        sequences: Vec<Vec<u32>>,
    }

    /// Numbers as bf16, and the same widened.
    fn rounded(len: usize, seed: u32, factor: f32) -> (Vec<bf16>, Vec<f32>) {
        let narrow: Vec<bf16> = noise(len, seed).into_iter().map(|x| bf16::from_f32(factor * x)).collect();
        let wide = narrow.iter().map(|x| x.to_f32()).collect();
        (narrow, wide)
    }

    impl World {
        fn num_blocks(&self) -> usize {
            self.sequences.len() * self.max_blocks() + 3
        }

        fn max_blocks(&self) -> usize {
            self.sequences.iter().map(|positions| *positions.last().unwrap() as usize / BLOCK + 1).max().unwrap()
        }

        fn num_rows(&self) -> usize {
            self.sequences.iter().map(Vec::len).sum()
        }

        /// Every block of the pool at most once, in an order that jumps about.
        fn tables(&self) -> Vec<u32> {
            let num_blocks = self.num_blocks() as u32;
            let step =
                (num_blocks / 2..).find(|step| (2..=*step).all(|d| step % d != 0 || !num_blocks.is_multiple_of(d))).unwrap();
            (0..(self.sequences.len() * self.max_blocks()) as u32).map(|i| (i * step + 2) % num_blocks).collect()
        }

        /// Natural logarithms of the denominators, and outputs.
        fn on_cpu(&self, q: &[f32], pool: [&[f32]; 2]) -> Vec<f32> {
            let threads = Threads::new(2).unwrap();
            let shape = KvShape { num_blocks: self.num_blocks(), num_kv_heads: self.num_kv_heads, head_dim: self.head_dim };
            let mut kv = KvLayer::new(KvDtype::F32, shape);
            let slots: Vec<u32> = (0..(self.num_blocks() * BLOCK) as u32).collect();
            let [keys, values] = pool.map(|numbers| self.by_slot(numbers));
            kv.write(&threads, &slots, &keys, &values, shape.width());
            let (tables, max_blocks) = (self.tables(), self.max_blocks());
            let mut first_row = 0;
            let mut sequences = Vec::new();
            for (i, positions) in self.sequences.iter().enumerate() {
                sequences.push(QuerySequence { first_row, positions, block_table: &tables[i * max_blocks..][..max_blocks] });
                first_row += positions.len();
            }
            let stride = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim;
            let shape = AttentionShape { num_heads: self.num_heads, scale: SCALE, q_stride: stride };
            let mut out = vec![0.0; self.num_rows() * self.num_heads * self.head_dim];
            cpu::attention(&threads, shape, q, &kv, &sequences, &mut out);
            out
        }

        /// From `[blocks, heads, 32, head_dim]` to `[slots, heads, head_dim]`.
        fn by_slot(&self, numbers: &[f32]) -> Vec<f32> {
            let (heads, head_dim) = (self.num_kv_heads, self.head_dim);
            let mut out = Vec::with_capacity(numbers.len());
            for slot in 0..self.num_blocks() * BLOCK {
                for head in 0..heads {
                    let from = ((slot / BLOCK * heads + head) * BLOCK + slot % BLOCK) * head_dim;
                    out.extend_from_slice(&numbers[from..from + head_dim]);
                }
            }
            out
        }

        /// Logarithm of the softmax's denominator of every row and head.
        fn lse(&self, q: &[f32], keys: &[f32]) -> Vec<f32> {
            let (tables, max_blocks, head_dim) = (self.tables(), self.max_blocks(), self.head_dim);
            let (group, stride) = (self.num_heads / self.num_kv_heads, (self.num_heads + 2 * self.num_kv_heads) * head_dim);
            let rows =
                self.sequences.iter().enumerate().flat_map(|(i, positions)| positions.iter().map(move |p| (i, *p as usize)));
            let mut out = Vec::new();
            for (row, (sequence, position)) in rows.enumerate() {
                for head in 0..self.num_heads {
                    let q = &q[row * stride + head * head_dim..][..head_dim];
                    let weights = (0..=position).map(|p| {
                        let block = tables[sequence * max_blocks + p / BLOCK] as usize;
                        let at = ((block * self.num_kv_heads + head / group) * BLOCK + p % BLOCK) * head_dim;
                        let dot: f32 = q.iter().zip(&keys[at..]).map(|(q, k)| q * k).sum();
                        f64::from(SCALE * dot).exp()
                    });
                    out.push(weights.sum::<f64>().ln() as f32);
                }
            }
            out
        }
    }

    #[track_caller]
    fn check(world: &World) {
        let device = device();
        let stride = (world.num_heads + 2 * world.num_kv_heads) * world.head_dim;
        let layer_len = world.num_blocks() * world.num_kv_heads * BLOCK * world.head_dim;
        let (q, wide_q) = rounded(world.num_rows() * stride, 1, 4.0);
        let ((keys, wide_keys), (values, wide_values)) = (rounded(2 * layer_len, 2, 2.0), rounded(2 * layer_len, 3, 2.0));
        let expected = world.on_cpu(&wide_q, [&wide_keys[layer_len..], &wide_values[layer_len..]]);

        let mut first_row = 0;
        let mut sequences = Vec::new();
        for (table, positions) in world.sequences.iter().enumerate() {
            sequences.push(TileSequence { first_row, positions, table });
            first_row += positions.len();
        }
        let tiles = tiles(&sequences, AttentionHopper::tile_tokens(world.num_heads / world.num_kv_heads));
        let mut out = device.upload(&vec![bf16::NAN; expected.len()]).unwrap();
        let mut lse = device.upload(&vec![f32::NAN; world.num_rows() * world.num_heads]).unwrap();
        let positions = device.upload(&world.sequences.concat()).unwrap();
        let (on_device, tables) = (device.upload(&tiles).unwrap(), device.upload(&world.tables()).unwrap());
        let from = PrefillAttention {
            q: &device.upload(&q).unwrap(),
            q_stride: stride,
            positions: positions.as_view(),
            num_tiles: tiles.len(),
            tiles: on_device.as_view(),
            block_tables: tables.as_view(),
            max_blocks: world.max_blocks(),
            keys: &device.upload(&keys).unwrap(),
            values: &device.upload(&values).unwrap(),
            layer: 1,
            num_blocks: world.num_blocks(),
            num_heads: world.num_heads,
            num_kv_heads: world.num_kv_heads,
            head_dim: world.head_dim,
            scale: SCALE,
        };
        let attention = AttentionHopper::new(&device).unwrap();
        attention.attend(&from, &mut out, Some(&mut lse)).unwrap();
        assert_close(&device.download(&out).unwrap(), &expected, 1e-2);
        assert_close(&device.download(&lse).unwrap(), &world.lse(&wide_q, &wide_keys[layer_len..]), 1e-4);
        // Without sums the outputs are the same bits.
        let mut alone = device.upload(&vec![bf16::NAN; expected.len()]).unwrap();
        attention.attend(&from, &mut alone, None).unwrap();
        assert_eq!(device.download(&alone).unwrap(), device.download(&out).unwrap());
    }

    fn one(head_dim: usize, num_heads: usize, num_kv_heads: usize, positions: impl IntoIterator<Item = u32>) -> World {
        World { head_dim, num_heads, num_kv_heads, sequences: vec![positions.into_iter().collect()] }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_one_token() {
        check(&one(128, 7, 1, 0..1));
        check(&one(64, 1, 1, 0..1));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_prompts_of_one_tile_of_keys() {
        check(&one(128, 1, 1, 0..100));
        check(&one(128, 14, 2, 0..31));
        check(&one(64, 9, 3, 0..100));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_prompts_of_several_tiles() {
        check(&one(128, 28, 4, 0..257));
        check(&one(64, 14, 2, 0..257));
        check(&one(64, 4, 2, 0..1000));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_a_long_prompt() {
        check(&one(128, 7, 1, 0..1000));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_a_chunk_that_goes_on_at_an_offset() {
        check(&one(128, 14, 2, 333..600));
        check(&one(64, 6, 2, 127..260));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_scattered_rows() {
        check(&one(128, 14, 2, [0, 5, 31, 32, 33, 90, 200, 201, 319]));
        check(&one(64, 3, 1, (0..150).map(|i| i * i % 7 + i * 9)));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_several_sequences_in_one_launch() {
        let sequences = vec![(0..130).collect(), vec![700], (64..90).collect(), vec![3, 128, 129, 500]];
        check(&World { head_dim: 128, num_heads: 28, num_kv_heads: 4, sequences: sequences.clone() });
        check(&World { head_dim: 64, num_heads: 4, num_kv_heads: 4, sequences });
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_more_items_than_multiprocessors() {
        let sequences = (0..90).map(|i| (i..2 * i + 1).collect()).collect();
        check(&World { head_dim: 128, num_heads: 12, num_kv_heads: 6, sequences });
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_large_groups() {
        check(&one(64, 64, 1, 40..50));
        check(&one(128, 48, 1, 300..305));
    }
}
