//! Pending transfers to and from the host tier while a GPU computes.

use engine::{BlockCopy, BlockFetch, BlockOffload};
use runner::testing::{tiny_config, tiny_cuda_backend};
use runner::{Architecture, DeviceStep, ModelSpec, RopeLayout};
use tokens::{BlockId, HostBlockId};

use crate::common::{SEED, World};
use crate::gpu::ROUNDING;

/// Blocks of the pool; those before the first that a world allocates are not used.
const NUM_BLOCKS: usize = 160;
const NUM_PLACES: usize = 120;
const BLOCK: usize = 32;
/// Tokens fetched from the host.
const PREFIX: usize = 256;
/// Blocks in transfer before those under test: each layer's copies take some milliseconds both ways, far longer than a tiny model's layer.
const NUM_OTHERS: usize = 100;

/// Creates a world whose layers are transferred one by one: 512 kB per layer for a block's keys.
fn world() -> World {
    let config =
        ModelSpec { num_heads: 64, num_kv_heads: 64, head_dim: 128, ..tiny_config(Architecture::Qwen2, RopeLayout::Half) };
    let backend = tiny_cuda_backend(&config, SEED, NUM_BLOCKS).expect("there is a GPU with some memory left");
    World::on(Box::new(backend.with_host_tier(NUM_PLACES).unwrap()), &config, ROUNDING)
}

fn offloads(blocks: &[BlockId], first_place: usize) -> Vec<BlockOffload> {
    let places = (first_place as u32..).map(HostBlockId);
    blocks.iter().zip(places).map(|(&src, dst)| BlockOffload { src, dst }).collect()
}

fn fetches(first_place: usize, blocks: &[BlockId]) -> Vec<BlockFetch> {
    let places = (first_place as u32..).map(HostBlockId);
    blocks.iter().zip(places).map(|(&dst, src)| BlockFetch { src, dst }).collect()
}

/// Reads keys and values of all layers of some slots of blocks.
fn read(world: &World, blocks: &[BlockId]) -> Vec<(Vec<f32>, Vec<f32>)> {
    let slots = (0..(blocks.len() * BLOCK) as u32).step_by(5);
    slots.flat_map(|slot| (0..world.config.num_layers()).map(move |layer| world.read(layer, blocks, slot))).collect()
}

/// Some rows after a prefix that is in the host places from 0 on.
struct Rows {
    tokens: Vec<u32>,
    /// Blocks of the prefix.
    prefix: Vec<BlockId>,
    /// Block that the prefix's last block is copied to.
    copied: BlockId,
    /// Blocks of the rows.
    tail: Vec<BlockId>,
    /// Blocks transferred before.
    others: Vec<BlockId>,
}

impl Rows {
    /// Computes the prefix and offloads it. Also returns the rows' logits.
    fn new(world: &mut World, num_rows: usize) -> (Self, Vec<Vec<f32>>) {
        let rows = Self {
            tokens: world.prompt(PREFIX + num_rows, 5),
            prefix: world.table(PREFIX),
            copied: world.table(1)[0],
            tail: world.table(num_rows),
            others: world.table(NUM_OTHERS * BLOCK),
        };
        world.prefill(&rows.tokens[..PREFIX], &rows.prefix);
        let expected = rows.logits(world, &rows.prefix);
        world.step(DeviceStep { offloads: &offloads(&rows.prefix, 0), ..DeviceStep::default() });
        (rows, expected)
    }

    /// Computes logits of the rows after the prefix in these blocks.
    fn logits(&self, world: &mut World, prefix: &[BlockId]) -> Vec<Vec<f32>> {
        self.logits_beside(world, DeviceStep::default(), prefix)
    }

    /// Computes the same in a step that does other work, too.
    fn logits_beside(&self, world: &mut World, step: DeviceStep<'_>, prefix: &[BlockId]) -> Vec<Vec<f32>> {
        let table = [prefix, &self.tail].concat();
        world.logits_beside(step, &self.tokens, &table, &(PREFIX..self.tokens.len()).collect::<Vec<_>>())
    }

    /// Returns logits of a step that fetches the prefix and overwrites blocks that it offloads, and true if the offloaded blocks arrived
    /// unchanged.
    fn step(&self, world: &mut World, waits: bool) -> (Vec<Vec<f32>>, bool) {
        let earlier = world.prompt(self.tail.len() * BLOCK, 6);
        world.prefill(&earlier, &self.tail);
        world.step(DeviceStep { zeros: &[&self.prefix[..], &[self.copied]].concat(), ..DeviceStep::default() });
        let before = read(world, &self.tail);
        let (first_other, first_tail) = (self.prefix.len(), self.prefix.len() + NUM_OTHERS);
        let offloads = [offloads(&self.others, first_other), offloads(&self.tail, first_tail)].concat();
        let fetched = [fetches(first_other, &self.others), fetches(0, &self.prefix)].concat();
        let mut step = DeviceStep { offloads: &offloads, fetches: &fetched, ..DeviceStep::default() };
        if waits {
            world.step(std::mem::take(&mut step));
        }
        let (last, prefix) = self.prefix.split_last().unwrap();
        let copies = [BlockCopy { src: *last, dst: self.copied, num_tokens: BLOCK as u32 }];
        let logits = self.logits_beside(world, DeviceStep { copies: &copies, ..step }, &[prefix, &[self.copied]].concat());
        let back = &self.others[..self.tail.len()];
        world.step(DeviceStep { fetches: &fetches(first_tail, back), ..DeviceStep::default() });
        (logits, read(world, back) == before)
    }
}

/// Checks a step of `num_rows` rows several times: during its transfers and after them.
#[track_caller]
fn check(num_rows: usize) {
    let mut world = world();
    let (rows, expected) = Rows::new(&mut world, num_rows);
    for waits in [true, false, true, false] {
        let (logits, is_offloaded) = rows.step(&mut world, waits);
        assert!(logits == expected, "{num_rows} rows get other bits, waits: {waits}");
        assert!(is_offloaded, "{num_rows} rows wrote over what was on its way, waits: {waits}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_rows_beside_transfers_give_the_bits_of_rows_behind_them() {
    check(40);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_row_beside_transfers_gives_the_bits_of_a_recorded_step_behind_them() {
    check(1);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_step_without_rows_leaves_nothing_on_its_way() {
    let mut world = world();
    let table = world.table(NUM_OTHERS * BLOCK);
    let tokens = world.prompt(PREFIX, 7);
    world.prefill(&tokens, &table);
    let blocks = &table[..PREFIX / BLOCK];
    let before = read(&world, blocks);
    let (offloads, fetches) = (offloads(&table, 0), fetches(0, &table));
    world.step(DeviceStep { offloads: &offloads, zeros: &table, fetches: &fetches, ..DeviceStep::default() });
    assert!(read(&world, blocks) == before, "blocks are not back");
    let told = world.step(DeviceStep::default()).transfer.expect("the fetch was timed");
    assert!(told.bytes == NUM_OTHERS as u64 * 3 * 2 * (512 << 10) && told.seconds > 0.0, "{told:?}");
    assert!(world.step(DeviceStep::default()).transfer.is_none(), "it is told once");
}
