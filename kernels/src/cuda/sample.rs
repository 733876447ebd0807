//! Sampling on the device: adjustments, the likeliest token, seeded draws, log probabilities.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, DevicePtr, DeviceRepr, PushKernelArg, ValidAsZeroBits};

use super::device::{Device, DeviceError, launch};
use super::upload::Upload;
use crate::cpu::{Adjustment, Distribution, RankedLogProb};

/// Maximum number of likeliest tokens that can be reported of a row: as many as the engine keeps of an answer that it verifies later.
pub const MAX_TOP: usize = 256;

/// Elements of a row that a thread block processes, and the maximum number of blocks per row: as in `sample.cu`.
const CHUNK: usize = 4096;
const MAX_CHUNKS: usize = 128;
const BUCKETS: usize = 2048;
const MAX_CANDIDATES: usize = 4096;
const SCAN_THREADS: usize = 256;
const DECIDE_THREADS: usize = 256;
const CHOOSE_THREADS: usize = 512;
const MASK_THREADS: usize = 256;

/// A token to sample from one row of logits.
#[derive(Clone, Copy, Debug)]
pub struct SampleSpec<'a> {
    /// Changes of logits by ascending token, each token at most once.
    pub adjustments: &'a [Adjustment],
    /// Distribution to draw from.
    pub distribution: Distribution,
    /// Random number of the draw; in 0..1.
    pub uniform: f64,
    /// Number of likeliest tokens to report log probabilities of, besides the sampled one; at most [`MAX_TOP`].
    pub logprobs: Option<u32>,
    /// Tokens that may follow, a bit each, as [`cpu::mask`](crate::cpu::mask) takes them.
    pub mask: Option<&'a [u32]>,
}

/// A token whose log probability is requested from one row of logits.
#[derive(Clone, Copy, Debug)]
pub struct ScoreSpec {
    /// Token id, below the size of the vocabulary.
    pub token: u32,
    /// Number of likeliest tokens to report as well, at most [`MAX_TOP`].
    pub top: u32,
}

/// Result of sampling one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Sampled token.
    pub token: u32,
    /// Difference of the largest and the second largest logit, after adjustments. NaN if the row is not a distribution; then the other
    /// fields are meaningless.
    pub margin: f32,
    /// Log probabilities, if requested: of the sampled token, and of the likeliest tokens in descending order.
    pub logprobs: Option<(RankedLogProb, Vec<RankedLogProb>)>,
}

/// Launches that some rows need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleChain {
    /// Two: all rows are greedy or drawn from all tokens, without log probabilities of other tokens than a greedy choice.
    Short,
    /// Four: some rows need candidates or ranks.
    Long,
}

/// `Request` of `sample.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawRequest {
    adjustments: u64,
    uniform: f64,
    num_adjustments: u32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    num_top: u32,
    flags: u32,
    given: u32,
    first_likely: u32,
    unused: u32,
}

const ACTIVE: u32 = 1;
const LOGPROBS: u32 = 2;
const GIVEN: u32 = 4;

/// `Part` of `sample.cu`, opaque to the host.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawPart([u32; 6]);

/// `Progress` of `sample.cu`, opaque to the host.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawProgress([u64; 5]);

/// `Choice` of `sample.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawChoice {
    token: u32,
    margin: f32,
    logprob: f32,
    rank: u32,
}

/// `Likely` of `sample.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawLikely {
    token: u32,
    logprob: f32,
}

// SAFETY: these are plain fields laid out as in C, equal to the structs of `sample.cu`, whose sizes are asserted there.
unsafe impl DeviceRepr for RawRequest {}
// SAFETY: as above.
unsafe impl DeviceRepr for RawPart {}
// SAFETY: as above.
unsafe impl DeviceRepr for RawProgress {}
// SAFETY: as above.
unsafe impl DeviceRepr for RawChoice {}
// SAFETY: as above.
unsafe impl DeviceRepr for RawLikely {}
// SAFETY: as above.
unsafe impl DeviceRepr for Adjustment {}
// SAFETY: all bits zero is a value of each: they contain only numbers. A request of zeros is not active.
unsafe impl ValidAsZeroBits for RawRequest {}
// SAFETY: as above.
unsafe impl ValidAsZeroBits for RawPart {}
// SAFETY: as above.
unsafe impl ValidAsZeroBits for RawProgress {}
// SAFETY: as above.
unsafe impl ValidAsZeroBits for RawChoice {}
// SAFETY: as above.
unsafe impl ValidAsZeroBits for RawLikely {}
// SAFETY: as above.
unsafe impl ValidAsZeroBits for Adjustment {}

/// Device version of [`Adjustment::apply`](crate::cpu::Adjustment::apply), [`argmax`](crate::cpu::argmax), [`margin`](crate::cpu::margin),
/// [`draw`](crate::cpu::draw) and [`log_probs`](crate::cpu::log_probs).
///
/// A step is [`upload`](Self::upload) or [`upload_scores`](Self::upload_scores), [`launch`](Self::launch), [`results`](Self::results). Only
/// the launch may be captured in a graph: all its inputs are at fixed addresses, except the number of rows and the chain.
pub struct Sampler {
    device: Arc<Device>,
    functions: Functions,
    max_rows: usize,
    requests: CudaSlice<RawRequest>,
    adjustments: CudaSlice<Adjustment>,
    /// Requests for likeliest tokens of the rows uploaded last.
    uploaded: Vec<Option<u32>>,
    parts: CudaSlice<RawPart>,
    /// `[max_rows, BUCKETS]`, zero between launches.
    histogram: CudaSlice<u32>,
    progress: CudaSlice<RawProgress>,
    /// `[max_rows, MAX_CANDIDATES]`.
    candidates: CudaSlice<u64>,
    /// `[max_rows, BUCKETS]`, zero between launches, as all that follow except the results.
    bucket_masses: CudaSlice<u64>,
    /// `[max_rows]`.
    num_gathered: CudaSlice<u32>,
    num_larger: CudaSlice<u32>,
    choices: CudaSlice<RawChoice>,
    /// Likeliest tokens of all rows, concatenated; room for `[max_rows, MAX_TOP]`.
    likely: CudaSlice<RawLikely>,
    masks: Masks,
}

/// Masks of the rows uploaded last.
struct Masks {
    upload: Upload,
    /// `[num_rows, num_words]`.
    words: Range<usize>,
    num_words: usize,
    /// Row of each mask.
    rows: Range<usize>,
    num_rows: usize,
}

struct Functions {
    mask: CudaFunction,
    scan: CudaFunction,
    decide: CudaFunction,
    gather: CudaFunction,
    choose: CudaFunction,
}

impl Sampler {
    /// Loads the functions and allocates the buffers of `max_rows` rows: about 64 KB each.
    ///
    /// # Errors
    /// If the device cannot run them, or memory does not suffice.
    pub fn new(device: &Arc<Device>, max_rows: usize) -> Result<Self, DeviceError> {
        let function = |name| device.function("sample", name, 0);
        let functions = Functions {
            mask: function("sample_mask")?,
            scan: function("sample_scan")?,
            decide: function("sample_decide")?,
            gather: function("sample_gather")?,
            choose: function("sample_choose")?,
        };
        Ok(Self {
            functions,
            max_rows,
            requests: device.zeros(max_rows)?,
            adjustments: device.zeros(1024)?,
            uploaded: Vec::new(),
            parts: device.zeros(max_rows * MAX_CHUNKS)?,
            histogram: device.zeros(max_rows * BUCKETS)?,
            progress: device.zeros(max_rows)?,
            candidates: device.zeros(max_rows * MAX_CANDIDATES)?,
            bucket_masses: device.zeros(max_rows * BUCKETS)?,
            num_gathered: device.zeros(max_rows)?,
            num_larger: device.zeros(max_rows)?,
            choices: device.zeros(max_rows)?,
            likely: device.zeros(max_rows * MAX_TOP)?,
            masks: Masks { upload: Upload::new(device, 1)?, words: 0..0, num_words: 0, rows: 0..0, num_rows: 0 },
            device: Arc::clone(device),
        })
    }

    /// Uploads the parameters for the first rows of the next launch, which does not change later rows.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there are too many rows, more likeliest tokens are requested than can be reported, or adjustments are out of order.
    pub fn upload(&mut self, rows: &[SampleSpec]) -> Result<SampleChain, DeviceError> {
        assert!(rows.len() <= self.max_rows, "{} rows are more than {}", rows.len(), self.max_rows);
        let adjustments: Vec<Adjustment> = rows.iter().flat_map(|row| row.adjustments).copied().collect();
        let stream = self.device.stream();
        if adjustments.len() > self.adjustments.len() {
            self.adjustments = self.device.zeros(adjustments.len().next_power_of_two())?;
        }
        if !adjustments.is_empty() {
            stream.memcpy_htod(&adjustments, &mut self.adjustments)?;
        }
        let mut next = self.adjustments.device_ptr(stream).0;
        let mut requests = Vec::with_capacity(self.max_rows);
        for row in rows {
            assert!(row.adjustments.is_sorted_by(|a, b| a.token < b.token), "adjustments ascend by token");
            requests.push(RawRequest::new(row, next));
            next += size_of_val(row.adjustments) as u64;
        }
        self.upload_requests(requests)?;
        self.upload_masks(rows)?;
        self.uploaded = rows.iter().map(|row| row.logprobs).collect();
        Ok(if rows.iter().any(needs_long_chain) { SampleChain::Long } else { SampleChain::Short })
    }

    /// Uploads as [`upload`](Self::upload), for rows whose token is given: nothing is adjusted or sampled, and `results` reports that
    /// token.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there are too many rows, or more likeliest tokens are requested than can be reported.
    pub fn upload_scores(&mut self, rows: &[ScoreSpec]) -> Result<SampleChain, DeviceError> {
        assert!(rows.len() <= self.max_rows, "{} rows are more than {}", rows.len(), self.max_rows);
        self.upload_requests(rows.iter().map(RawRequest::score).collect())?;
        self.masks.num_rows = 0;
        self.uploaded = rows.iter().map(|row| Some(row.top)).collect();
        Ok(SampleChain::Long)
    }

    /// Uploads the masks of constrained rows; shorter ones are continued by zeros.
    fn upload_masks(&mut self, rows: &[SampleSpec]) -> Result<(), DeviceError> {
        let masked: Vec<(u32, &[u32])> = (0..).zip(rows).filter_map(|(idx, row)| Some((idx, row.mask?))).collect();
        let num_words = masked.iter().map(|(_, mask)| mask.len()).max().unwrap_or(0).max(1);
        self.masks.num_words = num_words;
        self.masks.num_rows = masked.len();
        if masked.is_empty() {
            return Ok(());
        }
        let lengths = [masked.len() * num_words, masked.len()];
        let (_, capacity) = Upload::layout(lengths);
        if self.masks.upload.capacity() < capacity {
            self.device.synchronize()?;
            self.masks.upload = Upload::new(&self.device, capacity.next_power_of_two())?;
        }
        let [words, rows] = self.masks.upload.stage(lengths, |[words, rows]| {
            rows.iter_mut().zip(&masked).for_each(|(to, (row, _))| *to = *row);
            for (to, (_, mask)) in words.chunks_exact_mut(num_words).zip(&masked) {
                to[..mask.len()].copy_from_slice(mask);
                to[mask.len()..].fill(0);
            }
        })?;
        (self.masks.words, self.masks.rows) = (words, rows);
        Ok(())
    }

    /// Launches the masks uploaded last, if there are any.
    fn launch_masks(&self, logits: &mut CudaSlice<f32>, stride: usize, vocab_size: usize) -> Result<(), DeviceError> {
        let Masks { upload, words, num_words, rows, num_rows } = &self.masks;
        if *num_rows == 0 {
            return Ok(());
        }
        let (vocab, num_words) = (vocab_size as i32, *num_words as u32);
        let (words, rows) = (upload.words(words.clone()), upload.words(rows.clone()));
        let mut call = self.device.stream().launch_builder(&self.functions.mask);
        call.arg(&mut *logits).arg(&stride).arg(&vocab).arg(&words).arg(&rows).arg(&num_words);
        let grid = (vocab_size.div_ceil(MASK_THREADS), *num_rows, 1);
        // SAFETY: the rows lie in `logits`, as `launch` asserts, and their masks in `words`.
        unsafe { call.launch(launch(grid, MASK_THREADS, 0)) }?;
        Ok(())
    }

    /// Assigns each row its range of likeliest tokens, and pads with inactive rows.
    fn upload_requests(&mut self, mut requests: Vec<RawRequest>) -> Result<(), DeviceError> {
        let mut first_likely = 0;
        for request in &mut requests {
            request.first_likely = first_likely;
            first_likely += request.num_top;
        }
        requests.resize(self.max_rows, RawRequest::NONE);
        Ok(self.device.stream().memcpy_htod(&requests, &mut self.requests)?)
    }

    /// Adjusts the first `num_rows` rows of `logits`, `[num_rows, stride]` with `vocab_size` elements each, and samples from them.
    ///
    /// # Errors
    /// If a launch fails.
    ///
    /// # Panics
    /// If the rows do not lie in their buffer, or the vocabulary is larger than 524,288.
    pub fn launch(
        &mut self,
        logits: &mut CudaSlice<f32>,
        stride: usize,
        vocab_size: usize,
        num_rows: usize,
        chain: SampleChain,
    ) -> Result<(), DeviceError> {
        assert!(num_rows <= self.max_rows && logits.len() >= num_rows * stride, "rows lie in their buffers");
        assert!(vocab_size <= stride && vocab_size >= 1, "a row holds its vocabulary");
        assert!(vocab_size <= CHUNK * MAX_CHUNKS, "a vocabulary of {vocab_size} is too large");
        if num_rows == 0 {
            return Ok(());
        }
        self.launch_masks(logits, stride, vocab_size)?;
        let (chunks, vocab) = (vocab_size.div_ceil(CHUNK), vocab_size as i32);
        let num_chunks = chunks as i32;
        let (stream, functions) = (self.device.stream(), &self.functions);
        let by_chunk = launch((chunks, num_rows, 1), SCAN_THREADS, 0);
        let mut call = stream.launch_builder(&functions.scan);
        call.arg(&mut *logits).arg(&stride).arg(&vocab).arg(&self.requests).arg(&mut self.parts).arg(&mut self.histogram);
        // SAFETY: rows lie in the buffers, as asserted; adjustments lie at the addresses that `upload` wrote.
        unsafe { call.launch(by_chunk) }?;
        let mut call = stream.launch_builder(&functions.decide);
        call.arg(&*logits).arg(&stride).arg(&vocab).arg(&self.requests).arg(&self.parts).arg(&num_chunks);
        call.arg(&mut self.histogram).arg(&mut self.progress).arg(&mut self.choices);
        // SAFETY: as above.
        unsafe { call.launch(launch((num_rows, 1, 1), DECIDE_THREADS, 0)) }?;
        if chain == SampleChain::Short {
            return Ok(());
        }
        let mut call = stream.launch_builder(&functions.gather);
        call.arg(&*logits).arg(&stride).arg(&vocab).arg(&self.requests).arg(&self.parts).arg(&self.progress);
        call.arg(&mut self.candidates).arg(&mut self.num_gathered).arg(&mut self.num_larger);
        call.arg(&mut self.histogram).arg(&mut self.bucket_masses);
        // SAFETY: as above; a row has at most MAX_CANDIDATES candidates, else it is marked as having none.
        unsafe { call.launch(by_chunk) }?;
        let mut call = stream.launch_builder(&functions.choose);
        call.arg(&*logits).arg(&stride).arg(&vocab).arg(&self.requests).arg(&self.progress).arg(&self.candidates);
        call.arg(&mut self.num_gathered).arg(&mut self.num_larger).arg(&mut self.choices).arg(&mut self.likely);
        call.arg(&mut self.histogram).arg(&mut self.bucket_masses);
        // SAFETY: as above.
        unsafe { call.launch(launch((num_rows, 1, 1), CHOOSE_THREADS, 0)) }?;
        Ok(())
    }

    /// Returns the tokens sampled from the rows uploaded last; waits for the launch.
    ///
    /// # Errors
    /// If anything launched before failed.
    pub fn results(&mut self) -> Result<Vec<Choice>, DeviceError> {
        let choices = read(&self.device, &self.choices, &self.likely, &self.uploaded)?;
        self.masks.upload.arrived();
        Ok(choices)
    }

    /// Allocates device memory for the results of several launches of `num_rows` rows, with `num_likely` likeliest tokens in total.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn room_for(&self, num_rows: usize, num_likely: usize) -> Result<DeviceResults, DeviceError> {
        let (choices, likely) = (self.device.zeros(num_rows.max(1))?, self.device.zeros(num_likely.max(1))?);
        Ok(DeviceResults { device: Arc::clone(&self.device), choices, likely, rows: Vec::with_capacity(num_rows), num_likely: 0 })
    }

    /// Appends the results of the rows uploaded last to `kept`, without waiting.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there is no room.
    pub fn keep(&self, kept: &mut DeviceResults) -> Result<(), DeviceError> {
        let stream = self.device.stream();
        let (first, end) = (kept.rows.len(), kept.rows.len() + self.uploaded.len());
        stream.memcpy_dtod(&self.choices.slice(..end - first), &mut kept.choices.slice_mut(first..end))?;
        let num_likely = num_likely(&self.uploaded);
        if num_likely > 0 {
            let to = kept.num_likely..kept.num_likely + num_likely;
            stream.memcpy_dtod(&self.likely.slice(..num_likely), &mut kept.likely.slice_mut(to))?;
        }
        kept.num_likely += num_likely;
        kept.rows.extend(&self.uploaded);
        Ok(())
    }
}

/// Results of several launches, still on the device, so that the next launch need not wait for the host.
pub struct DeviceResults {
    device: Arc<Device>,
    choices: CudaSlice<RawChoice>,
    likely: CudaSlice<RawLikely>,
    /// As [`Sampler::uploaded`].
    rows: Vec<Option<u32>>,
    num_likely: usize,
}

impl DeviceResults {
    /// Returns all results; waits for the launches.
    ///
    /// # Errors
    /// If anything launched before failed.
    pub fn results(&self) -> Result<Vec<Choice>, DeviceError> {
        read(&self.device, &self.choices, &self.likely, &self.rows)
    }
}

fn num_likely(rows: &[Option<u32>]) -> usize {
    rows.iter().flatten().sum::<u32>() as usize
}

/// Copies results and likeliest tokens of `rows` to the host; the likeliest tokens of all rows are concatenated.
fn read(
    device: &Device,
    choices: &CudaSlice<RawChoice>,
    likely: &CudaSlice<RawLikely>,
    rows: &[Option<u32>],
) -> Result<Vec<Choice>, DeviceError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = vec![RawChoice::default(); rows.len()];
    device.stream().memcpy_dtoh(&choices.slice(..rows.len()), &mut found)?;
    let mut found_likely = vec![RawLikely::default(); num_likely(rows)];
    if !found_likely.is_empty() {
        device.stream().memcpy_dtoh(&likely.slice(..found_likely.len()), &mut found_likely)?;
    }
    device.synchronize()?;
    let mut rest = &found_likely[..];
    let row = |(choice, top): (&RawChoice, &Option<u32>)| {
        let top = top.map(|top| rest.split_off(..top as usize).expect("the likeliest of all rows were counted"));
        choice.named(top)
    };
    Ok(found.iter().zip(rows).map(row).collect())
}

impl RawRequest {
    /// Request of an inactive row.
    const NONE: Self = Self {
        adjustments: 0,
        uniform: 0.0,
        num_adjustments: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        num_top: 0,
        flags: 0,
        given: 0,
        first_likely: 0,
        unused: 0,
    };

    fn new(row: &SampleSpec, adjustments: u64) -> Self {
        let num_top = checked_top(row.logprobs.unwrap_or(0));
        let Distribution { temperature, top_k, top_p, min_p } = row.distribution;
        Self {
            adjustments,
            uniform: row.uniform,
            num_adjustments: row.adjustments.len() as u32,
            temperature,
            top_k,
            top_p,
            min_p,
            num_top,
            flags: ACTIVE | if row.logprobs.is_some() { LOGPROBS } else { 0 },
            ..Self::NONE
        }
    }

    fn score(row: &ScoreSpec) -> Self {
        Self { given: row.token, num_top: checked_top(row.top), flags: ACTIVE | LOGPROBS | GIVEN, ..Self::NONE }
    }
}

fn checked_top(num_top: u32) -> u32 {
    assert!(num_top as usize <= MAX_TOP, "{num_top} likeliest tokens are more than {MAX_TOP}");
    num_top
}

impl RawChoice {
    fn named(&self, top: Option<&[RawLikely]>) -> Choice {
        // The values of a row that is not a distribution are meaningless.
        let logprob = if self.margin.is_nan() { f32::NAN } else { self.logprob };
        let chosen = RankedLogProb { token: self.token, logprob, rank: self.rank };
        let ranked = |(rank, likely): (u32, &RawLikely)| RankedLogProb { token: likely.token, logprob: likely.logprob, rank };
        // A vocabulary smaller than the requested number leaves the rest unset.
        let top = top.map(|top| (1..).zip(top).filter(|(_, likely)| likely.token != u32::MAX).map(ranked).collect());
        Choice { token: self.token, margin: self.margin, logprobs: top.map(|top| (chosen, top)) }
    }
}

fn needs_long_chain(row: &SampleSpec) -> bool {
    let is_drawn = !row.distribution.is_greedy();
    let ranks = row.logprobs.is_some_and(|top| top > 0 || is_drawn);
    (is_drawn && row.distribution.is_truncated()) || ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{self, testing::noise};
    use crate::cuda::testing::device;

    /// A row and its sampling parameters.
    #[derive(Clone)]
    struct Case {
        logits: Vec<f32>,
        adjustments: Vec<Adjustment>,
        distribution: Distribution,
        uniform: f64,
        logprobs: Option<u32>,
        mask: Option<Vec<u32>>,
    }

    impl Case {
        /// Creates noise of variance one times `spread`, cubed so that few tokens are far likelier than the others.
        fn new(vocab_size: usize, spread: f32, seed: u32) -> Self {
            let logits = noise(vocab_size, seed).into_iter().map(|x| spread * 8.0 * x * x * x).collect();
            let uniform = f64::from(noise(1, seed + 1000)[0]) + 0.5;
            let distribution = Distribution { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
            Self {
                logits,
                adjustments: Vec::new(),
                distribution,
                uniform: uniform.clamp(0.0, 0.999_999),
                logprobs: None,
                mask: None,
            }
        }

        fn spec(&self) -> SampleSpec<'_> {
            SampleSpec {
                adjustments: &self.adjustments,
                distribution: self.distribution,
                uniform: self.uniform,
                logprobs: self.logprobs,
                mask: self.mask.as_deref(),
            }
        }

        /// Returns the CPU's choice.
        fn expected(&self, distribution: &Distribution, uniform: f64) -> Choice {
            let mut logits = self.logits.clone();
            if let Some(mask) = &self.mask {
                cpu::mask(&mut logits, mask);
            }
            self.adjustments.iter().for_each(|adjustment| adjustment.apply(&mut logits));
            let token = if distribution.is_greedy() { cpu::argmax(&logits) } else { cpu::draw(&logits, distribution, uniform) };
            let logprobs = self.logprobs.map(|top| cpu::log_probs(&logits, token, top));
            Choice { token, margin: cpu::margin(&logits), logprobs }
        }

        /// Returns the CPU's choice, or the found one where rounding at a boundary may decide and the CPU makes it with slightly changed
        /// parameters.
        fn expected_beside(&self, found: &Choice) -> Choice {
            const BESIDE: [f64; 3] = [0.0, -4e-6, 4e-6];
            let mut choices = BESIDE.iter().flat_map(|u| BESIDE.iter().map(move |p| (u, p))).map(|(u, p)| {
                let Distribution { top_p, min_p, .. } = self.distribution;
                let scaled = |share: f32| (f64::from(share) * (1.0 + p)) as f32;
                let top_p = if top_p < 1.0 { scaled(top_p) } else { top_p };
                self.expected(&Distribution { top_p, min_p: scaled(min_p), ..self.distribution }, self.uniform + u)
            });
            let exact = choices.next().expect("nine of them");
            if exact.token == found.token {
                return exact;
            }
            choices.find(|choice| choice.token == found.token).unwrap_or(exact)
        }
    }

    #[track_caller]
    fn check(cases: &[Case]) {
        let (device, vocab_size) = (device(), cases[0].logits.len());
        let stride = vocab_size.next_multiple_of(4) + 4;
        let mut logits = vec![f32::NAN; (cases.len() + 1) * stride];
        for (row, case) in logits.chunks_mut(stride).zip(cases) {
            row[..vocab_size].copy_from_slice(&case.logits);
        }
        let mut sampler = Sampler::new(&device, cases.len() + 1).unwrap();
        let specs: Vec<SampleSpec> = cases.iter().map(Case::spec).collect();
        // Twice, because the first launch must reset its counters. A padding row follows.
        for _ in 0..2 {
            let mut on_device = device.upload(&logits).unwrap();
            let chain = sampler.upload(&specs).unwrap();
            sampler.launch(&mut on_device, stride, vocab_size, cases.len() + 1, chain).unwrap();
            let found = sampler.results().unwrap();
            assert_eq!(found.len(), cases.len());
            for (row, (found, case)) in found.iter().zip(cases).enumerate() {
                assert_equal(row, found, case);
            }
        }
    }

    #[track_caller]
    fn assert_equal(row: usize, found: &Choice, case: &Case) {
        let expected = case.expected_beside(found);
        let what = format!("row {row}: {:?} {} {:?}", case.distribution, case.uniform, case.logprobs);
        assert_eq!((found.token, found.margin), (expected.token, expected.margin), "{what}");
        let named = |choice: &Choice| {
            let (chosen, top) = choice.logprobs.clone()?;
            Some(std::iter::once(chosen).chain(top).map(|one| (one.token, one.rank)).collect::<Vec<_>>())
        };
        assert_eq!(named(found), named(&expected), "{what}");
        let values = |choice: &Choice| {
            let (chosen, top) = choice.logprobs.clone()?;
            Some(std::iter::once(chosen).chain(top).map(|one| one.logprob).collect::<Vec<_>>())
        };
        for (found, expected) in values(found).iter().flatten().zip(values(&expected).iter().flatten()) {
            assert!((found - expected).abs() <= 2e-5 || found == expected, "{what}: {found} {expected}");
        }
    }

    /// Checks all combinations of parameters, over peaked and flat rows, in batches.
    fn check_combinations(vocab_size: usize, num_draws: u32) {
        let mut cases = Vec::new();
        for (spread, temperature) in [(1.0, 0.0), (1.0, 0.7), (6.0, 1.0), (30.0, 1.3), (0.05, 1.0), (1.0, 40.0), (60.0, 0.01)] {
            for (top_k, top_p, min_p) in
                [(0, 1.0, 0.0), (1, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (40, 0.8, 0.02), (2000, 0.95, 0.0)]
            {
                for (draw, logprobs) in (0..num_draws).zip([None, Some(0), Some(5), Some(20), Some(256)].iter().cycle()) {
                    let seed = cases.len() as u32 * 7 + draw;
                    let mut case = Case::new(vocab_size, spread, seed);
                    case.distribution = Distribution { temperature, top_k, top_p, min_p };
                    case.logprobs = *logprobs;
                    cases.push(case);
                }
            }
        }
        cases.chunks(37).for_each(check);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_choices_are_the_cpus() {
        check_combinations(97, 20);
        check_combinations(49152, 5);
        check_combinations(50_257, 1);
        check_combinations(152_064, 5);
    }

    /// Checks masked tokens and groups of equal logits, which no bucket separates, among others.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_flat_rows_with_islands_and_masks_are_drawn_as_on_the_cpu() {
        let mut cases = Vec::new();
        for (seed, masked) in [(1, 0), (2, 5), (3, 50)] {
            for (top_k, top_p, min_p) in [(0, 0.9, 0.0), (0, 0.3, 0.0), (9000, 0.7, 0.0), (0, 1.0, 0.2), (0, 0.999, 0.0)] {
                let mut case = Case::new(60_003, 1.0, seed);
                let round = |logit: &mut f32| *logit = if seed == 2 { logit.round() } else { *logit };
                case.logits.iter_mut().for_each(round);
                case.logits.iter_mut().step_by(100).take(6 * masked).for_each(|logit| *logit = f32::NEG_INFINITY);
                case.distribution = Distribution { temperature: 0.8, top_k, top_p, min_p };
                case.logprobs = Some(seed * 20);
                cases.push(case);
            }
        }
        check(&cases);
    }

    /// Compares scores of given tokens, likely ones and others, with the CPU's.
    #[track_caller]
    fn check_scores(vocab_size: usize, spread: f32, tops: &[u32]) {
        let (device, num_rows) = (device(), tops.len());
        let stride = vocab_size + 3;
        let rows: Vec<Vec<f32>> = (0..num_rows).map(|row| Case::new(vocab_size, spread, row as u32).logits).collect();
        let mut logits = vec![f32::NAN; num_rows * stride];
        logits.chunks_mut(stride).zip(&rows).for_each(|(to, row)| to[..vocab_size].copy_from_slice(row));
        let given = |row: usize| if row.is_multiple_of(3) { cpu::argmax(&rows[row]) } else { (row * 7919 % vocab_size) as u32 };
        let specs: Vec<ScoreSpec> = tops.iter().enumerate().map(|(row, &top)| ScoreSpec { token: given(row), top }).collect();
        let mut sampler = Sampler::new(&device, num_rows).unwrap();
        for _ in 0..2 {
            let mut on_device = device.upload(&logits).unwrap();
            let chain = sampler.upload_scores(&specs).unwrap();
            sampler.launch(&mut on_device, stride, vocab_size, num_rows, chain).unwrap();
            for ((found, row), spec) in sampler.results().unwrap().iter().zip(&rows).zip(&specs) {
                let (found, expected) = (found.logprobs.clone().unwrap(), cpu::log_probs(row, spec.token, spec.top));
                let all = |(chosen, top): (RankedLogProb, Vec<RankedLogProb>)| std::iter::once(chosen).chain(top);
                let pairs = all(found.clone()).zip(all(expected.clone()));
                assert_eq!(found.1.len(), expected.1.len());
                for (found, expected) in pairs {
                    assert_eq!((found.token, found.rank), (expected.token, expected.rank), "{spec:?}");
                    assert!((found.logprob - expected.logprob).abs() <= 2e-5, "{found:?} {expected:?}");
                }
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_rows_that_hold_no_numbers_have_no_margin_and_harm_no_other() {
        let (device, vocab_size) = (device(), 5000);
        let ways = [(0.0, 1.0, None), (1.0, 1.0, Some(0)), (0.0, 1.0, Some(5)), (1.0, 0.9, Some(5)), (1.0, 0.99, None)];
        for (temperature, top_p, logprobs) in ways {
            let case = |broken: Option<(usize, f32)>| {
                let mut case = Case { logprobs, ..Case::new(vocab_size, 1.0, 3) };
                case.distribution = Distribution { temperature, top_p, ..case.distribution };
                broken.into_iter().for_each(|(at, value)| case.logits[at] = value);
                case
            };
            let broken = [Some((0, f32::NAN)), None, Some((4999, f32::NAN)), Some((2500, f32::INFINITY)), None];
            let cases = broken.map(case);
            let logits: Vec<f32> = cases.iter().flat_map(|case| case.logits.clone()).collect();
            let specs: Vec<SampleSpec> = cases.iter().map(Case::spec).collect();
            let mut sampler = Sampler::new(&device, cases.len()).unwrap();
            for _ in 0..2 {
                let mut on_device = device.upload(&logits).unwrap();
                let chain = sampler.upload(&specs).unwrap();
                sampler.launch(&mut on_device, vocab_size, vocab_size, cases.len(), chain).unwrap();
                for (row, (found, broken)) in sampler.results().unwrap().iter().zip(broken).enumerate() {
                    match broken {
                        Some(_) => {
                            assert!(found.margin.is_nan(), "{found:?}");
                            assert!(found.logprobs.iter().all(|(chosen, _)| chosen.logprob.is_nan()), "{found:?}");
                        }
                        None => assert_equal(row, found, &cases[row]),
                    }
                }
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_scores_of_given_tokens_are_the_cpus() {
        check_scores(97, 1.0, &[0, 1, 5, 97, 256, 0, 20]);
        check_scores(50_257, 6.0, &[5, 0, 20, 5, 64, 1, 0, 256]);
        check_scores(152_064, 0.5, &[0, 0, 5, 5, 5, 20]);
        check_scores(152_064, 30.0, &[0; 5]);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_greedy_rows_alone_need_two_launches() {
        check(&[(1, 5.0), (2, 0.1), (3, 40.0)].map(|(seed, spread)| Case::new(152_064, spread, seed)));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_masked_rows_beside_others_are_drawn_as_on_the_cpu() {
        let vocab_size = 151_936;
        let every = |step: u32, first: u32| (0..vocab_size as u32).step_by(step as usize).filter(move |token| *token >= first);
        let bits = |tokens: &mut dyn Iterator<Item = u32>, num_words: usize| {
            let mut words = vec![0u32; num_words];
            tokens
                .filter(|token| (*token as usize) < 32 * num_words)
                .for_each(|token| words[token as usize / 32] |= 1 << (token % 32));
            words
        };
        let masks = [
            None,
            Some(bits(&mut every(7, 3), 4748)),
            Some(bits(&mut every(1009, 0), 4748)),
            Some(bits(&mut every(31, 100), 300)),
            Some(bits(&mut [151_935].into_iter(), 4748)),
        ];
        let mut cases = Vec::new();
        for (idx, mask) in masks.iter().cycle().take(20).enumerate() {
            let mut case = Case::new(vocab_size, 6.0, idx as u32);
            case.distribution = Distribution {
                temperature: [0.0, 0.8, 1.3, 0.0][idx / 5],
                top_k: [0, 0, 40, 0][idx / 5],
                top_p: 0.95,
                min_p: 0.0,
            };
            case.logprobs = [None, Some(0)][idx / 10];
            case.mask.clone_from(mask);
            cases.push(case);
        }
        check(&cases);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_equal_logits_are_taken_by_the_smallest_id() {
        for (temperature, top_k) in [(0.0, 0), (1.0, 0), (1.0, 100), (1.0, 9000)] {
            let mut case = Case::new(20_001, 0.0, 3);
            case.distribution = Distribution { temperature, top_k, ..case.distribution };
            case.logprobs = Some(3);
            check(&[case]);
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_adjustments_are_the_cpus() {
        let mut cases = Vec::new();
        for seed in 0..8 {
            let mut case = Case::new(10_007, 4.0, seed);
            case.distribution = Distribution { temperature: seed as f32 * 0.2, top_p: 0.95, ..case.distribution };
            case.logprobs = (seed % 2 == 0).then_some(7);
            let adjustment = |token: u32| {
                let subtract = [0.0, 0.4, 1.7, f32::INFINITY][token as usize % 4];
                Adjustment { token, bias: (token % 5) as f32 * 0.3, repetition: 1.0 + (token % 3) as f32 * 0.1, subtract }
            };
            case.adjustments = (0..10_020).step_by(1 + 13 * seed as usize).map(adjustment).collect();
            cases.push(case);
        }
        check(&cases);
    }
}
