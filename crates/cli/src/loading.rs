//! Loading of the configured model: its files, its KV pool, its tokenizer, and the engine's settings for it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use models::{ModelFiles, Weights};
use runner::{CpuOptions, DeviceOptions, GgufVocabulary, GpuOptions, LoadOptions, LoadedModel, WeightFiles};
use tokenizer::Tokenizer;
use tokens::{BlockSize, TokenId};

use crate::config::{Auto, ByteSize, Config, Device, EmbedderKind, EngineConfig, Millis, ModelConfig};
use crate::generation;
use crate::memory;
use crate::progress::{FetchProgress, Progress, Unit};

/// Loaded model with facts for the start message.
pub(crate) struct Loaded {
    /// Files of the model, and its name.
    pub(crate) files: ModelFiles,
    /// Model.
    pub(crate) model: LoadedModel,
    /// Device that runs it; never [`Device::Auto`].
    pub(crate) device: Device,
    /// Time to read the weights.
    pub(crate) load_seconds: f64,
}

/// Loads the configured model, and fetches it first if necessary.
///
/// # Errors
/// If it cannot be fetched or read, or memory does not suffice.
pub(crate) fn load(config: &Config) -> anyhow::Result<Loaded> {
    // Checked before anything is fetched, because that may take minutes.
    let device = device(&config.engine);
    let options = device_options(&config.engine, device)?;
    let files = models::resolve(config.model.source(), &FetchProgress)?;
    let started = Instant::now();
    let model = load_weights(config, &files, device, options)?;
    Ok(Loaded { files, model, device, load_seconds: started.elapsed().as_secs_f64() })
}

/// Resolves the device that runs the model.
pub(crate) fn device(config: &EngineConfig) -> Device {
    match config.device {
        Device::Auto if runner::has_cuda_device() => Device::Cuda(0),
        Device::Auto => Device::Cpu,
        chosen => chosen,
    }
}

fn device_options(config: &EngineConfig, device: Device) -> anyhow::Result<DeviceOptions> {
    let left = beside_host_tier(config, memory::available())?;
    Ok(match device {
        Device::Cuda(ordinal) => DeviceOptions::Cuda(GpuOptions {
            ordinal,
            memory_utilization: config.gpu_memory_utilization,
            kv_bytes: config.kv_cache_memory.value().map(|size| size.0),
        }),
        Device::Auto | Device::Cpu => DeviceOptions::Cpu(CpuOptions {
            threads: config.num_threads(),
            kv_dtype: config.kv_cache_dtype.into(),
            kv_bytes: kv_cache_memory(config, left)?.0,
        }),
    })
}

fn load_weights(config: &Config, files: &ModelFiles, device: Device, options: DeviceOptions) -> anyhow::Result<LoadedModel> {
    let (weights, path) = match &files.weights {
        Weights::Gguf(path) => (WeightFiles::Gguf(path.clone()), path),
        Weights::Safetensors(path) => (WeightFiles::Safetensors(path.clone()), path),
        Weights::Random(config) => (WeightFiles::Random { config: config.clone(), seed: 0 }, config),
    };
    let (max_num_batched_tokens, max_num_seqs) = config.engine.batch_limits(device);
    let options = LoadOptions {
        weights,
        device: options,
        host_kv_bytes: config.engine.host_kv_memory.0,
        max_model_len: config.engine.max_model_len.value().map(|len| len as usize),
        max_num_batched_tokens,
        max_num_seqs,
        keeps_embedding: config.sharing.embedder == EmbedderKind::Token,
    };
    let mut progress = Progress::new(format!("loading {} (%)", files.id), Unit::Count, 100);
    let loaded = runner::load(&options, &mut |share| progress.set((share * 100.0) as u64));
    progress.finish();
    loaded.with_context(|| format!("loading {} on {device}", path.display()))
}

/// Returns the available main memory minus that of the host tier.
fn beside_host_tier(config: &EngineConfig, available: Option<ByteSize>) -> anyhow::Result<Option<ByteSize>> {
    let host = config.host_kv_memory;
    match available {
        Some(available) if host > available => {
            bail!("host_kv_memory {host} is more than the {} of memory that are available", whole_mib(available))
        }
        _ => Ok(available.map(|available| ByteSize(available.0 - host.0))),
    }
}

/// Returns the configured size, or the default share of the memory left beside the host tier.
fn kv_cache_memory(config: &EngineConfig, left: Option<ByteSize>) -> anyhow::Result<ByteSize> {
    match (config.kv_cache_memory, left) {
        (Auto::Set(wanted), Some(left)) if wanted > left => {
            let beside = match config.host_kv_memory {
                ByteSize(0) => String::new(),
                host => format!(" beside host_kv_memory {host}"),
            };
            bail!("kv_cache_memory {wanted} is more than the {} of memory that are available{beside}", whole_mib(left))
        }
        (Auto::Set(wanted), _) => Ok(wanted),
        (Auto::Auto, left) => Ok(memory::default_pool(left)),
    }
}

/// Rounds down to whole MiB, for readability.
fn whole_mib(size: ByteSize) -> ByteSize {
    ByteSize(size.0 >> 20 << 20)
}

/// Builds the engine's settings for a loaded model.
///
/// # Errors
/// If the model's length exceeds `u32`.
pub(crate) fn scheduler_config(config: &Config, loaded: &Loaded) -> anyhow::Result<engine::SchedulerConfig> {
    let Loaded { device, model, .. } = loaded;
    let max_model_len = u32::try_from(model.max_model_len).context("the model's length")?;
    Ok(engine::SchedulerConfig {
        block_size: BlockSize::DEFAULT,
        cache_groups: model.cache_groups.clone(),
        host: config.engine.host(model),
        max_num_batched_tokens: model.max_num_batched_tokens,
        max_num_seqs: model.max_num_seqs,
        policy: config.engine.scheduling.into(),
        max_overtake: config.engine.max_overtake.get(),
        run_ahead: config.engine.run_ahead,
        spans: config.sharing.spans(),
        max_donors: config.sharing.max_donors,
        max_donor_tokens: config.sharing.max_donor_tokens,
        gate: config.sharing.gate(),
        verification: config.sharing.verification(*device),
        guard: config.sharing.guard(),
        donor_ttl: config.sharing.donor_ttl.value().map(Millis::get),
        ..engine::SchedulerConfig::new(model.num_blocks, max_model_len)
    })
}

/// Loads the tokenizer: the configured one, else the one next to the weights, else the one inside them.
///
/// # Errors
/// If there is none, or its kind is not supported.
pub(crate) fn tokenizer(config: &ModelConfig, loaded: &mut Loaded) -> anyhow::Result<Tokenizer> {
    let inside = loaded.model.vocabulary.take();
    let (path, vocabulary) = match loaded.files.tokenizer.as_deref() {
        Some(path) if path.extension().is_some_and(|extension| extension == "gguf") => {
            let vocabulary =
                runner::read_vocabulary(path).with_context(|| format!("reading the tokenizer {}", path.display()))?;
            (None, Some(vocabulary))
        }
        path => (path, inside),
    };
    let template = vocabulary.as_ref().and_then(|vocabulary| vocabulary.chat_template.clone());
    let built = match (path, vocabulary) {
        (Some(path), _) => from_file(path)?,
        (None, Some(vocabulary)) => Tokenizer::from_gguf(convert(vocabulary)).context("the tokenizer")?,
        (None, None) => bail!("{} has no tokenizer: give one with --tokenizer", loaded.files.id),
    };
    let (num_tokens, num_embeddings) = (built.vocab_size(), loaded.model.config.vocab_size);
    if num_tokens > num_embeddings {
        bail!("the tokenizer has {num_tokens} tokens, {} only {num_embeddings}", loaded.files.id);
    }
    let special = &loaded.model.special_tokens;
    let of_checkpoint = [&special.eos[..], &generation::end_tokens(config)?].concat();
    if let Some(id) = of_checkpoint.iter().find(|id| **id as usize >= num_embeddings) {
        bail!("generation_config.json: eos_token_id is {id}, not the id of one of the model's {num_embeddings} tokens");
    }
    let (bos, eos) = (built.bos().or(special.bos.map(TokenId)), end_tokens(built.eos_ids(), &of_checkpoint));
    let built = built.with_special_ids(bos, eos).with_content_control_tokens(config.content_control_tokens);
    if let Some(path) = config.chat_template.as_ref().value() {
        let source = std::fs::read_to_string(path).with_context(|| format!("reading the chat template {}", path.display()))?;
        return built.with_chat_template(&source).with_context(|| format!("the chat template {}", path.display()));
    }
    match template {
        Some(source) if built.chat_template().is_none() => built.with_chat_template(&source).context("the model's chat template"),
        _ => Ok(built),
    }
}

/// Reads a tokenizer; with its usual name also the files next to it, which name special tokens and the chat template.
fn from_file(path: &Path) -> anyhow::Result<Tokenizer> {
    let folder = path.parent().filter(|_| path.file_name().is_some_and(|name| name == "tokenizer.json"));
    let built = match folder {
        Some(folder) => Tokenizer::from_folder(folder).map_err(anyhow::Error::from),
        None => Tokenizer::from_file(path).map_err(anyhow::Error::from),
    };
    built.with_context(|| format!("reading the tokenizer {}", path.display()))
}

/// Merges the end tokens of tokenizer and checkpoint, each once, the tokenizer's first.
fn end_tokens(of_tokenizer: &[TokenId], of_checkpoint: &[u32]) -> Vec<TokenId> {
    let mut all = of_tokenizer.to_vec();
    for id in of_checkpoint.iter().copied().map(TokenId) {
        if !all.contains(&id) {
            all.push(id);
        }
    }
    all
}

/// Converts between the types of the loader and the tokenizer, neither of which imports the other.
fn convert(vocabulary: GgufVocabulary) -> tokenizer::GgufVocabulary {
    tokenizer::GgufVocabulary {
        model: vocabulary.model,
        pre: vocabulary.pre,
        tokens: vocabulary.tokens,
        scores: vocabulary.scores,
        token_types: vocabulary.token_types,
        merges: vocabulary.merges,
        bos: vocabulary.bos,
        eos: vocabulary.eos,
        eot: vocabulary.eot,
        unk: vocabulary.unk,
        pad: vocabulary.pad,
        add_bos: vocabulary.add_bos,
        add_eos: vocabulary.add_eos,
        add_space_prefix: vocabulary.add_space_prefix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None`: an error.
    #[track_caller]
    fn check(wanted: Auto<ByteSize>, available: Option<ByteSize>, expected: Option<ByteSize>) {
        check_beside(ByteSize(0), wanted, available, expected);
    }

    /// Checks the same beside a host tier of `host`.
    #[track_caller]
    fn check_beside(host: ByteSize, wanted: Auto<ByteSize>, available: Option<ByteSize>, expected: Option<ByteSize>) {
        let config = EngineConfig { kv_cache_memory: wanted, host_kv_memory: host, ..EngineConfig::default() };
        let found = beside_host_tier(&config, available).and_then(|left| kv_cache_memory(&config, left));
        assert_eq!(found.ok(), expected);
    }

    #[test]
    fn pool_and_host_tier_share_what_there_is() {
        check_beside(ByteSize::gib(4), Auto::Set(ByteSize::gib(4)), Some(ByteSize::gib(8)), Some(ByteSize::gib(4)));
        check_beside(ByteSize::gib(4), Auto::Set(ByteSize::gib(5)), Some(ByteSize::gib(8)), None);
        check_beside(ByteSize::gib(4), Auto::Auto, Some(ByteSize::gib(8)), Some(ByteSize::gib(1)));
        check_beside(ByteSize::gib(9), Auto::Auto, Some(ByteSize::gib(8)), None);
    }

    #[test]
    fn the_pool_is_what_was_asked_for_or_a_share_of_what_there_is() {
        check(Auto::Set(ByteSize::gib(2)), Some(ByteSize::gib(8)), Some(ByteSize::gib(2)));
        check(Auto::Set(ByteSize::gib(2)), None, Some(ByteSize::gib(2)));
        check(Auto::Auto, Some(ByteSize::gib(8)), Some(ByteSize::gib(2)));
    }

    #[test]
    fn more_than_there_is_is_refused() {
        check(Auto::Set(ByteSize::gib(9)), Some(ByteSize::gib(8)), None);
    }

    #[test]
    fn end_tokens_of_both_sides_count_once() {
        assert_eq!(end_tokens(&[TokenId(2), TokenId(5)], &[5, 7]), [TokenId(2), TokenId(5), TokenId(7)]);
    }
}
