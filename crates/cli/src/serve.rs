//! The composition root: configuration, model, engine and server become a daemon.

use std::net::{IpAddr, TcpListener};
use std::num::NonZero;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use engine::{EngineCore, SchedulerConfig};
use runner::ModelRunner;
use server::{Access, AppState, Ended, EngineThread, EngineThreadConfig, Metrics, ModelInfo, ServedModel};
use tokio::runtime::{self, Runtime};

use crate::config::{ByteSize, Config, Device, LogFormat, ServerConfig, SharingConfig};
use crate::embedders;
use crate::loading::{self, Loaded};
use crate::logging;

/// Threads that speak HTTP, at least: one may be tokenizing. The engine has its own, and computing those of its kernels.
const MIN_HTTP_THREADS: usize = 2;
/// And at most. Chosen: streaming 128 answers at 600 tokens a second each keeps fewer busy.
const MAX_HTTP_THREADS: usize = 8;

/// What a start tells the operator.
struct Started {
    model: String,
    facts: String,
    address: String,
}

/// Serves until a signal ends it.
///
/// # Errors
/// If the port is taken, the model cannot be had, memory does not suffice, or a second signal cut a drain short.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    logging::init(&config.log);
    // First, so that a taken port is told before a model is fetched. Clients wait in the backlog meanwhile.
    let listener = bind(&config.server)?;
    let access = config.tenants.access()?;
    warn_if_open(&access, &listener)?;
    let mut loaded = loading::load(config)?;
    let tokenizer = Arc::new(loading::tokenizer(&mut loaded)?);
    let chosen = embedders::build(&config.sharing, loaded.model.embedding.as_ref(), &tokenizer)?;
    let scheduler = SchedulerConfig {
        quotas: access.tenants.quota_blocks(loaded.model.num_blocks),
        embeddings: chosen.as_ref().map(|chosen| chosen.index_config(config.sharing.max_donors)),
        ..loading::scheduler_config(config, &loaded.model)?
    };
    let info = Arc::new(model_info(&loaded, &scheduler, tokenizer.eos_ids()));
    let started = Started::new(config, &loaded, &scheduler, &listener)?;
    let metrics = Arc::new(Metrics::new(&info, &scheduler));
    let engine = EngineCore::new(scheduler, loaded.model.runner).context("starting the engine")?;
    let model = ServedModel { info, tokenizer, embedder: chosen.map(|chosen| chosen.embedder) };
    let runtime = runtime()?;
    let app = start_engine(config, engine, model, metrics, access, runtime.handle())?;
    started.announce(config.log.format);
    serve_until_signalled(runtime, listener, app)
}

fn bind(config: &ServerConfig) -> anyhow::Result<TcpListener> {
    let ServerConfig { host, port, .. } = config;
    let listener = TcpListener::bind((host.as_str(), *port)).with_context(|| format!("listening on {host}:{port}"))?;
    listener.set_nonblocking(true).context("preparing the listener")?;
    Ok(listener)
}

/// A daemon that others reach should know who they are.
fn warn_if_open(access: &Access, listener: &TcpListener) -> anyhow::Result<()> {
    let address = listener.local_addr().context("the listener's address")?;
    if needs_warning(access.tenants.is_open(), address.ip()) {
        tracing::warn!(%address, "no API keys: everybody who reaches this address may use, list and erase everything");
    }
    Ok(())
}

fn needs_warning(is_open: bool, address: IpAddr) -> bool {
    is_open && !address.is_loopback()
}

fn model_info(loaded: &Loaded, scheduler: &SchedulerConfig, eos: &[tokens::TokenId]) -> ModelInfo {
    // A clock before 1970 is no reason not to serve.
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    ModelInfo {
        id: loaded.files.id.clone(),
        aliases: Vec::new(),
        max_model_len: scheduler.max_model_len,
        vocab_size: u32::try_from(loaded.model.config.vocab_size).expect("token ids are 32 bits wide"),
        eos_token_ids: eos.to_vec(),
        created,
    }
}

fn start_engine(
    config: &Config,
    engine: EngineCore<ModelRunner>,
    model: ServedModel,
    metrics: Arc<Metrics>,
    access: Access,
    runtime: &runtime::Handle,
) -> anyhow::Result<Arc<AppState>> {
    let bounds = EngineThreadConfig { max_queue: config.server.max_queue, ..EngineThreadConfig::default() };
    let on_fatal = |fatal| {
        eprintln!("error: {fatal}");
        // The pool may be half updated: nothing of this process can be trusted any more.
        std::process::exit(1);
    };
    let handle =
        EngineThread::spawn(engine, bounds, Arc::clone(&metrics), runtime, on_fatal).context("starting the engine thread")?;
    AppState::new(model, handle, metrics, http_config(&config.server, &config.sharing), access).context("server configuration")
}

fn http_config(server: &ServerConfig, sharing: &SharingConfig) -> server::ServerConfig {
    server::ServerConfig {
        max_connections: server.max_connections,
        body_limit: usize::try_from(server.body_limit.0).unwrap_or(usize::MAX),
        body_read_timeout: server.body_read_timeout.get(),
        header_read_timeout: server.header_read_timeout.get(),
        max_n: server.max_n,
        keep_alive: server.keep_alive.get(),
        shutdown_timeout: server.shutdown_timeout.get(),
        sharing: sharing.defaults(),
        ..server::ServerConfig::default()
    }
}

/// Where HTTP is spoken.
fn runtime() -> anyhow::Result<Runtime> {
    let num_cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let num_threads = (num_cores / 2).clamp(MIN_HTTP_THREADS, MAX_HTTP_THREADS);
    runtime::Builder::new_multi_thread().worker_threads(num_threads).enable_all().build().context("starting the runtime")
}

fn serve_until_signalled(runtime: Runtime, listener: TcpListener, app: Arc<AppState>) -> anyhow::Result<()> {
    let ended = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("preparing the listener")?;
        let signals = server::termination_signals().context("listening to signals")?;
        Ok::<_, anyhow::Error>(server::serve(listener, app, signals).await)
    })?;
    // Tasks that embed prompts are not waited for: nobody wants their results any more.
    runtime.shutdown_background();
    match ended {
        Ended::Drained | Ended::Cut => Ok(()),
        Ended::Forced => bail!("a second signal ended the daemon before its requests were answered"),
    }
}

impl Started {
    fn new(config: &Config, loaded: &Loaded, scheduler: &SchedulerConfig, listener: &TcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr().context("the listener's address")?;
        let device = match loaded.device {
            Device::Cuda(_) => format!("{} ({})", loaded.device, loaded.model.device),
            Device::Auto | Device::Cpu => format!("cpu with {} threads", config.engine.num_threads()),
        };
        let model = format!(
            "{} ({:.1}s to load, {} MiB of weights)",
            loaded.files.id,
            loaded.load_seconds,
            loaded.model.weight_bytes >> 20
        );
        let host = match scheduler.host.num_blocks {
            0 => String::new(),
            num_blocks => format!(" and {num_blocks} in {} of main memory", config.engine.host_kv_memory),
        };
        let facts = format!(
            "{} KV blocks of {} tokens in {}{host}, up to {} tokens a request, sharing: {}, {device}",
            scheduler.num_blocks,
            scheduler.block_size.get(),
            ByteSize(loaded.model.kv_bytes >> 20 << 20),
            scheduler.max_model_len,
            config.sharing.mode.as_str()
        );
        Ok(Self { model, facts, address: format!("http://{address}") })
    }

    /// Plain lines for people, an event for programs.
    fn announce(&self, format: LogFormat) {
        let Self { model, facts, address } = self;
        match format {
            LogFormat::Text => eprintln!("model    {model}\nengine   {facts}\nserving  {address}/v1"),
            LogFormat::Json => tracing::info!(model, engine = facts, address, "serving"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_agree_with_those_of_the_parts() {
        let config = Config::default();
        assert_eq!(http_config(&config.server, &config.sharing), server::ServerConfig::default());
        assert_eq!(config.server.max_queue, EngineThreadConfig::default().max_queue);
        assert_eq!(config.sharing.spans(), semantic::SpanConfig::default());
        let parts = SchedulerConfig::new(1, 2);
        assert_eq!(config.engine.batch_limits(Device::Cpu), (parts.max_num_batched_tokens, parts.max_num_seqs));
        assert_eq!(engine::SchedulePolicy::from(config.engine.scheduling), parts.policy);
        assert_eq!(config.engine.max_overtake.get(), parts.max_overtake);
        assert_eq!(config.engine.run_ahead, parts.run_ahead);
        assert_eq!(config.sharing.max_donors, parts.max_donors);
        assert_eq!(config.sharing.max_donor_tokens, parts.max_donor_tokens);
        assert_eq!(config.sharing.gate(), parts.gate);
        assert_eq!(config.sharing.guard(), parts.guard);
        let verification = engine::VerificationConfig { share: config.sharing.verify_share, ..parts.verification };
        assert_eq!(config.sharing.verification(), verification);
        assert_eq!(config.engine.host_kv_bandwidth, parts.host.bandwidth);
    }

    #[test]
    fn only_what_others_reach_without_keys_is_warned_about() {
        let (here, everywhere) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0]));
        assert!(needs_warning(true, everywhere));
        assert!(!needs_warning(true, here) && !needs_warning(false, everywhere));
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind(&ServerConfig { port, ..ServerConfig::default() }).unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("listening on 127.0.0.1:{port}: ")), "{error:#}");
    }
}
