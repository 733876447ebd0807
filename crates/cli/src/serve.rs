//! Composition root: builds a daemon from configuration, model, engine and server.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use engine::{EngineCore, SchedulerConfig};
use futures::{Stream, StreamExt};
use server::{
    Access, AnswerForms, AppState, Embedder, Ended, EngineThread, EngineThreadConfig, Fatal, Metrics, ModelInfo,
    SamplingDefaults, ServedModel, TextEmbedder,
};
use tokenizer::ChatTemplate;
use tokio::runtime::{self, Runtime};
use tokio::sync::{oneshot, watch};

use crate::config::{Config, Device, LogFormat, ServerConfig, SharingConfig, TenantsConfig};
use crate::embedders::{self, ServedEmbedder};
use crate::generation;
use crate::loading::{self, Loaded};
use crate::{logging, open_files, stderr};

/// Minimum HTTP threads: one may be tokenizing. The engine has its own, and compute threads for its kernels.
const MIN_HTTP_THREADS: usize = 2;
/// Maximum HTTP threads. Chosen: streaming 128 answers at 600 tokens a second each keeps fewer busy.
const MAX_HTTP_THREADS: usize = 8;

/// Printing of a start: none if the only client is in this process; it chats.
#[derive(Clone, Copy, PartialEq)]
enum Announces {
    Yes,
    No,
}

/// Facts that a start reports to the operator.
struct Started {
    model: String,
    facts: String,
    /// Effective sampling defaults.
    sampling: String,
    address: String,
    has_chat_template: bool,
}

/// Serves until a signal ends it.
///
/// # Errors
/// If the port is taken, the model cannot be loaded, memory does not suffice, or a second signal cut a drain short.
pub(crate) fn run(mut config: Config) -> anyhow::Result<()> {
    logging::init(&config.log);
    config.server.max_connections = open_files::connections_of(config.server.max_connections)?;
    // First, so that a taken port fails before a model is fetched. Meanwhile clients get the answer that the model is loading.
    let listener = bind(&config.server)?;
    let access = config.tenants.access()?;
    warn_if_open(&access, &listener)?;
    let mut http = http_config(&config.server, &config.sharing);
    http.web.is_local = listener.local_addr().context("the listener's address")?.ip().is_loopback();
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let signals = server::termination_signals().context("listening to signals")?;
        serve_model(config, listener, access, http, Announces::Yes, signals).await
    });
    // Does not wait for tasks that embed prompts: their results are no longer needed.
    runtime.shutdown_background();
    match ended? {
        Ended::Drained | Ended::Cut => Ok(()),
        Ended::Forced => bail!("a second signal ended the daemon before its requests were answered"),
    }
}

/// Serves while `client` runs with the server's address; returns its result.
///
/// # Errors
/// As [`run`], and those of `client`.
pub(crate) fn while_serving<T>(config: Config, client: impl AsyncFnOnce(String) -> anyhow::Result<T>) -> anyhow::Result<T> {
    logging::init(&config.log);
    let listener = bind(&config.server)?;
    let url = format!("http://{}", listener.local_addr().context("the listener's address")?);
    let (access, http) = (config.tenants.access()?, http_config(&config.server, &config.sharing));
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        tokio::select! {
            ended = serve_model(config, listener, access, http, Announces::No, futures::stream::pending()) => Err(ended.err().unwrap_or_else(|| anyhow!("the server ended"))),
            result = ready(&url, client) => result,
        }
    });
    runtime.shutdown_background();
    result
}

/// Runs `client` once the server at `url` has loaded its model.
async fn ready<T>(url: &str, client: impl AsyncFnOnce(String) -> anyhow::Result<T>) -> anyhow::Result<T> {
    while !reqwest::get(format!("{url}/health/ready")).await.is_ok_and(|answer| answer.status().is_success()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client(url.to_owned()).await
}

/// Answers on `listener` while a separate thread loads the model, and then with the model.
async fn serve_model(
    config: Config,
    listener: TcpListener,
    access: Access,
    http: server::ServerConfig,
    announces: Announces,
    signals: impl Stream<Item = ()>,
) -> anyhow::Result<Ended> {
    let address = listener.local_addr().context("the listener's address")?;
    let listener = tokio::net::TcpListener::from_std(listener).context("preparing the listener")?;
    let (apps, hangups) = (watch::Sender::new(None), server::hangup_signals().context("listening to signals")?);
    tokio::spawn(read_keys_again(config.tenants.clone(), apps.subscribe(), hangups));
    let (loaded, app) = oneshot::channel();
    let (facts, mut started) = oneshot::channel::<(Started, LogFormat)>();
    let (runtime, limits) = (runtime::Handle::current(), http.clone());
    let load = move || {
        let app = load_model(&config, access, http, &runtime, address, announces);
        let app = app.map(|(app, started)| {
            apps.send_replace(Some(Arc::clone(&app)));
            // The receivers are gone after a signal.
            drop(facts.send((started, config.log.format)));
            app
        });
        drop(loaded.send(app));
    };
    std::thread::Builder::new().name("loading".to_owned()).spawn(load).context("starting a thread")?;
    // Without an answer the thread has panicked, and reported it.
    let app = async { app.await.unwrap_or_else(|_| Err(anyhow!("loading the model ended early"))) };
    // Only when a request would be answered: scripts wait for these lines.
    let announce = || {
        if let (Announces::Yes, Ok((started, format))) = (announces, started.try_recv()) {
            started.announce(format);
        }
    };
    server::serve(listener, &limits, app, announce, signals).await
}

/// Loads the model and starts its engine; returns also what there is to say about it.
fn load_model(
    config: &Config,
    access: Access,
    http: server::ServerConfig,
    runtime: &runtime::Handle,
    address: SocketAddr,
    announces: Announces,
) -> anyhow::Result<(Arc<AppState>, Started)> {
    // Before the served model, which takes longer: an encoder that cannot be read fails at once.
    let texts = embedders::texts(config)?;
    let mut loaded = loading::load(config)?;
    let tokenizer = Arc::new(loading::tokenizer(&config.model, &mut loaded)?);
    let has_chat_template = tokenizer.chat_template().is_some();
    if announces == Announces::No && !has_chat_template {
        bail!("{} has no chat template, which a chat with it needs: name one with --chat-template", loaded.files.id);
    }
    let embedder = embedders::build(&config.sharing, loaded.model.embedding.as_ref(), &tokenizer, texts.as_ref())?;
    let scheduler = SchedulerConfig {
        quotas: access.tenants().quota_blocks(loaded.model.num_blocks),
        embeddings: embedder.as_ref().map(|embedder| embedder.index_config(config.sharing.max_donors)),
        ..loading::scheduler_config(config, &loaded)?
    };
    let sampling = generation::defaults(&config.model, &loaded.files.weights, loaded.model.sampling)?;
    let http = server::ServerConfig { sampling, ..http };
    // Before the engine's thread starts, whose end would be logged after the error.
    http.validate().context("server configuration")?;
    let forms = config.model.answer_forms(tokenizer.chat_template().map(ChatTemplate::source))?;
    let info = Arc::new(model_info(&loaded, &scheduler, tokenizer.eos_ids(), forms));
    let started = Started { has_chat_template, ..Started::new(config, &loaded, &scheduler, &http.sampling, address) };
    let metrics = Arc::new(Metrics::new(&info, &scheduler));
    let engine = EngineCore::new(scheduler, loaded.model.runner).context("starting the engine")?;
    let embedder = embedder.map(|embedder| Arc::new(ServedEmbedder(embedder)) as Arc<dyn Embedder>);
    let texts = texts.map(|texts| Arc::new(texts) as Arc<dyn TextEmbedder>);
    let model = ServedModel { info, tokenizer, embedder, texts };
    let (max_queue, queue_timeout) = (config.server.max_queue, config.server.queue_timeout());
    let bounds = EngineThreadConfig { max_queue, queue_timeout, ..EngineThreadConfig::default() };
    let handle =
        EngineThread::spawn(engine, bounds, Arc::clone(&metrics), runtime, end_process).context("starting the engine thread")?;
    let app = AppState::new(model, handle, metrics, http, access).context("server configuration")?;
    Ok((app, started))
}

/// Ends the process after a fault of the engine: the pool may be half updated, so no state of this process can be trusted.
#[expect(clippy::needless_pass_by_value, reason = "the engine thread passes its fault by value")]
fn end_process(fatal: Fatal) {
    stderr::write_line(format_args!("error: {fatal}"));
    std::process::exit(1);
}

/// Reads the file of keys again at each SIGHUP. An invalid file changes nothing.
async fn read_keys_again(
    config: TenantsConfig,
    mut app: watch::Receiver<Option<Arc<AppState>>>,
    hangups: impl Stream<Item = ()>,
) {
    let mut hangups = std::pin::pin!(hangups);
    while hangups.next().await.is_some() {
        // A SIGHUP while the model loads takes effect after that.
        let Ok(app) = app.wait_for(Option::is_some).await.map(|app| app.clone()) else { return };
        let Some(app) = app else { continue };
        match config.tenants_again().and_then(|next| Ok(app.access().replace(next)?)) {
            Ok(server::Reload { num_keys, other_quotas }) => {
                tracing::info!(num_keys, "keys were read again");
                if !other_quotas.is_empty() {
                    tracing::warn!(tenants = other_quotas.join(", "), "changed quotas are kept to after the next start");
                }
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "keys were not read again: those before are still accepted")
            }
        }
    }
}

fn bind(config: &ServerConfig) -> anyhow::Result<TcpListener> {
    let ServerConfig { host, port, .. } = config;
    let listener = TcpListener::bind((host.as_str(), *port)).with_context(|| format!("listening on {host}:{port}"))?;
    listener.set_nonblocking(true).context("preparing the listener")?;
    Ok(listener)
}

/// Warns if other machines reach a daemon without API keys.
fn warn_if_open(access: &Access, listener: &TcpListener) -> anyhow::Result<()> {
    let address = listener.local_addr().context("the listener's address")?;
    if needs_warning(access.tenants().is_open(), address.ip()) {
        tracing::warn!(%address, "no API keys: every client that reaches this address may use, list and erase everything");
    }
    Ok(())
}

fn needs_warning(is_open: bool, address: IpAddr) -> bool {
    is_open && !address.is_loopback()
}

fn model_info(loaded: &Loaded, scheduler: &SchedulerConfig, eos: &[tokens::TokenId], forms: AnswerForms) -> ModelInfo {
    // A clock before 1970 does not prevent serving.
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    ModelInfo {
        id: loaded.files.id.clone(),
        aliases: Vec::new(),
        max_model_len: scheduler.max_model_len,
        vocab_size: u32::try_from(loaded.model.config.vocab_size).expect("token ids are 32 bits wide"),
        eos_token_ids: eos.to_vec(),
        created,
        forms,
    }
}

fn http_config(server: &ServerConfig, sharing: &SharingConfig) -> server::ServerConfig {
    server::ServerConfig {
        max_connections: server.max_connections,
        max_connections_per_peer: server.max_connections_per_peer,
        body_limit: usize::try_from(server.body_limit.0).unwrap_or(usize::MAX),
        body_read_timeout: server.body_read_timeout.get(),
        header_read_timeout: server.header_read_timeout.get(),
        max_n: server.max_n,
        max_responses: server.max_responses,
        max_response_bytes: usize::try_from(server.response_memory.0).unwrap_or(usize::MAX),
        keep_alive: server.keep_alive.get(),
        shutdown_timeout: server.shutdown_timeout.get(),
        web: server.web(),
        sharing: sharing.defaults(),
        ..server::ServerConfig::default()
    }
}

/// Formats a pool's size as users write it: one of 4 GiB lacks a few blocks at most.
fn gib(bytes: u64) -> String {
    match bytes {
        0x4000_0000.. => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

/// Builds the runtime of the HTTP threads.
fn runtime() -> anyhow::Result<Runtime> {
    let num_cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let num_threads = (num_cores / 2).clamp(MIN_HTTP_THREADS, MAX_HTTP_THREADS);
    runtime::Builder::new_multi_thread().worker_threads(num_threads).enable_all().build().context("starting the runtime")
}

impl Started {
    fn new(
        config: &Config,
        loaded: &Loaded,
        scheduler: &SchedulerConfig,
        sampling: &SamplingDefaults,
        address: SocketAddr,
    ) -> Self {
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
            gib(loaded.model.kv_bytes),
            scheduler.max_model_len,
            config.sharing.mode
        );
        Self { model, facts, sampling: sampling.to_string(), address: format!("http://{address}"), has_chat_template: true }
    }

    /// Announces the start: plain lines for users, an event for programs.
    fn announce(&self, format: LogFormat) {
        let Self { model, facts, sampling, address, has_chat_template } = self;
        match format {
            LogFormat::Text => {
                let next = match has_chat_template {
                    true => format!("kvshare chat --url {address}    (or POST {address}/v1/chat/completions)"),
                    false => format!("POST {address}/v1/completions    (this model has no chat template)"),
                };
                stderr::write_line(format_args!(
                    "model    {model}\nengine   {facts}\nsampling {sampling}\nserving  {address}/v1\ntry      {next}"
                ));
            }
            LogFormat::Json => tracing::info!(model, engine = facts, sampling, address, "serving"),
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
        assert_eq!(config.server.queue_timeout(), EngineThreadConfig::default().queue_timeout);
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
        assert_eq!(config.sharing.verification(Device::Cpu), verification);
        assert!(config.sharing.verification(Device::Cuda(0)).heals, "where short steps cost little");
        assert_eq!(config.engine.host_kv_bandwidth, parts.host.bandwidth);
    }

    #[test]
    fn only_what_others_reach_without_keys_is_warned_about() {
        let (here, everywhere) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0]));
        assert!(needs_warning(true, everywhere));
        assert!(!needs_warning(true, here) && !needs_warning(false, everywhere));
    }

    #[test]
    fn a_pool_is_as_large_as_it_was_asked_for() {
        assert_eq!(gib((4 << 30) - 700_000), "4.0 GiB");
        assert_eq!(gib(256 << 20), "256.0 MiB");
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind(&ServerConfig { port, ..ServerConfig::default() }).unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("listening on 127.0.0.1:{port}: ")), "{error:#}");
    }
}
