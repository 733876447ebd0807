//! Models from the hub, through its own client: resumed downloads, and the cache it shares with other tools.

use std::cell::OnceCell;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::parts::PartName;
use crate::{ModelSource, Reporter, Transfer, Weights};

/// Time after which the hub counts as unreachable: the client itself would wait for minutes. Chosen.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Files read next to the weights if a repository has them.
const SIDE_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Hub and its cache on this machine.
pub(crate) struct Hub<'a> {
    cache: Cache,
    token: Option<&'a str>,
    is_offline: bool,
    reachable: OnceCell<Result<(), String>>,
    reporter: &'a dyn Reporter,
}

/// One revision of a repository.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RepoAt<'a> {
    /// `owner/name`.
    pub(crate) repo: &'a str,
    /// Branch, tag or commit.
    pub(crate) revision: &'a str,
}

/// Files of a repository that form a model.
#[derive(Debug, PartialEq)]
enum Wanted {
    Gguf(String),
    Safetensors(Vec<String>),
}

impl<'a> Hub<'a> {
    /// Takes cache and endpoint from `HF_HOME` and `HF_ENDPOINT`. Does not connect yet.
    pub(crate) fn new(source: ModelSource<'a>, reporter: &'a dyn Reporter) -> Self {
        let ModelSource { hub_token: token, is_offline, .. } = source;
        Self { cache: Cache::from_env(), token, is_offline, reachable: OnceCell::new(), reporter }
    }

    /// Returns one file, from the cache or from the hub.
    ///
    /// # Errors
    /// If it is in neither, or the hub cannot be reached.
    pub(crate) fn file(&self, at: RepoAt<'_>, file: &str) -> anyhow::Result<PathBuf> {
        match self.cached(at, file) {
            Some(path) => Ok(path),
            None => self.download(at, file),
        }
    }

    /// Returns a repository's weights: `file`, or those selected from its list of files.
    ///
    /// # Errors
    /// If they are neither in the cache nor on the hub, or the selection is ambiguous.
    pub(crate) fn weights(&self, at: RepoAt<'_>, file: Option<&str>) -> anyhow::Result<Weights> {
        if let Some(file) = file {
            if !file.ends_with(".gguf") {
                bail!("`{file}` is no GGUF file; name the repository alone for safetensors");
            }
            return self.gguf(at, file);
        }
        let cached = self.cached(at, "config.json").and_then(|config| config.parent().map(Path::to_owned));
        if let Some(folder) = cached.filter(|folder| is_complete(folder)) {
            return Ok(Weights::Safetensors(folder));
        }
        match wanted_files(&self.list_files(at)?).with_context(|| format!("{} on the hub", at.repo))? {
            Wanted::Gguf(file) => self.gguf(at, &file),
            Wanted::Safetensors(files) => self.snapshot(at, &files).map(Weights::Safetensors),
        }
    }

    /// Returns a GGUF file, and fetches the other parts if it is split.
    fn gguf(&self, at: RepoAt<'_>, file: &str) -> anyhow::Result<Weights> {
        for other in PartName::of(file).into_iter().flat_map(PartName::others) {
            self.file(at, &other)?;
        }
        self.file(at, file).map(Weights::Gguf)
    }

    /// Returns an error if the hub cannot be reached. Probes once.
    fn check_reachable(&self) -> anyhow::Result<()> {
        let looked = self.reachable.get_or_init(|| if self.is_offline { Err("offline by choice".to_owned()) } else { probe() });
        looked.clone().map_err(|reason| anyhow!("the hub cannot be reached: {reason}"))
    }

    fn cached(&self, at: RepoAt<'_>, file: &str) -> Option<PathBuf> {
        let repo = self.cache.repo(repo(at));
        // Other tools store a commit without a reference to it.
        let by_commit = || Some(repo.pointer_path(at.revision).join(file)).filter(|path| path.exists());
        repo.get(file).or_else(by_commit)
    }

    fn api(&self, at: RepoAt<'_>) -> anyhow::Result<ApiRepo> {
        self.check_reachable().with_context(|| format!("{} is not in the hub's cache here", at.repo))?;
        let mut builder = ApiBuilder::from_env().with_retries(3).with_user_agent("kvshare", env!("CARGO_PKG_VERSION"));
        if let Some(token) = self.token {
            builder = builder.with_token(Some(token.to_owned()));
        }
        Ok(builder.build().context("starting the hub's client")?.repo(repo(at)))
    }

    fn download(&self, at: RepoAt<'_>, file: &str) -> anyhow::Result<PathBuf> {
        let progress = Download { reporter: self.reporter, transfer: None };
        let RepoAt { repo, revision } = at;
        self.api(at)?
            .download_with_progress(file, progress)
            .with_context(|| format!("fetching {file} of {repo} at {revision} from the hub"))
    }

    fn list_files(&self, at: RepoAt<'_>) -> anyhow::Result<Vec<String>> {
        let RepoAt { repo, revision } = at;
        let info = self.api(at)?.info().with_context(|| format!("asking the hub for the files of {repo} at {revision}"))?;
        Ok(info.siblings.into_iter().map(|sibling| sibling.rfilename).collect())
    }

    /// Returns the folder that holds all of `files`.
    fn snapshot(&self, at: RepoAt<'_>, files: &[String]) -> anyhow::Result<PathBuf> {
        let mut folder = None;
        for file in files {
            folder = self.file(at, file)?.parent().map(Path::to_owned);
        }
        folder.context("a model has at least one file")
    }
}

fn repo(at: RepoAt<'_>) -> Repo {
    Repo::with_revision(at.repo.to_owned(), RepoType::Model, at.revision.to_owned())
}

/// Adapter for the progress of the hub's client.
struct Download<'a> {
    reporter: &'a dyn Reporter,
    transfer: Option<Box<dyn Transfer>>,
}

impl hf_hub::api::Progress for Download<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.transfer = Some(self.reporter.begin(filename, size as u64));
    }

    fn update(&mut self, size: usize) {
        if let Some(transfer) = &mut self.transfer {
            transfer.add(size as u64);
        }
    }

    fn finish(&mut self) {
        self.transfer = None;
    }
}

/// Selects from the files of a repository. Weights in sub-folders are of other formats.
fn wanted_files(files: &[String]) -> anyhow::Result<Wanted> {
    let is_shard = |file: &str| file.starts_with("model") && file.ends_with(".safetensors") && !file.contains('/');
    let is_side = |file: &str| SIDE_FILES.contains(&file) || file == "model.safetensors.index.json";
    if files.iter().any(|file| is_shard(file)) && files.iter().any(|file| file == "config.json") {
        return Ok(Wanted::Safetensors(files.iter().filter(|file| is_shard(file) || is_side(file)).cloned().collect()));
    }
    let is_later_part = |file: &str| PartName::of(file).is_some_and(PartName::is_later);
    let ggufs: Vec<_> = files.iter().filter(|file| file.ends_with(".gguf") && !is_later_part(file)).collect();
    match ggufs.as_slice() {
        [] => bail!("has neither safetensors with a config.json nor a GGUF file"),
        [file] => Ok(Wanted::Gguf((*file).clone())),
        [first, ..] => bail!("has {} GGUF files: name one, as in `owner/name:{first}`", ggufs.len()),
    }
}

/// True if a folder holds every file of a safetensors model, so that no request to the hub is needed.
fn is_complete(folder: &Path) -> bool {
    if !folder.join("config.json").exists() || !folder.join("tokenizer.json").exists() {
        return false;
    }
    match std::fs::read_to_string(folder.join("model.safetensors.index.json")) {
        Ok(index) => shards_of(&index).is_some_and(|shards| shards.iter().all(|shard| folder.join(shard).exists())),
        Err(_) => folder.join("model.safetensors").exists(),
    }
}

/// Returns the files that an index names; `None` if it is no index.
fn shards_of(index: &str) -> Option<Vec<String>> {
    let index: serde_json::Value = serde_json::from_str(index).ok()?;
    let mut shards: Vec<_> =
        index.get("weight_map")?.as_object()?.values().filter_map(|file| Some(file.as_str()?.to_owned())).collect();
    shards.sort();
    shards.dedup();
    Some(shards)
}

/// Tries to connect, on a separate thread because resolving a name has no timeout.
fn probe() -> Result<(), String> {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].iter().any(is_set) {
        // Then only the proxy must be reachable, and its client reports it if not.
        return Ok(());
    }
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".to_owned());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // The receiver is gone after the timeout.
        drop(sender.send(connect(&endpoint)));
    });
    receiver.recv_timeout(CONNECT_TIMEOUT).unwrap_or_else(|_| Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))
}

fn connect(endpoint: &str) -> Result<(), String> {
    let authority = authority_of(endpoint);
    let addresses = authority.to_socket_addrs().map_err(|error| format!("{authority}: {error}"))?;
    let mut reason = format!("{authority} has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => reason = format!("{authority}: {error}"),
        }
    }
    Err(reason)
}

/// Returns `host:port` of a URL.
fn authority_of(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.chars().all(|c| c.is_ascii_digit())) {
        return host.to_owned();
    }
    format!("{host}:{}", if scheme == "http" { 80 } else { 443 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Silent;

    fn wanted(files: &[&str]) -> Result<Wanted, String> {
        wanted_files(&files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    #[test]
    fn safetensors_are_taken_with_their_side_files_and_nothing_else() {
        let files =
            ["README.md", "config.json", "model.safetensors", "tokenizer.json", "onnx/model.safetensors", "pytorch_model.bin"];
        let expected = ["config.json", "model.safetensors", "tokenizer.json"].map(str::to_owned);
        assert_eq!(wanted(&files), Ok(Wanted::Safetensors(expected.to_vec())));
    }

    #[test]
    fn consolidated_copies_of_the_weights_are_not_fetched() {
        let files =
            ["config.json", "consolidated.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json"];
        let expected = ["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"].map(str::to_owned);
        assert_eq!(wanted(&files), Ok(Wanted::Safetensors(expected.to_vec())));
    }

    #[test]
    fn a_single_gguf_file_needs_no_name() {
        assert_eq!(wanted(&["README.md", "m.q4.gguf"]), Ok(Wanted::Gguf("m.q4.gguf".to_owned())));
    }

    #[test]
    fn of_several_gguf_files_one_must_be_named() {
        assert_eq!(wanted(&["a.gguf", "b.gguf"]), Err("has 2 GGUF files: name one, as in `owner/name:a.gguf`".to_owned()));
    }

    #[test]
    fn a_repository_without_weights_is_refused() {
        assert!(wanted(&["README.md", "model.safetensors"]).is_err());
    }

    #[test]
    fn a_snapshot_is_complete_only_with_every_shard() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("config.json", "{}");
        write("tokenizer.json", "{}");
        assert!(!is_complete(dir.path()));
        write("model.safetensors.index.json", r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#);
        write("model-1.safetensors", "");
        assert!(!is_complete(dir.path()));
        write("model-2.safetensors", "");
        assert!(is_complete(dir.path()));
    }

    #[test]
    fn offline_by_choice_asks_nobody() {
        let hub = Hub::new(ModelSource { is_offline: true, ..ModelSource::named("") }, &Silent);
        let error = hub.file(RepoAt { repo: "no-such-owner/no-such-model", revision: "main" }, "x.gguf").unwrap_err();
        let expected = "no-such-owner/no-such-model is not in the hub's cache here: the hub cannot be reached: offline by choice";
        assert_eq!(format!("{error:#}"), expected);
    }

    #[track_caller]
    fn check_authority(url: &str, expected: &str) {
        assert_eq!(authority_of(url), expected);
    }

    #[test]
    fn the_authority_of_an_endpoint_has_a_port() {
        check_authority("https://huggingface.co", "huggingface.co:443");
        check_authority("http://127.0.0.1:9/x", "127.0.0.1:9");
        check_authority("http://user:pw@mirror/hf", "mirror:80");
    }

    #[test]
    fn a_refused_connection_is_reported_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(connect(&format!("http://{address}")), Ok(()));
        drop(listener);
        assert!(connect(&format!("http://{address}")).is_err());
    }
}
