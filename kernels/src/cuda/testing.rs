//! Helpers shared by the tests of kernels.

use std::sync::Arc;

use half::bf16;

use super::{CudaSlice, Device, PagedQueries, Pool, PoolShape, TileSequence};
use crate::cpu::{self, AttentionShape, KvDtype, KvLayer, KvShape, QuerySequence, Threads, testing::noise};

/// Opens the device of the tests; without one, the tests are ignored.
pub(crate) fn device() -> Arc<Device> {
    Device::open(0).expect("a CUDA device")
}

/// Elements of either width.
pub(crate) trait Number: Copy {
    fn wide(self) -> f32;
}

impl Number for f32 {
    fn wide(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

/// Checks that `‖found − expected‖ <= tolerance ‖expected‖`, and nothing is NaN.
#[track_caller]
pub(crate) fn assert_close<T: Number>(found: &[T], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = || found.iter().zip(expected).map(|(found, expected)| (f64::from(found.wide()), f64::from(*expected)));
    let distance = norm(&mut pairs().map(|(found, expected)| found - expected));
    let length = norm(&mut pairs().map(|(_, expected)| expected));
    assert!(distance <= f64::from(tolerance) * length.max(1e-12), "off by {distance} of {length}");
}

pub(crate) fn rounded(numbers: impl IntoIterator<Item = f32>) -> Vec<bf16> {
    numbers.into_iter().map(bf16::from_f32).collect()
}

pub(crate) fn wide(numbers: &[bf16]) -> Vec<f32> {
    numbers.iter().map(|x| x.to_f32()).collect()
}

/// A pool of random elements on the device, and the same elements in f32 on the CPU, for a kernel and its CPU counterpart.
pub(crate) struct TwinPools {
    pub(crate) pool: Pool,
    pub(crate) layers: Vec<KvLayer>,
}

impl TwinPools {
    pub(crate) fn new(device: &Arc<Device>, shape: PoolShape) -> Self {
        let mut pool = Pool::new(device, shape).unwrap();
        let host = [1, 2].map(|seed| rounded(noise(shape.num_elements(), seed)));
        let (mut keys, mut values) = pool.parts_mut();
        device.stream().memcpy_htod(&host[0], &mut keys).unwrap();
        device.stream().memcpy_htod(&host[1], &mut values).unwrap();
        let all: Vec<u32> = (0..shape.num_slots() as u32).collect();
        let layers = (0..shape.num_layers).map(|layer| {
            let of_slots = |numbers| all.iter().flat_map(|slot| slot_of(numbers, shape, layer, *slot)).collect::<Vec<f32>>();
            let kv_shape = KvShape { num_blocks: shape.num_blocks, num_kv_heads: shape.num_kv_heads, head_dim: shape.head_dim };
            let mut kv = KvLayer::new(KvDtype::F32, kv_shape);
            kv.write(&Threads::new(1).unwrap(), &all, &of_slots(&host[0]), &of_slots(&host[1]), shape.width());
            kv
        });
        Self { layers: layers.collect(), pool }
    }

    /// Checks that every slot of the device equals the CPU's: bit by bit if bf16 can represent it, as for everything that was not computed.
    #[track_caller]
    pub(crate) fn assert_close(&self, device: &Arc<Device>, tolerance: f32) {
        let shape = self.pool.shape();
        let [keys, values] = [self.pool.keys(), self.pool.values()].map(|numbers| device.download(&numbers).unwrap());
        for (layer, expected) in self.layers.iter().enumerate() {
            for slot in 0..shape.num_slots() as u32 {
                let (mut k, mut v) = (vec![0.0; shape.width()], vec![0.0; shape.width()]);
                expected.read(slot, &mut k, &mut v);
                for (found, expected) in [(&keys, k), (&values, v)] {
                    let found = slot_of(found, shape, layer, slot);
                    if wide(&rounded(expected.iter().copied())) == expected {
                        assert_eq!(found, expected, "layer {layer} slot {slot}");
                    } else {
                        super::testing::assert_close(&found, &expected, tolerance);
                    }
                }
            }
        }
    }
}

/// Returns all heads of one slot, from the layout of [`Pool`].
fn slot_of(numbers: &[bf16], shape: PoolShape, layer: usize, slot: u32) -> Vec<f32> {
    let (block, offset) = (slot as usize / 32, slot as usize % 32);
    let head = |head| {
        let at = (((layer * shape.num_blocks + block) * shape.num_kv_heads + head) * 32 + offset) * shape.head_dim;
        wide(&numbers[at..at + shape.head_dim])
    };
    (0..shape.num_kv_heads).flat_map(head).collect()
}

/// Positions per block of the pool.
const BLOCK: usize = 32;
/// Number of layers of a world's pool; the last is the one in use, the others hold NaN.
const NUM_LAYERS: usize = 2;
/// Factor of the scores, times the root of head_dim: weights neither equal nor all on one key.
const SCALE: f32 = 0.7;

/// Sequences over a shuffled pool whose unused slots hold NaN, and the batch of their query rows, sequences concatenated.
pub(crate) struct PagedWorld {
    pub(crate) head_dim: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    /// Positions of the query rows of each sequence, ascending.
    pub(crate) sequences: Vec<Vec<u32>>,
    /// Last positions that a row attends to.
    pub(crate) window: u32,
}

/// A [`PagedWorld`] on the device.
pub(crate) struct PagedOnDevice {
    queries: CudaSlice<bf16>,
    positions: CudaSlice<u32>,
    block_tables: CudaSlice<u32>,
    keys: CudaSlice<bf16>,
    values: CudaSlice<bf16>,
}

/// Returns noise rounded to bf16, with the spread of real keys.
fn rounded_noise(len: usize, seed: u32) -> Vec<f32> {
    noise(len, seed).into_iter().map(|x| bf16::from_f32(4.0 * x).to_f32()).collect()
}

impl PagedWorld {
    pub(crate) fn num_rows(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    fn len(sequence: &[u32]) -> usize {
        *sequence.last().expect("a sequence has rows") as usize + 1
    }

    fn max_blocks(&self) -> usize {
        self.sequences.iter().map(|rows| Self::len(rows).div_ceil(BLOCK)).max().expect("a world has sequences") + 1
    }

    /// Returns one more than are in use.
    fn num_blocks(&self) -> usize {
        self.sequences.iter().map(|rows| Self::len(rows).div_ceil(BLOCK)).sum::<usize>() + 1
    }

    fn row_stride(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Returns the blocks of each sequence; no two share one.
    fn tables(&self) -> Vec<Vec<u32>> {
        let num_blocks = self.num_blocks();
        let step = (num_blocks / 2..num_blocks * 2).find(|step| gcd(*step, num_blocks) == 1).unwrap_or(1);
        let mut shuffled = (0..num_blocks).map(|i| (i * step + 3) % num_blocks);
        let blocks =
            |rows: &Vec<u32>| shuffled.by_ref().take(Self::len(rows).div_ceil(BLOCK)).map(|block| block as u32).collect();
        self.sequences.iter().map(blocks).collect()
    }

    fn queries(&self) -> Vec<f32> {
        rounded_noise(self.num_rows() * self.row_stride(), 1)
    }

    /// Returns keys (or values) of a sequence, `[len][num_kv_heads][head_dim]`.
    fn numbers(&self, sequence: usize, seed: u32) -> Vec<f32> {
        let len = Self::len(&self.sequences[sequence]);
        rounded_noise(len * self.num_kv_heads * self.head_dim, seed + 10 * sequence as u32)
    }

    pub(crate) fn sequence_rows(&self) -> Vec<TileSequence<'_>> {
        let mut first_row = 0;
        let rows = self.sequences.iter().enumerate().map(|(table, positions)| {
            first_row += positions.len();
            TileSequence { first_row: first_row - positions.len(), positions, table }
        });
        rows.collect()
    }

    fn cpu_layer(&self, threads: &Threads) -> KvLayer {
        let shape = KvShape { num_blocks: self.num_blocks(), num_kv_heads: self.num_kv_heads, head_dim: self.head_dim };
        let mut layer = KvLayer::new(KvDtype::F32, shape);
        for (i, table) in self.tables().iter().enumerate() {
            let slots: Vec<u32> =
                (0..Self::len(&self.sequences[i])).map(|p| table[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32).collect();
            layer.write(threads, &slots, &self.numbers(i, 2), &self.numbers(i, 3), shape.width());
        }
        layer
    }

    fn cpu_shape(&self) -> AttentionShape {
        let scale = SCALE / (self.head_dim as f32).sqrt();
        AttentionShape { num_heads: self.num_heads, scale, q_stride: self.row_stride(), window: self.window }
    }

    /// Computes outputs of all rows and their lse on the CPU.
    pub(crate) fn expected(&self) -> (Vec<f32>, Vec<f32>) {
        let threads = Threads::new(2).unwrap();
        let (tables, layer, queries) = (self.tables(), self.cpu_layer(&threads), self.queries());
        let rows = self.sequence_rows();
        let sequences: Vec<QuerySequence<'_>> = rows
            .iter()
            .map(|rows| QuerySequence { first_row: rows.first_row, positions: rows.positions, block_table: &tables[rows.table] })
            .collect();
        let mut out = vec![0.0; self.num_rows() * self.num_heads * self.head_dim];
        cpu::attention(&threads, self.cpu_shape(), &queries, &layer, &sequences, &mut out);
        let mut lse = Vec::new();
        for rows in &rows {
            let keys = self.numbers(rows.table, 2);
            for (i, position) in rows.positions.iter().enumerate() {
                let row = &queries[(rows.first_row + i) * self.row_stride()..];
                lse.extend((0..self.num_heads).map(|head| self.lse(&row[head * self.head_dim..], head, &keys, *position)));
            }
        }
        (out, lse)
    }

    /// Returns the natural logarithm of the sum of exponentials, in f64.
    fn lse(&self, query: &[f32], head: usize, keys: &[f32], position: u32) -> f32 {
        let column = head / (self.num_heads / self.num_kv_heads) * self.head_dim;
        let scores = ((position + 1).saturating_sub(self.window) as usize..=position as usize).map(|p| {
            let key = &keys[p * self.num_kv_heads * self.head_dim + column..][..self.head_dim];
            f64::from(self.cpu_shape().scale) * query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
        });
        scores.map(f64::exp).sum::<f64>().ln() as f32
    }

    /// Computes the attention that positions `..len` of a sequence receive from `chosen` of its rows, on the CPU.
    pub(crate) fn received(&self, sequence: usize, chosen: &[usize], len: usize) -> Vec<f32> {
        let threads = Threads::new(2).unwrap();
        let (first, stride, queries) = (self.sequence_rows()[sequence].first_row, self.row_stride(), self.queries());
        let q: Vec<f32> = chosen.iter().flat_map(|i| queries[(first + i) * stride..][..stride].to_vec()).collect();
        let positions: Vec<u32> = chosen.iter().map(|i| self.sequences[sequence][*i]).collect();
        let rows = QuerySequence { first_row: 0, positions: &positions, block_table: &self.tables()[sequence] };
        let mut received = vec![0.0; len];
        cpu::add_attention_received(&threads, self.cpu_shape(), &q, &self.cpu_layer(&threads), &rows, &mut received);
        received
    }

    fn pool(&self, seed: u32) -> Vec<bf16> {
        let (hd, heads, num_blocks) = (self.head_dim, self.num_kv_heads, self.num_blocks());
        let mut pool = vec![bf16::NAN; NUM_LAYERS * num_blocks * heads * BLOCK * hd];
        for (i, table) in self.tables().iter().enumerate() {
            for (at, from) in self.numbers(i, seed).chunks(hd).enumerate() {
                let (p, head) = (at / heads, at % heads);
                let block = (NUM_LAYERS - 1) * num_blocks + table[p / BLOCK] as usize;
                let to = ((block * heads + head) * BLOCK + p % BLOCK) * hd;
                pool[to..to + hd].iter_mut().zip(from).for_each(|(to, from)| *to = bf16::from_f32(*from));
            }
        }
        pool
    }

    pub(crate) fn upload(&self, device: &Device) -> PagedOnDevice {
        let mut tables = Vec::new();
        for mut table in self.tables() {
            // A block that does not exist: reading it would leave the pool.
            table.resize(self.max_blocks(), u32::MAX / 64);
            tables.extend(table);
        }
        let queries: Vec<bf16> = self.queries().into_iter().map(bf16::from_f32).collect();
        PagedOnDevice {
            queries: device.upload(&queries).unwrap(),
            positions: device.upload(&self.sequences.concat()).unwrap(),
            block_tables: device.upload(&tables).unwrap(),
            keys: device.upload(&self.pool(2)).unwrap(),
            values: device.upload(&self.pool(3)).unwrap(),
        }
    }

    /// Checks that outputs are as close as bf16 weights allow, in total and for each row.
    #[track_caller]
    pub(crate) fn assert_rows(&self, found: &[bf16], expected: &[f32], case: &str) {
        assert_close(found, expected, 8e-3);
        for (i, (found, expected)) in found.chunks(self.head_dim).zip(expected.chunks(self.head_dim)).enumerate() {
            let distance: f32 = found.iter().zip(expected).map(|(a, b)| (a.to_f32() - b).powi(2)).sum();
            let length: f32 = expected.iter().map(|x| x * x).sum();
            assert!(distance.sqrt() <= 0.03 * length.sqrt() + 1e-3, "{case}, row and head {i}: off by {distance} of {length}");
        }
    }

    #[track_caller]
    pub(crate) fn assert_lse(&self, found: &[f32], expected: &[f32], case: &str) {
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() <= 1e-3, "{case}, row and head {i}: {found} is not {expected}");
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl PagedOnDevice {
    pub(crate) fn paged(&self, world: &PagedWorld) -> PagedQueries<'_> {
        PagedQueries {
            queries: &self.queries,
            row_stride: world.row_stride(),
            positions: self.positions.as_view(),
            num_heads: world.num_heads,
            scale: world.cpu_shape().scale,
            block_tables: self.block_tables.as_view(),
            max_blocks: world.max_blocks(),
            keys: self.keys.as_view(),
            values: self.values.as_view(),
            layer: NUM_LAYERS - 1,
            num_blocks: world.num_blocks(),
            num_kv_heads: world.num_kv_heads,
            head_dim: world.head_dim,
            window: world.window,
        }
    }

    /// Adds rows at `position` whose queries are NaN and whose tables contain no valid block.
    pub(crate) fn pad(&mut self, device: &Device, num_rows: usize, position: u32) {
        let old_rows = self.positions.len();
        let (stride, max_blocks) = (self.queries.len() / old_rows, self.block_tables.len() / old_rows);
        let mut queries = device.download(&self.queries).unwrap();
        queries.resize((old_rows + num_rows) * stride, bf16::NAN);
        let mut positions = device.download(&self.positions).unwrap();
        positions.resize(old_rows + num_rows, position);
        let mut tables = device.download(&self.block_tables).unwrap();
        tables.resize((old_rows + num_rows) * max_blocks, u32::MAX / 64);
        self.queries = device.upload(&queries).unwrap();
        self.positions = device.upload(&positions).unwrap();
        self.block_tables = device.upload(&tables).unwrap();
    }
}
