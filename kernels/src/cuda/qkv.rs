//! Processing of rows of the fused Q, K, V product between their matrix product and attention.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, LaunchArgs, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};
use super::paged::check_head_dim;
use super::pool::Pool;
use super::rope::RopeTable;

/// Threads per block. Chosen: a row of one sequence is spread over several multiprocessors.
const THREADS: usize = 128;

/// Elements per thread, as in `qkv.cu`.
const NUMBERS: usize = 8;

// Modes of a launch, as in `qkv.cu`.
const ROTATE: i32 = 1;
const SCATTER: i32 = 2;
const KEEP_KV: i32 = 4;

/// Heads of a row `[num_heads of Q, num_kv_heads of K, num_kv_heads of V]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkvShape {
    /// Number of query heads; 0 if keys and values are computed alone.
    pub num_heads: usize,
    /// Number of key and value heads.
    pub num_kv_heads: usize,
    /// Elements per head: 64, 128 or 256.
    pub head_dim: usize,
}

impl QkvShape {
    /// Returns the elements per row.
    #[must_use]
    pub fn width(self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Returns the column at which keys begin in a row.
    #[must_use]
    pub fn k_column(self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Returns the column at which values begin in a row.
    #[must_use]
    pub fn v_column(self) -> usize {
        (self.num_heads + self.num_kv_heads) * self.head_dim
    }
}

/// Weights that a layer applies to the product before rotation.
pub struct QkvWeights<'a> {
    /// `[width]`; begins at a multiple of 16 bytes.
    pub bias: Option<CudaView<'a, f32>>,
    /// Weights of [`crate::cpu::rms_norm_heads`] for heads of Q and of K, `[head_dim]` each.
    pub norms: Option<(CudaView<'a, f32>, CudaView<'a, f32>)>,
    /// Epsilon of the norms.
    pub epsilon: f32,
}

/// Destination of the keys and values of rows.
pub struct Scatter<'a> {
    /// Pool with the same heads as the rows.
    pub pool: &'a mut Pool,
    /// Layer of the pool.
    pub layer: usize,
    /// Slot of each row. A row whose slot is [`super::NO_ROW`] is neither read nor written.
    pub slots: CudaView<'a, u32>,
    /// Changes of the rows, for moved tokens that follow them.
    pub differences: Option<Differences<'a>>,
}

/// New minus old keys and values of some rows.
///
/// The new ones are rounded to bf16 as the pool stores them, so that unchanged elements differ by exactly 0.
pub struct Differences<'a> {
    /// Row of `out` for each row, -1 for none.
    pub rows: CudaView<'a, i32>,
    /// `[rows][K of all heads as before rotation, then V]`
    pub out: &'a mut CudaSlice<f32>,
}

/// Bias, norms of heads, rotation, and writing keys and values to their slots: [`crate::cpu::rms_norm_heads`], [`crate::cpu::rope`] and
/// [`crate::cpu::KvLayer::write`] in one pass.
pub struct Qkv {
    device: Arc<Device>,
    function: CudaFunction,
    shape: QkvShape,
}

impl Qkv {
    /// Loads the function for rows of one shape, of heads of 64, 128 or 256 elements.
    ///
    /// # Errors
    /// If the device cannot run it.
    pub fn new(device: &Arc<Device>, shape: QkvShape) -> Result<Self, DeviceError> {
        check_head_dim(shape.head_dim);
        let function = device.function("qkv", &format!("qkv_{}", shape.head_dim), 0)?;
        Ok(Self { device: Arc::clone(device), function, shape })
    }

    /// Adds the bias, normalises and rotates, in place. The pool is not touched.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If rows or weights do not lie in their buffers.
    pub fn rotate(
        &self,
        qkv: &mut CudaSlice<bf16>,
        num_rows: usize,
        positions: &CudaView<'_, u32>,
        weights: &QkvWeights<'_>,
        rope: &RopeTable,
    ) -> Result<(), DeviceError> {
        self.launch(&Rows { qkv, num_rows, positions }, Some(weights), rope, None, ROTATE | KEEP_KV)
    }

    /// Runs as [`Qkv::rotate`], and writes keys and values to their slots. They are also written back to the rows only if `keep_kv`.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If rows or weights do not lie in their buffers, or the pool has other heads.
    #[expect(clippy::needless_pass_by_value, reason = "it holds the buffers that are written")]
    #[expect(clippy::too_many_arguments, reason = "the arguments of `rotate` in the same order, and the destination")]
    pub fn rotate_and_scatter(
        &self,
        qkv: &mut CudaSlice<bf16>,
        num_rows: usize,
        positions: &CudaView<'_, u32>,
        weights: &QkvWeights<'_>,
        rope: &RopeTable,
        scatter: Scatter<'_>,
        keep_kv: bool,
    ) -> Result<(), DeviceError> {
        let mode = ROTATE | SCATTER | if keep_kv { KEEP_KV } else { 0 };
        self.launch(&Rows { qkv, num_rows, positions }, Some(weights), rope, Some(&scatter), mode)
    }

    /// Writes keys and values of rows that were rotated before to their slots. Positions are read for differences alone.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If rows do not lie in their buffers, or the pool has other heads.
    #[expect(clippy::needless_pass_by_value, reason = "it holds the buffers that are written")]
    pub fn scatter(
        &self,
        qkv: &CudaSlice<bf16>,
        num_rows: usize,
        positions: &CudaView<'_, u32>,
        rope: &RopeTable,
        scatter: Scatter<'_>,
    ) -> Result<(), DeviceError> {
        self.launch(&Rows { qkv, num_rows, positions }, None, rope, Some(&scatter), SCATTER)
    }

    fn launch(
        &self,
        rows: &Rows<'_>,
        weights: Option<&QkvWeights<'_>>,
        rope: &RopeTable,
        scatter: Option<&Scatter<'_>>,
        mode: i32,
    ) -> Result<(), DeviceError> {
        let (shape, num_rows) = (self.shape, rows.num_rows);
        assert!(rows.qkv.len() >= num_rows * shape.width() && rows.positions.len() >= num_rows, "rows lie in their buffers");
        let heads_here = 2 * shape.num_kv_heads + if mode & ROTATE == 0 { 0 } else { shape.num_heads };
        let num_threads = num_rows * heads_here * shape.head_dim / NUMBERS;
        assert!(num_threads < 1 << 31, "threads are counted in 31 bits");
        if num_threads == 0 {
            return Ok(());
        }
        let [count, heads, kv_heads] = [num_rows, shape.num_heads, shape.num_kv_heads].map(|x| x as i32);
        let place = scatter.map(Place::new);
        let mut call = self.device.stream().launch_builder(&self.function);
        call.arg(rows.qkv).arg(&count).arg(&heads).arg(&kv_heads);
        push_weights(&mut call, weights, shape);
        let (cos_sin, interleaved) = rope.parts(shape.head_dim);
        call.arg(cos_sin).arg(rows.positions).arg(&interleaved);
        push_scatter(&mut call, place.as_ref(), num_rows, shape);
        call.arg(&mode);
        // SAFETY: rows, weights and slots lie in their buffers, as asserted. `qkv` is written only if the caller gave it as mutable:
        // without ROTATE the kernel only reads it. Positions within the table and slots within the pool are the scheduler's promise.
        unsafe { call.launch(launch((num_threads.div_ceil(THREADS), 1, 1), THREADS, 0)) }?;
        Ok(())
    }
}

struct Rows<'a> {
    qkv: &'a CudaSlice<bf16>,
    num_rows: usize,
    positions: &'a CudaView<'a, u32>,
}

/// Destination of a scatter, as the kernel takes it.
struct Place<'a> {
    scatter: &'a Scatter<'a>,
    keys: CudaView<'a, bf16>,
    values: CudaView<'a, bf16>,
    layer: i32,
    num_blocks: i32,
}

impl<'a> Place<'a> {
    fn new(scatter: &'a Scatter<'a>) -> Self {
        let pool = &scatter.pool;
        assert!(scatter.layer < pool.shape().num_layers, "the layer is one of the pool's");
        let (layer, num_blocks) = (scatter.layer as i32, pool.shape().num_blocks as i32);
        Self { scatter, keys: pool.keys(), values: pool.values(), layer, num_blocks }
    }
}

const NULL: &u64 = &0;

fn push_weights<'a>(call: &mut LaunchArgs<'a>, weights: Option<&'a QkvWeights<'a>>, shape: QkvShape) {
    match weights.and_then(|weights| weights.bias.as_ref()) {
        Some(bias) => {
            assert!(bias.len() >= shape.width(), "one number for each column");
            call.arg(bias)
        }
        None => call.arg(NULL),
    };
    match weights.and_then(|weights| weights.norms.as_ref()) {
        Some((q, k)) => {
            assert!(q.len() >= shape.head_dim && k.len() >= shape.head_dim, "one weight for each number of a head");
            call.arg(q).arg(k)
        }
        None => call.arg(NULL).arg(NULL),
    };
    call.arg(weights.map_or(&0f32, |weights| &weights.epsilon));
}

fn push_scatter<'a>(call: &mut LaunchArgs<'a>, place: Option<&'a Place<'a>>, num_rows: usize, shape: QkvShape) {
    let Some(Place { scatter, keys, values, layer, num_blocks }) = place else {
        call.arg(NULL).arg(NULL).arg(&0i32).arg(&0i32).arg(NULL).arg(NULL).arg(NULL);
        return;
    };
    let pool = scatter.pool.shape();
    assert_eq!((pool.num_kv_heads, pool.head_dim), (shape.num_kv_heads, shape.head_dim), "rows and pool have the same heads");
    assert!(scatter.slots.len() >= num_rows, "one slot for each row");
    call.arg(keys).arg(values).arg(layer).arg(num_blocks).arg(&scatter.slots);
    match &scatter.differences {
        Some(differences) => {
            assert!(differences.rows.len() >= num_rows, "one place, or none, for each row");
            call.arg(&differences.rows).arg(&*differences.out)
        }
        None => call.arg(NULL).arg(NULL),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{self, DriftSample, Heads, RopeLayout, Threads, testing::noise};
    use crate::cuda::testing::{TwinPools, assert_close, device, rounded, wide};
    use crate::cuda::{NO_ROW, PoolShape};

    const NUM_POSITIONS: usize = 5000;
    const NUM_BLOCKS: usize = 9;
    const LAYER: usize = 1;
    const TOLERANCE: f32 = 3e-3;

    /// Rows of one shape on the CPU and on the device.
    struct Case {
        device: Arc<Device>,
        kernel: Qkv,
        shape: QkvShape,
        rope: RopeTable,
        cpu_rope: cpu::RopeTable,
        rows: Vec<bf16>,
        positions: Vec<u32>,
        /// Slots of the rows; some rows have none.
        slots: Vec<u32>,
        bias: Option<CudaSlice<f32>>,
        norms: Option<[CudaSlice<f32>; 2]>,
        /// Rows after bias, norms and rotation.
        expected: Vec<f32>,
    }

    fn case(
        (num_heads, num_kv_heads, head_dim): (usize, usize, usize),
        layout: RopeLayout,
        num_rows: usize,
        is_plain: bool,
    ) -> Case {
        let (device, threads) = (device(), Threads::new(1).unwrap());
        let shape = QkvShape { num_heads, num_kv_heads, head_dim };
        let inv_freq: Vec<f64> = (0..head_dim / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let cpu_rope = cpu::RopeTable::new(layout, inv_freq.clone(), NUM_POSITIONS);
        let rows = rounded(noise(num_rows * shape.width(), 3));
        let positions: Vec<u32> = (0..num_rows as u32).map(|row| row * 7919 % NUM_POSITIONS as u32).collect();
        let slot = |row: u32| if row % 5 == 3 { NO_ROW } else { row * 11 % (32 * NUM_BLOCKS as u32) };
        let slots = (0..num_rows as u32).map(slot).collect();
        let mut expected = wide(&rows);
        let (mut bias, mut norms) = (None, None);
        if !is_plain {
            let (host_bias, weights) = (noise(shape.width(), 4), [5, 6].map(|seed| noise(head_dim, seed)));
            expected.chunks_mut(shape.width()).for_each(|row| row.iter_mut().zip(&host_bias).for_each(|(x, bias)| *x += bias));
            for (column, count, weight) in [(0, num_heads, &weights[0]), (shape.k_column(), num_kv_heads, &weights[1])] {
                let heads = Heads { stride: shape.width(), column, count, dim: head_dim };
                cpu::rms_norm_heads(&threads, &mut expected, heads, weight, 1e-6);
            }
            bias = Some(device.upload(&host_bias).unwrap());
            norms = Some(weights.map(|weight| device.upload(&weight).unwrap()));
        }
        let q_and_k = Heads { stride: shape.width(), column: 0, count: num_heads + num_kv_heads, dim: head_dim };
        cpu::rope(&threads, &mut expected, q_and_k, &positions, &cpu_rope);
        let kernel = Qkv::new(&device, shape).unwrap();
        let rope = RopeTable::new(&device, layout, inv_freq, NUM_POSITIONS).unwrap();
        Case { device, kernel, shape, rope, cpu_rope, rows, positions, slots, bias, norms, expected }
    }

    impl Case {
        fn weights(&self) -> QkvWeights<'_> {
            let norms = self.norms.as_ref().map(|[q, k]| (q.as_view(), k.as_view()));
            QkvWeights { bias: self.bias.as_ref().map(CudaSlice::as_view), norms, epsilon: 1e-6 }
        }

        fn pools(&self) -> TwinPools {
            let QkvShape { num_kv_heads, head_dim, .. } = self.shape;
            TwinPools::new(&self.device, PoolShape { num_layers: 3, num_blocks: NUM_BLOCKS, num_kv_heads, head_dim })
        }

        fn num_rows(&self) -> usize {
            self.positions.len()
        }

        /// Returns columns `columns` of all rows that have a slot, or of all that have none.
        fn columns<T: Copy>(&self, rows: &[T], columns: std::ops::Range<usize>, with_slot: bool) -> Vec<T> {
            let rows = rows.chunks(self.shape.width()).zip(&self.slots).filter(|(_, slot)| (**slot != NO_ROW) == with_slot);
            rows.flat_map(|(row, _)| row[columns.clone()].to_vec()).collect()
        }

        /// Writes keys and values of rows that have a slot to the CPU's pool.
        fn write(&self, pools: &mut TwinPools, rows: &[f32]) {
            let slots: Vec<u32> = self.slots.iter().copied().filter(|slot| *slot != NO_ROW).collect();
            let k = self.columns(rows, self.shape.k_column()..self.shape.v_column(), true);
            let v = self.columns(rows, self.shape.v_column()..self.shape.width(), true);
            let stride = self.shape.v_column() - self.shape.k_column();
            pools.layers[LAYER].write(&Threads::new(1).unwrap(), &slots, &k, &v, stride);
        }
    }

    const SHAPES: [(usize, usize, usize); 4] = [(28, 4, 128), (9, 3, 64), (14, 2, 64), (0, 4, 128)];

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_rotation_alone_is_the_cpus_and_leaves_the_pool() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
                let case = case(shape, layout, [1, 21, 3, 16][i], i % 2 == 1);
                let (mut qkv, positions) =
                    (case.device.upload(&case.rows).unwrap(), case.device.upload(&case.positions).unwrap());
                case.kernel.rotate(&mut qkv, case.num_rows(), &positions.as_view(), &case.weights(), &case.rope).unwrap();
                assert_close(&case.device.download(&qkv).unwrap(), &case.expected, TOLERANCE);
            }
        }
    }

    #[track_caller]
    fn check_scatter(shape: (usize, usize, usize), layout: RopeLayout, num_rows: usize, is_plain: bool, keep_kv: bool) {
        let case = case(shape, layout, num_rows, is_plain);
        let (device, mut pools) = (&case.device, case.pools());
        let mut qkv = device.upload(&case.rows).unwrap();
        let (positions, slots) = (device.upload(&case.positions).unwrap(), device.upload(&case.slots).unwrap());
        let scatter = Scatter { pool: &mut pools.pool, layer: LAYER, slots: slots.as_view(), differences: None };
        let weights = case.weights();
        let rows = case.num_rows();
        case.kernel.rotate_and_scatter(&mut qkv, rows, &positions.as_view(), &weights, &case.rope, scatter, keep_kv).unwrap();
        case.write(&mut pools, &case.expected);
        pools.assert_close(device, TOLERANCE);
        let found = device.download(&qkv).unwrap();
        let (q, kv, all) = (0..case.shape.k_column(), case.shape.k_column()..case.shape.width(), 0..case.shape.width());
        assert_close(&case.columns(&found, q.clone(), true), &case.columns(&case.expected, q, true), TOLERANCE);
        if keep_kv {
            assert_close(&case.columns(&found, kv.clone(), true), &case.columns(&case.expected, kv, true), TOLERANCE);
        } else {
            assert_eq!(
                case.columns(&found, kv.clone(), true),
                case.columns(&case.rows, kv, true),
                "K and V are not written twice"
            );
        }
        assert_eq!(case.columns(&found, all.clone(), false), case.columns(&case.rows, all, false), "padding rows stay");
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_rotated_rows_are_in_their_slots() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            for (layout, keep_kv) in [(RopeLayout::Half, false), (RopeLayout::Interleaved, true)] {
                check_scatter(shape, layout, [1, 21, 130, 17][i], i % 2 == 0, keep_kv);
                check_scatter(shape, layout, [33, 2, 7, 64][i], i % 2 == 1, !keep_kv);
            }
        }
    }

    #[track_caller]
    fn check_two_steps(shape: (usize, usize, usize), layout: RopeLayout) {
        let case = case(shape, layout, 37, false);
        let (device, mut together, mut apart) = (&case.device, case.pools(), case.pools());
        let (positions, slots) = (device.upload(&case.positions).unwrap(), device.upload(&case.slots).unwrap());
        let (weights, rows) = (case.weights(), case.num_rows());
        let into = |pools: &mut TwinPools, qkv: &mut CudaSlice<bf16>| {
            let scatter = Scatter { pool: &mut pools.pool, layer: LAYER, slots: slots.as_view(), differences: None };
            case.kernel.rotate_and_scatter(qkv, rows, &positions.as_view(), &weights, &case.rope, scatter, true).unwrap();
        };
        into(&mut together, &mut device.upload(&case.rows).unwrap());
        let mut qkv = device.upload(&case.rows).unwrap();
        case.kernel.rotate(&mut qkv, rows, &positions.as_view(), &weights, &case.rope).unwrap();
        let scatter = Scatter { pool: &mut apart.pool, layer: LAYER, slots: slots.as_view(), differences: None };
        case.kernel.scatter(&qkv, rows, &positions.as_view(), &case.rope, scatter).unwrap();
        for [a, b] in [[together.pool.keys(), apart.pool.keys()], [together.pool.values(), apart.pool.values()]] {
            assert_eq!(device.download(&a).unwrap(), device.download(&b).unwrap());
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_rotation_then_scatter_gives_the_bits_of_both_at_once() {
        check_two_steps((28, 4, 128), RopeLayout::Half);
        check_two_steps((9, 3, 64), RopeLayout::Interleaved);
    }

    /// Checks that every other row that has a slot reports its change; the second time nothing changes.
    #[track_caller]
    fn check_differences(shape: (usize, usize, usize), layout: RopeLayout) {
        let case = case(shape, layout, 37, false);
        let (device, mut pools) = (&case.device, case.pools());
        let reported: Vec<usize> = (0..case.num_rows()).filter(|row| row % 2 == 0 && case.slots[*row] != NO_ROW).collect();
        let mut places = vec![-1i32; case.num_rows()];
        reported.iter().rev().enumerate().for_each(|(place, row)| places[*row] = place as i32);
        let new = wide(&rounded(case.expected.iter().copied()));
        let sample = |row: &usize| {
            let fresh = &new[row * case.shape.width()..][..case.shape.width()];
            let (k, v) = fresh[case.shape.k_column()..].split_at(case.shape.v_column() - case.shape.k_column());
            DriftSample { position: case.positions[*row], slot: case.slots[*row], k, v }
        };
        let samples: Vec<DriftSample<'_>> = reported.iter().rev().map(sample).collect();
        let expected = pools.layers[LAYER].differences(&Threads::new(1).unwrap(), &case.cpu_rope, &samples);
        let (positions, slots) = (device.upload(&case.positions).unwrap(), device.upload(&case.slots).unwrap());
        let (places, weights) = (device.upload(&places).unwrap(), case.weights());
        let mut change = || {
            let mut out = device.upload(&vec![f32::NAN; expected.len()]).unwrap();
            let differences = Some(Differences { rows: places.as_view(), out: &mut out });
            let scatter = Scatter { pool: &mut pools.pool, layer: LAYER, slots: slots.as_view(), differences };
            let mut qkv = device.upload(&case.rows).unwrap();
            let rows = case.num_rows();
            case.kernel.rotate_and_scatter(&mut qkv, rows, &positions.as_view(), &weights, &case.rope, scatter, false).unwrap();
            device.download(&out).unwrap()
        };
        assert_close(&change(), &expected, TOLERANCE);
        assert!(change().iter().all(|x| *x == 0.0), "what does not change differs by nothing");
        case.write(&mut pools, &case.expected);
        pools.assert_close(device, TOLERANCE);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_differences_are_the_cpus_and_zero_where_nothing_changes() {
        check_differences((28, 4, 128), RopeLayout::Half);
        check_differences((9, 3, 64), RopeLayout::Interleaved);
    }
}
