//! Memory, threads and batch limits of the engine.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::flag::set;
use super::{Auto, ByteSize, Device, Millis};

/// `[engine]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EngineConfig {
    /// Device that runs the model.
    pub(crate) device: Device,
    /// Compute threads; all cores by default.
    pub(crate) threads: Auto<usize>,
    /// Memory for the KV pool; by default a quarter of the available memory, at most 4 GiB.
    pub(crate) kv_cache_memory: Auto<ByteSize>,
    /// Main memory for KV that the pool has no room for; none by default.
    pub(crate) host_kv_memory: ByteSize,
    /// Bandwidth from there to the device until it is measured, in GB/s.
    pub(crate) host_kv_bandwidth: f64,
    /// Number format of cached keys and values.
    pub(crate) kv_cache_dtype: KvCacheDtype,
    /// Share of a GPU's memory that weights, KV pool and activations take together.
    pub(crate) gpu_memory_utilization: f64,
    /// Tokens computed in one step, prompts and answers together; by default as many as the device computes well.
    pub(crate) max_num_batched_tokens: Auto<usize>,
    /// Requests running at once; by default as many as the device serves well.
    pub(crate) max_num_seqs: Auto<usize>,
    /// Length of prompt and answer together; the model's own limit by default.
    pub(crate) max_model_len: Auto<u32>,
    /// Order of the waiting requests.
    pub(crate) scheduling: Scheduling,
    /// Waiting time after which a request goes first, unless the queue was longer when it arrived.
    pub(crate) max_overtake: Millis,
    /// True to prepare a GPU's next step while one runs.
    pub(crate) run_ahead: bool,
}

/// Number format of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KvCacheDtype {
    /// Half precision: half the memory.
    F16,
    /// Single precision.
    F32,
}

/// Order of the waiting requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scheduling {
    /// First come, first served.
    Fcfs,
    /// Highest share of the prompt in the cache first.
    KvHitRate,
    /// Least predicted time to the first token first, with ageing.
    RemainingWork,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            threads: Auto::Auto,
            kv_cache_memory: Auto::Auto,
            host_kv_memory: ByteSize(0),
            host_kv_bandwidth: 16.0,
            kv_cache_dtype: KvCacheDtype::F16,
            gpu_memory_utilization: 0.9,
            max_num_batched_tokens: Auto::Auto,
            max_num_seqs: Auto::Auto,
            max_model_len: Auto::Auto,
            scheduling: Scheduling::RemainingWork,
            max_overtake: Millis::seconds(2),
            run_ahead: true,
        }
    }
}

/// More threads than any machine has cores to run them.
const MAX_THREADS: usize = 1024;
/// More rows than any device computes in a step that a client would wait for.
const MAX_BATCHED_TOKENS: usize = 1 << 18;
/// More sequences than a step of so many rows could have.
const MAX_SEQS: usize = 1 << 14;

impl EngineConfig {
    /// Returns the engine's configuration of the host tier for `model`.
    pub(crate) fn host(&self, model: &runner::LoadedModel) -> engine::HostConfig {
        engine::HostConfig {
            num_blocks: model.num_host_blocks,
            block_bytes: model.block_bytes,
            bandwidth: self.host_kv_bandwidth,
        }
    }

    /// Returns tokens of a step and requests at once: as set, else as many as `device` computes well, and never fewer tokens than requests.
    pub(crate) fn batch_limits(&self, device: Device) -> (usize, usize) {
        let (tokens, seqs) = match device {
            Device::Cuda(_) => (8192, 256),
            Device::Auto | Device::Cpu => (512, 64),
        };
        match (self.max_num_batched_tokens, self.max_num_seqs) {
            (Auto::Set(tokens), Auto::Set(seqs)) => (tokens, seqs),
            (Auto::Set(tokens), Auto::Auto) => (tokens, seqs.min(tokens)),
            (Auto::Auto, Auto::Set(seqs)) => (tokens.max(seqs), seqs),
            (Auto::Auto, Auto::Auto) => (tokens, seqs),
        }
    }

    /// Returns the compute threads.
    pub(crate) fn num_threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.value().unwrap_or_else(cores)
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.threads == Auto::Set(0) {
            problems.push("engine.threads is 0".to_owned());
        }
        if self.max_num_batched_tokens == Auto::Set(0) {
            problems.push("engine.max_num_batched_tokens is 0, so no step would compute anything".to_owned());
        }
        let counts = [
            ("threads", self.threads, MAX_THREADS),
            ("max_num_batched_tokens", self.max_num_batched_tokens, MAX_BATCHED_TOKENS),
            ("max_num_seqs", self.max_num_seqs, MAX_SEQS),
        ];
        for (key, count, most) in counts {
            if let Auto::Set(count) = count
                && count > most
            {
                problems.push(format!("engine.{key} {count} is above {most}"));
            }
        }
        if self.kv_cache_memory == Auto::Set(ByteSize(0)) {
            problems.push("engine.kv_cache_memory is 0, so no request would fit".to_owned());
        }
        if !(self.host_kv_bandwidth.is_finite() && self.host_kv_bandwidth > 0.0) {
            problems.push(format!("engine.host_kv_bandwidth must be above 0, is {}", self.host_kv_bandwidth));
        }
        if !(0.05..=1.0).contains(&self.gpu_memory_utilization) {
            problems.push(format!("engine.gpu_memory_utilization {} is not between 0.05 and 1", self.gpu_memory_utilization));
        }
        if self.max_num_seqs == Auto::Set(0) {
            problems.push("engine.max_num_seqs is 0, so no request would run".to_owned());
        }
        if let (Auto::Set(tokens), Auto::Set(seqs)) = (self.max_num_batched_tokens, self.max_num_seqs)
            && tokens < seqs
        {
            problems.push(format!(
                "engine.max_num_batched_tokens {tokens} is below engine.max_num_seqs {seqs}, so a full batch could not take one token each"
            ));
        }
        if self.max_model_len.value().is_some_and(|len| len < 2) {
            problems.push("engine.max_model_len is below 2, so no prompt could be continued".to_owned());
        }
        problems
    }
}

impl KvCacheDtype {
    /// Returns its name in the configuration.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

impl From<KvCacheDtype> for runner::KvDtype {
    fn from(dtype: KvCacheDtype) -> Self {
        match dtype {
            KvCacheDtype::F16 => Self::F16,
            KvCacheDtype::F32 => Self::F32,
        }
    }
}

impl From<Scheduling> for engine::SchedulePolicy {
    fn from(scheduling: Scheduling) -> Self {
        match scheduling {
            Scheduling::Fcfs => Self::Fcfs,
            Scheduling::KvHitRate => Self::KvHitRate,
            Scheduling::RemainingWork => Self::RemainingWork,
        }
    }
}

/// Flags of `[engine]`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Device that runs the model [default: auto]
    #[arg(long, env = "KVSHARE_DEVICE", value_name = "auto|cpu|cuda:N")]
    device: Option<Device>,
    /// Threads that compute [default: all cores]
    #[arg(long, short, env = "KVSHARE_THREADS", value_name = "N")]
    threads: Option<Auto<usize>>,
    /// Memory for the KV pool, e.g. 2GiB [default: a quarter of what is available, at most 4GiB; on a GPU what its share leaves]
    #[arg(long, env = "KVSHARE_KV_CACHE_MEMORY", value_name = "SIZE")]
    kv_cache_memory: Option<Auto<ByteSize>>,
    /// Main memory for KV that the pool has no room for, e.g. 8GiB [default: 0]
    #[arg(long, env = "KVSHARE_HOST_KV_MEMORY", value_name = "SIZE")]
    host_kv_memory: Option<ByteSize>,
    /// Bandwidth from there to the device until it was measured, in GB/s [default: 16]
    #[arg(long, env = "KVSHARE_HOST_KV_BANDWIDTH", value_name = "GB/S")]
    host_kv_bandwidth: Option<f64>,
    /// Number format of cached keys and values [default: f16]
    #[arg(long, env = "KVSHARE_KV_CACHE_DTYPE", value_enum)]
    kv_cache_dtype: Option<KvCacheDtype>,
    /// Share of a GPU's memory for weights, KV pool and activations together [default: 0.9]
    #[arg(long, env = "KVSHARE_GPU_MEMORY_UTILIZATION", value_name = "SHARE")]
    gpu_memory_utilization: Option<f64>,
    /// Tokens computed in one step [default: 512, on a GPU 8192]
    #[arg(long, env = "KVSHARE_MAX_NUM_BATCHED_TOKENS", value_name = "N")]
    max_num_batched_tokens: Option<Auto<usize>>,
    /// Requests running at once [default: 64, on a GPU 256]
    #[arg(long, env = "KVSHARE_MAX_NUM_SEQS", value_name = "N")]
    max_num_seqs: Option<Auto<usize>>,
    /// Tokens of prompt and answer together [default: the model's limit]
    #[arg(long, env = "KVSHARE_MAX_MODEL_LEN", value_name = "N")]
    max_model_len: Option<Auto<u32>>,
    /// Order of the waiting requests [default: remaining-work]
    #[arg(long, env = "KVSHARE_SCHEDULING", value_enum)]
    scheduling: Option<Scheduling>,
    /// A request that has waited longer goes first, unless the queue was longer when it came [default: 2s]
    #[arg(long, env = "KVSHARE_MAX_OVERTAKE", value_name = "TIME")]
    max_overtake: Option<Millis>,
    /// On a GPU, make the next step ready while one runs [default: true]
    #[arg(long, env = "KVSHARE_RUN_AHEAD", value_name = "BOOL")]
    run_ahead: Option<bool>,
}

impl EngineArgs {
    pub(super) fn apply(self, config: &mut EngineConfig) {
        set(&mut config.device, self.device);
        set(&mut config.threads, self.threads);
        set(&mut config.kv_cache_memory, self.kv_cache_memory);
        set(&mut config.host_kv_memory, self.host_kv_memory);
        set(&mut config.host_kv_bandwidth, self.host_kv_bandwidth);
        set(&mut config.kv_cache_dtype, self.kv_cache_dtype);
        set(&mut config.gpu_memory_utilization, self.gpu_memory_utilization);
        set(&mut config.max_num_batched_tokens, self.max_num_batched_tokens);
        set(&mut config.max_num_seqs, self.max_num_seqs);
        set(&mut config.max_model_len, self.max_model_len);
        set(&mut config.scheduling, self.scheduling);
        set(&mut config.max_overtake, self.max_overtake);
        set(&mut config.run_ahead, self.run_ahead);
    }
}
