//! Resolved configuration: defaults, then the file, then the environment, then flags.
//!
//! Environment and flags arrive together as [`ConfigArgs`]: clap prefers the flag. Each section checks its own values; checks that span
//! sections are in [`Config::validate`]. The configuration does not change after start.

mod auto;
mod byte_size;
mod device;
mod duration;
mod engine;
mod error;
mod file;
mod flag;
#[cfg(test)]
pub(crate) mod help;
mod log;
mod model;
mod repair;
mod server;
mod sharing;
mod sharing_mode;
mod tenants;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokens::SharingMode;

pub(crate) use auto::Auto;
pub(crate) use byte_size::ByteSize;
pub(crate) use device::Device;
pub(crate) use duration::Millis;
pub(crate) use engine::{EngineConfig, KvCacheDtype, Scheduling};
pub(crate) use error::ConfigError;
pub(crate) use log::{LogConfig, LogFormat};
pub(crate) use model::{LoadFormat, ModelConfig, Secret, SourceArgs};
pub(crate) use repair::{Deviation, RepairSetting};
pub(crate) use server::ServerConfig;
pub(crate) use sharing::{EmbedderKind, SharingConfig};
pub(crate) use sharing_mode::sharing_mode_parser;
pub(crate) use tenants::TenantsConfig;

use file::{parse_toml, read_text};

/// All settings of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Model to serve.
    pub(crate) model: ModelConfig,
    /// Addresses, limits and timeouts of the server.
    pub(crate) server: ServerConfig,
    /// API keys and scopes of tenants.
    pub(crate) tenants: TenantsConfig,
    /// Resources and batch limits of the engine.
    pub(crate) engine: EngineConfig,
    /// KV that may be reused.
    pub(crate) sharing: SharingConfig,
    /// Format and filter of log lines.
    pub(crate) log: LogConfig,
}

/// Configuration as typed: a file, and overrides.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ConfigArgs {
    /// TOML file with settings; flags and environment override it
    #[arg(long, short, env = "KVSHARE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: model::ModelArgs,
    #[command(flatten)]
    server: server::ServerArgs,
    #[command(flatten)]
    tenants: tenants::TenantsArgs,
    #[command(flatten)]
    engine: engine::EngineArgs,
    #[command(flatten)]
    sharing: sharing::SharingArgs,
    #[command(flatten)]
    log: log::LogArgs,
}

impl Config {
    /// Merges defaults, file, environment and flags, and checks the result.
    ///
    /// # Errors
    /// If the file cannot be read or has an unknown key, or if the result is invalid.
    pub(crate) fn resolve(args: ConfigArgs) -> Result<Self, ConfigError> {
        let mut config = match &args.config {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        args.model.apply(&mut config.model);
        args.server.apply(&mut config.server);
        args.tenants.apply(&mut config.tenants);
        args.engine.apply(&mut config.engine);
        args.sharing.apply(&mut config.sharing);
        args.log.apply(&mut config.log);
        config.validate()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(path)?, path)
    }

    /// Parses `text`; errors name `path`.
    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        parse_toml(text, path)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = self.model.problems();
        problems.extend(self.server.problems());
        problems.extend(self.engine.problems());
        problems.extend(self.sharing.problems());
        problems.extend(self.log.problems());
        if let Some(max_model_len) = self.engine.max_model_len.value()
            && matches!(self.sharing.mode, SharingMode::Span | SharingMode::Semantic)
            && max_model_len < self.sharing.min_prompt
        {
            problems.push(format!(
                "sharing.mode is \"{}\", but no prompt of engine.max_model_len {max_model_len} reaches sharing.min_prompt {}",
                self.sharing.mode, self.sharing.min_prompt
            ));
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid { problems }) }
    }

    /// Formats as a file that gives this configuration. Secrets are starred out.
    pub(crate) fn to_toml(&self) -> String {
        toml::to_string(self).expect("every setting has a TOML form: scalars in sections")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        config: ConfigArgs,
    }

    fn resolve(file: &str, flags: &[&str]) -> Result<Config, String> {
        let mut on_disk = tempfile::NamedTempFile::new().unwrap();
        on_disk.write_all(file.as_bytes()).unwrap();
        let path = on_disk.path().to_str().unwrap();
        let line = CommandLine::try_parse_from(["kvshare", "--config", path].iter().chain(flags)).map_err(|e| e.to_string())?;
        Config::resolve(line.config).map_err(|error| error.to_string().replace(path, "FILE"))
    }

    /// Checks that `file` is refused with a message of one line that contains all of `expected`.
    #[track_caller]
    fn check_refused(file: &str, flags: &[&str], expected: &[&str]) {
        let message = resolve(file, flags).expect_err("must be refused");
        assert_eq!(message.lines().count(), 1, "{message}");
        for part in expected {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }

    #[test]
    fn flags_override_the_file_and_the_file_overrides_defaults() {
        let file = "[server]\nport = 1111\nmax_queue = 7\n[sharing]\nmode = \"span\"";
        let flags = ["--port", "2222", "--kv-cache-memory", "2GiB", "--threads", "auto", "--min-saved", "7ms"];
        let config = resolve(file, &flags).unwrap();
        assert_eq!(config.sharing.gate().min_saved_ms, 7.0);
        assert_eq!(resolve("", &["--min-saved", "0ms"]).unwrap().sharing.gate(), semantic::Gate::open());
        assert_eq!(config.server.port, 2222);
        assert_eq!(config.server.max_queue, 7);
        assert_eq!(config.server.host, "127.0.0.1");
        assert_eq!(config.sharing.mode, SharingMode::Span);
        assert_eq!(config.engine.kv_cache_memory, Auto::Set(ByteSize::gib(2)));
    }

    #[test]
    fn every_flag_reaches_its_setting() {
        let flags = "--model m --revision r --served-model-name s --load-format dummy --tokenizer t --cache-dir c --generation-config none --chat-template ct --tool-call-parser glm --reasoning-parser think --embedding-model e --embedding-model-name n --content-control-tokens --hub-offline --hub-token x --host h --port 1 \
                     --max-queue 2 --queue-timeout 9s --max-connections 3 --max-connections-per-peer 5 --body-limit 4KiB --header-read-timeout 5s --body-read-timeout 6s --max-n 7 --max-responses 8 --response-memory 2MiB --keep-alive 8s --shutdown-timeout 6 --allowed-origins https://o --allowed-hosts h1,h2 --device cpu \
                     --threads 7 --kv-cache-memory 8MiB --host-kv-memory 16MiB --host-kv-bandwidth 3.5 --kv-cache-dtype f32 --max-num-batched-tokens 90 --max-num-seqs 10 --gpu-memory-utilization 0.5 \
                     --max-model-len 1100 --scheduling fcfs --max-overtake 12ms --run-ahead false --kv-sharing off --repair impact@0.3 --max-deviation strict --min-span 130 --min-saved 7ms --edits reuse --max-donors 14 --max-donor-tokens 1500 --donor-ttl 15m --verify-share 0.5 --verify-idle 1s --verify-step 3ms --heal false --verify-memory 1MiB --max-mean-kl 0.2 --min-top1 0.5 --embedder bert --embedder-model e --api-keys k --secret-file s \
                     --log-format json --log-filter warn";
        let config = resolve("", &flags.split_whitespace().collect::<Vec<_>>()).unwrap();
        let changed = config.to_toml();
        let defaults = Config::default().to_toml();
        let same: Vec<_> = changed.lines().filter(|line| line.contains('=') && defaults.lines().any(|d| d == *line)).collect();
        // These have no flag: they are measured properties of the method, not of a deployment.
        assert_eq!(same, ["head_tokens = 8", "tail_tokens = 16", "min_prompt = 128"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_without_end_is_refused() {
        let message = read_text(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(message, "reading /dev/zero: more than 4 MiB");
    }

    #[test]
    fn unknown_keys_are_refused_by_name_and_line() {
        check_refused("[server]\nprot = 1", &[], &["FILE:2:", "unknown field `prot`", "`port`"]);
        check_refused("\n\n[sevrer]\nport = 1", &[], &["FILE:3:", "unknown field `sevrer`"]);
    }

    #[test]
    fn values_of_the_wrong_type_are_refused_by_line() {
        check_refused("[server]\nhost = \"x\"\nport = \"high\"", &[], &["FILE:3:", "high"]);
        check_refused("[engine]\nkv_cache_memory = \"lots\"", &[], &["FILE:2:", "`lots` is no size"]);
        check_refused("[engine]\nscheduling = \"lifo\"", &[], &["FILE:2:", "lifo", "kv-hit-rate"]);
        check_refused("[sharing]\nembedder = \"oracle\"", &[], &["FILE:2:", "oracle", "token", "bert"]);
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_together() {
        check_refused("[engine]\nmax_num_batched_tokens = 0", &[], &["max_num_batched_tokens is 0"]);
        let file = "[engine]\nmax_num_seqs = 100\nmax_num_batched_tokens = 50\n[sharing]\nmin_span = 8";
        check_refused(file, &[], &["max_num_batched_tokens 50", "max_num_seqs 100", "; ", "min_span_tokens is 8"]);
        check_refused("", &["--kv-sharing", "span", "--max-model-len", "100"], &["max_model_len 100", "min_prompt 128"]);
        check_refused("", &["--host-kv-bandwidth", "0"], &["engine.host_kv_bandwidth must be above 0"]);
        check_refused("[sharing]\nmin_top1 = 1.0", &[], &["sharing.min_top1 is 1", "below 1"]);
        check_refused("", &["--kv-sharing", "auto", "--verify-share", "0"], &["verify_share is 0", "ever be proven"]);
        check_refused("", &["--max-mean-kl", "0"], &["sharing.max_mean_kl is 0", "above 0"]);
        check_refused("[log]\nfilter = \"engine=loud\"", &[], &["log.filter"]);
        check_refused("[sharing]\nembedder = \"bert\"", &[], &["sharing.embedder_model names no folder"]);
        check_refused("[sharing]\nembedder_model = \"x\"", &[], &["sharing.embedder_model is x", "not \"bert\""]);
        check_refused("", &["--embedder", "token", "--embedder-model", "x"], &["sharing.embedder_model is x"]);
    }

    #[test]
    fn a_model_for_an_embedder_implies_one() {
        let embedder = |flags: &[&str]| resolve("", flags).unwrap().sharing.embedder;
        assert_eq!(embedder(&["--embedder-model", "x"]), EmbedderKind::Bert);
        assert_eq!(embedder(&["--embedder", "token"]), EmbedderKind::Token);
        assert_eq!(embedder(&[]), EmbedderKind::Off);
    }

    #[test]
    fn a_missing_file_is_named() {
        let line = CommandLine::try_parse_from(["kvshare", "--config", "no/such.toml"]).unwrap();
        let message = Config::resolve(line.config).unwrap_err().to_string();
        assert!(message.starts_with("reading no/such.toml: "), "{message}");
    }

    #[test]
    fn what_is_printed_gives_the_same_configuration() {
        let config = resolve("", &["--port", "9", "--max-model-len", "4096", "--shutdown-timeout", "1500ms"]).unwrap();
        assert_eq!(Config::parse(&config.to_toml(), Path::new("printed")).unwrap(), config);
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = resolve("[model]\nhub_token = \"hf_abc\"", &[]).unwrap();
        assert!(!config.to_toml().contains("hf_abc") && !format!("{config:?}").contains("hf_abc"));
        assert_eq!(config.model.hub_token.value().unwrap().reveal(), "hf_abc");
    }

    fn keys(text: &str) -> Vec<String> {
        let table: toml::Table = toml::from_str(text).unwrap();
        let mut keys = Vec::new();
        for (section, settings) in table {
            keys.extend(settings.as_table().unwrap().keys().map(|key| format!("{section}.{key}")));
        }
        keys.sort();
        keys
    }

    #[test]
    fn the_default_file_lists_every_key_with_its_default() {
        let text = include_str!("../../../../configs/default.toml");
        assert_eq!(Config::parse(text, Path::new("default.toml")).unwrap(), Config::default());
        assert_eq!(keys(text), keys(&Config::default().to_toml()));
    }

    #[test]
    fn every_file_in_configs_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let mut num_files = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                Config::read(&path).and_then(|config| config.validate()).unwrap();
                num_files += 1;
            }
        }
        assert!(num_files >= 1);
    }
}
