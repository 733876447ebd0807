//! A tiny model whose pool is written and read position by position.

use engine::{BlockCopy, BlockEntry, Drift, ProbedSequence, Row, ScheduledSequence, SpanCopy, TokenDeviation, TokenLogProbs};
use runner::backend::cpu::CpuBackend;
use runner::testing::{tiny_backend, tiny_config};
use runner::{Architecture, Device, DeviceOutput, DeviceStep, InputBatch, KvDtype, ModelSpec, RopeLayout, ScoreRow};
use tokens::{BlockId, BlockSize, DonorId, RequestId, TokenId, TokenRange};

pub(crate) const NUM_BLOCKS: usize = 256;
/// Seed of all models' weights.
pub(crate) const SEED: u64 = 42;
/// First block to allocate: those below are for tests that name blocks.
const FIRST_BLOCK: u32 = 32;
const BLOCK: u32 = BlockSize::DEFAULT.get();

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 33) as u32 % n
    }
}

/// Returns one model of each family, with both formats of the pool.
pub(crate) fn all_families() -> Vec<(ModelSpec, KvDtype)> {
    let families = [
        tiny_config(Architecture::Llama, RopeLayout::Interleaved),
        tiny_config(Architecture::Qwen2, RopeLayout::Half),
        ModelSpec { tied_head: false, ..tiny_config(Architecture::Qwen3, RopeLayout::Half) },
        tiny_config(Architecture::Gemma3, RopeLayout::Half),
    ];
    families.into_iter().flat_map(|config| [(config.clone(), KvDtype::F32), (config, KvDtype::F16)]).collect()
}

/// Returns `config` with heads of another size.
pub(crate) fn with_head_dim(head_dim: usize, config: ModelSpec) -> ModelSpec {
    ModelSpec { head_dim, attention_scale: 1.0 / (head_dim as f32).sqrt(), ..config }
}

/// A device whose pool and logits can be read.
pub(crate) trait Readable: Device {
    fn read_slot(&self, layer: usize, slot: u32) -> (Vec<f32>, Vec<f32>);

    /// Returns logits of some rows of the last step.
    fn logits(&mut self, rows: &[usize]) -> &[f32];
}

impl Readable for CpuBackend {
    fn logits(&mut self, rows: &[usize]) -> &[f32] {
        self.logits(rows)
    }

    fn read_slot(&self, layer: usize, slot: u32) -> (Vec<f32>, Vec<f32>) {
        self.read_slot(layer, slot)
    }
}

/// Tolerances of values that should be equal; all are relative.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounding {
    /// Logits of one row, or K or V of one token, in steps of other row counts; Euclidean. 0: bitwise equal.
    pub(crate) batch: f32,
    /// An element of the pool that was rotated there and back, relative to the largest beside it.
    pub(crate) moved: f32,
    /// K or V of a token computed again, relative to their norm.
    pub(crate) stored: f32,
}

impl Rounding {
    fn of(dtype: KvDtype) -> Self {
        let stored = if dtype == KvDtype::F32 { 1e-6 } else { 2e-3 };
        Self { batch: 0.0, moved: 1e-5, stored }
    }
}

pub(crate) struct World {
    pub(crate) device: Box<dyn Readable>,
    pub(crate) config: ModelSpec,
    pub(crate) rounding: Rounding,
    next_block: u32,
}

/// Runs `check` on a model of each family, with both formats of the pool.
pub(crate) fn on_all_families(mut check: impl FnMut(&mut World)) {
    for (config, dtype) in all_families() {
        check(&mut World::new(&config, dtype));
    }
}

/// Returns the distance of `found` from `expected`, logits of a row or K or V of a token, relative to the norm of `expected`.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f32 {
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    length(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / length(&mut expected.iter().copied())
}

impl World {
    pub(crate) fn new(config: &ModelSpec, dtype: KvDtype) -> Self {
        Self::on(Box::new(tiny_backend(config, SEED, dtype, NUM_BLOCKS)), config, Rounding::of(dtype))
    }

    pub(crate) fn on(device: Box<dyn Readable>, config: &ModelSpec, rounding: Rounding) -> Self {
        Self { device, config: config.clone(), rounding, next_block: FIRST_BLOCK }
    }

    /// Frees all blocks and their content.
    pub(crate) fn clear(&mut self) {
        self.next_block = FIRST_BLOCK;
    }

    /// Returns a prompt of the model's tokens, the same for the same seed.
    pub(crate) fn prompt(&self, len: usize, seed: u64) -> Vec<u32> {
        let mut random = Random(seed);
        (0..len).map(|_| random.below(self.config.vocab_size as u32)).collect()
    }

    /// Checks rows that were computed in steps of other row counts than `expected`.
    #[track_caller]
    pub(crate) fn assert_near(&self, found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
            let distance = if found == expected { 0.0 } else { distance(found, expected) };
            assert!(distance <= self.rounding.batch, "{what}: row {row} of {:?} is off by {distance}", self.config.architecture);
        }
    }

    /// Checks elements of the pool that were rotated or stored once more.
    #[track_caller]
    pub(crate) fn assert_moved(&self, found: &[f32], expected: &[f32], what: &str) {
        let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= self.rounding.moved * largest, "{what}: {found} is not {expected}");
        }
    }

    /// Allocates fresh blocks for `len` positions.
    pub(crate) fn table(&mut self, len: usize) -> Vec<BlockId> {
        let blocks = BlockSize::DEFAULT.blocks_for(len) as u32;
        let first = self.next_block;
        self.next_block += blocks;
        assert!(self.next_block as usize <= NUM_BLOCKS, "the test needs a larger pool");
        (first..first + blocks).map(BlockId).collect()
    }

    /// Computes `rows` of `tokens` and returns their logits.
    pub(crate) fn logits(&mut self, tokens: &[u32], table: &[BlockId], rows: &[usize]) -> Vec<Vec<f32>> {
        self.logits_of_batch(&[(tokens, table, rows)]).pop().unwrap()
    }

    /// Computes the same, with moved tokens that follow.
    pub(crate) fn logits_following(
        &mut self,
        tokens: &[u32],
        table: &[BlockId],
        rows: &[usize],
        drift: Vec<Drift>,
    ) -> Vec<Vec<f32>> {
        let mut sequence = scheduled(tokens, table, rows);
        sequence.drift = drift;
        self.run(&[sequence])
    }

    /// Computes all rows.
    pub(crate) fn prefill(&mut self, tokens: &[u32], table: &[BlockId]) -> Vec<Vec<f32>> {
        self.logits(tokens, table, &(0..tokens.len()).collect::<Vec<_>>())
    }

    pub(crate) fn logits_of_batch(&mut self, batch: &[(&[u32], &[BlockId], &[usize])]) -> Vec<Vec<Vec<f32>>> {
        let sequences: Vec<_> = batch.iter().map(|(tokens, table, rows)| scheduled(tokens, table, rows)).collect();
        let mut logits = self.run(&sequences).into_iter();
        batch.iter().map(|(_, _, rows)| logits.by_ref().take(rows.len()).collect()).collect()
    }

    /// Returns the attention that the last of `rows` paid to each position.
    pub(crate) fn attention_paid(&mut self, tokens: &[u32], table: &[BlockId], rows: &[usize]) -> Vec<f32> {
        let other = self.table(1);
        let mut sequence = scheduled(tokens, table, rows);
        sequence.watch = vec![TokenRange::new(0, 1)];
        let batch = InputBatch::new(&[scheduled(tokens, &other, &[0]), sequence], BlockSize::DEFAULT);
        let mut attention = self.step(DeviceStep { batch, ..DeviceStep::default() }).attention;
        assert_eq!(attention.len(), 1, "one sequence is watched");
        attention.remove(0)
    }

    /// Returns logits of all rows of `sequences`.
    fn run(&mut self, sequences: &[ScheduledSequence]) -> Vec<Vec<f32>> {
        self.logits_of_step(DeviceStep { batch: InputBatch::new(sequences, BlockSize::DEFAULT), ..DeviceStep::default() })
    }

    /// Runs a step and returns logits of all its rows.
    fn logits_of_step(&mut self, step: DeviceStep<'_>) -> Vec<Vec<f32>> {
        let all: Vec<usize> = (0..step.batch.num_rows()).collect();
        self.step(step);
        self.device.logits(&all).chunks(self.config.vocab_size).map(<[f32]>::to_vec).collect()
    }

    /// Runs `step`, together with some rows of `tokens`, and returns their logits.
    #[cfg(feature = "cuda")]
    pub(crate) fn logits_beside(
        &mut self,
        step: DeviceStep<'_>,
        tokens: &[u32],
        table: &[BlockId],
        rows: &[usize],
    ) -> Vec<Vec<f32>> {
        let batch = InputBatch::new(&[scheduled(tokens, table, rows)], BlockSize::DEFAULT);
        self.logits_of_step(DeviceStep { batch, ..step })
    }

    /// Computes all rows of `tokens` and returns the scores of `scored`.
    pub(crate) fn scores(&mut self, tokens: &[u32], table: &[BlockId], scored: Vec<ScoreRow>) -> Vec<TokenLogProbs> {
        let rows: Vec<usize> = (0..tokens.len()).collect();
        let batch = InputBatch::new(&[scheduled(tokens, table, &rows)], BlockSize::DEFAULT);
        self.step(DeviceStep { batch, scored, ..DeviceStep::default() }).scores
    }

    /// Runs a step from start to end.
    pub(crate) fn step(&mut self, step: DeviceStep<'_>) -> DeviceOutput {
        self.device.begin(step).unwrap();
        self.device.finish().unwrap()
    }

    /// Measures the moved spans of a sequence. The steps after it begin at the first layer.
    pub(crate) fn probe(&mut self, sequence: &ProbedSequence) -> Vec<TokenDeviation> {
        let probes = std::slice::from_ref(sequence);
        let mut probed = self.step(DeviceStep { probes, ..DeviceStep::default() }).probed;
        self.step(DeviceStep::default());
        probed.remove(0).deviations
    }

    /// Moves spans and returns their deviations from a fresh layer 0.
    pub(crate) fn move_spans(&mut self, spans: &[SpanCopy]) -> Vec<f32> {
        self.step(DeviceStep { spans, ..DeviceStep::default() }).span_deviations
    }

    pub(crate) fn span(src: &[BlockId], src_pos: u32, dst: &[BlockId], dst_pos: u32, tokens: &[u32]) -> SpanCopy {
        SpanCopy {
            request_id: RequestId(0),
            donor: DonorId(0),
            src_blocks: src[(src_pos / BLOCK) as usize..].to_vec(),
            src_pos,
            dst_blocks: dst[(dst_pos / BLOCK) as usize..].to_vec(),
            dst_pos,
            token_ids: tokens.iter().map(|id| TokenId(*id)).collect(),
        }
    }

    pub(crate) fn move_span(&mut self, src: &[BlockId], src_pos: u32, dst: &[BlockId], dst_pos: u32, tokens: &[u32]) {
        let span = Self::span(src, src_pos, dst, dst_pos, tokens);
        self.move_spans(&[span]);
    }

    pub(crate) fn copy_block(&mut self, src: BlockId, dst: BlockId, num_tokens: u32) {
        let copies = &[BlockCopy { src, dst, num_tokens }];
        self.step(DeviceStep { copies, ..DeviceStep::default() });
    }

    /// Computes `span` at `src_pos`, moves it to `dst_pos`, and returns its deviation there as if it were `claimed`.
    pub(crate) fn deviation_of_move(&mut self, span: &[u32], claimed: &[u32], src_pos: u32, dst_pos: u32) -> f32 {
        let end = |pos: u32| pos as usize + span.len();
        let (src, dst) = (self.table(end(src_pos)), self.table(end(dst_pos)));
        let tokens = [vec![1; src_pos as usize], span.to_vec()].concat();
        let rows: Vec<usize> = (src_pos as usize..tokens.len()).collect();
        self.logits(&tokens, &src, &rows);
        self.move_spans(&[Self::span(&src, src_pos, &dst, dst_pos, claimed)])[0]
    }

    /// Computes `span` at `pos`, and moves it as if it had been and were `blocks` blocks further on: its keys are rotated wrongly.
    pub(crate) fn deviation_of_wrong_rotation(&mut self, span: &[u32], pos: u32, blocks: u32) -> f32 {
        let tokens = [vec![1; pos as usize], span.to_vec()].concat();
        let table = self.table(tokens.len());
        self.prefill(&tokens, &table);
        let other = self.table(tokens.len());
        let copy = Self::span(&table, pos, &other, pos, span);
        let claimed = pos + blocks * BLOCK;
        self.move_spans(&[SpanCopy { src_pos: claimed, dst_pos: claimed, ..copy }])[0]
    }

    pub(crate) fn read(&self, layer: usize, table: &[BlockId], pos: u32) -> (Vec<f32>, Vec<f32>) {
        self.device.read_slot(layer, table[(pos / BLOCK) as usize].0 * BLOCK + pos % BLOCK)
    }
}

/// Schedules some rows of `tokens`.
fn scheduled(tokens: &[u32], table: &[BlockId], rows: &[usize]) -> ScheduledSequence {
    ScheduledSequence {
        request_id: RequestId(0),
        rows: rows.iter().map(|row| Row { token: TokenId(tokens[*row]), position: *row as u32 }).collect(),
        block_table: BlockEntry::table_of(table.iter().copied(), BlockSize::DEFAULT),
        sample: false,
        watch: Vec::new(),
        drift: Vec::new(),
    }
}
