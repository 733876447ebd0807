//! A server over [`EchoExecutor`], which answers with the prompt, and a single-byte tokenizer.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Request, StatusCode};
use engine::{
    EngineCore, EngineStats, Executor, ExecutorError, ExecutorLimits, ModelRunnerOutput, OverlappingExecutor, SchedulerConfig,
    SchedulerOutput,
};
use serde_json::{Value, json};
use server::{
    Access, ApiKey, AppState, Embedder, EngineHandle, EngineThread, EngineThreadConfig, Fatal, Metrics, ModelInfo, ScopeSecret,
    ServedModel, ServerConfig, Tenants, TextEmbedder, router,
};
use testkit::{EchoExecutor, Reply};
use tokenizer::{GgufVocabulary, Tokenizer};
use tokens::TokenId;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tower::ServiceExt;

/// Token that ends an answer.
pub(crate) const EOS: u32 = 2;
/// Token for which the model returns no valid logits.
pub(crate) const POISON: u32 = 0;
/// Name of the served model. It has a slash, as models of the hub have.
pub(crate) const MODEL: &str = "owner/echo";

/// A server with test controls.
pub(crate) struct World {
    pub(crate) app: Arc<AppState>,
    pub(crate) engine: EngineHandle,
    pub(crate) control: Arc<Control>,
    pub(crate) fatal: oneshot::Receiver<String>,
    router: Router,
}

/// Test controls of the executor.
#[derive(Default)]
pub(crate) struct Control {
    step_micros: AtomicU64,
    fault: AtomicU8,
    seeds: Mutex<Vec<u64>>,
}

/// Kind of executor failure.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    Error = 1,
    Panic = 2,
}

impl Control {
    /// Makes every step last at least this long.
    pub(crate) fn slow_down(&self, step: Duration) {
        self.step_micros.store(step.as_micros() as u64, Ordering::Relaxed);
    }

    /// Makes the next step fail.
    pub(crate) fn fail(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::Relaxed);
    }

    /// Returns the seeds of all requests so far.
    pub(crate) fn seeds(&self) -> Vec<u64> {
        self.seeds.lock().unwrap().clone()
    }
}

/// Executor that, like a GPU, computes while the engine continues: the next step may have begun when readers receive one.
struct ControlledExecutor {
    echo: EchoExecutor,
    control: Arc<Control>,
    launched: Option<SchedulerOutput>,
}

impl Executor for ControlledExecutor {
    fn limits(&self) -> ExecutorLimits {
        self.echo.limits()
    }

    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        self.control.seeds.lock().unwrap().extend(step.new_requests.iter().map(|request| request.sampling.seed));
        std::thread::sleep(Duration::from_micros(self.control.step_micros.load(Ordering::Relaxed)));
        match self.control.fault.load(Ordering::Relaxed) {
            1 => Err(ExecutorError("the device has gone".into())),
            2 => panic!("a defect"),
            _ => self.echo.execute_model(step),
        }
    }

    fn as_overlapping(&mut self) -> Option<&mut dyn OverlappingExecutor> {
        Some(self)
    }
}

impl OverlappingExecutor for ControlledExecutor {
    fn launch(&mut self, step: &SchedulerOutput) -> Result<(), ExecutorError> {
        assert!(self.launched.replace(step.clone()).is_none(), "two steps at once");
        Ok(())
    }

    fn prepare(&mut self, _next: &SchedulerOutput) {}

    fn collect(&mut self) -> Result<ModelRunnerOutput, ExecutorError> {
        let step = self.launched.take().expect("a step was launched");
        self.execute_model(&step)
    }
}

/// Options that tests may change.
pub(crate) struct Options {
    pub(crate) server: ServerConfig,
    pub(crate) thread: EngineThreadConfig,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) access: Access,
    pub(crate) embedder: Option<Arc<dyn Embedder>>,
    pub(crate) texts: Option<Arc<dyn TextEmbedder>>,
}

impl Default for Options {
    fn default() -> Self {
        let scheduler = SchedulerConfig::new(64, 1000);
        let (server, thread, embedder, texts) = Default::default();
        Self { server, thread, scheduler, access: Access::open(), embedder, texts }
    }
}

/// Template that knows no tools.
const CHAT_TEMPLATE: &str = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]";

/// Ids 0 to 2 are unknown, begin and end; `3 + b` is the byte `b`; the last is the space.
fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    tokens.push("▁".to_owned());
    let mut token_types = vec![2, 3, 3];
    token_types.extend([6; 256]);
    token_types.push(1);
    let vocabulary = GgufVocabulary {
        model: "llama".to_owned(),
        scores: Some(vec![0.0; tokens.len()]),
        tokens,
        token_types,
        bos: Some(1),
        eos: Some(EOS),
        unk: Some(0),
        add_bos: Some(false),
        add_space_prefix: Some(false),
        ..GgufVocabulary::default()
    };
    Tokenizer::from_gguf(vocabulary).unwrap().with_chat_template(CHAT_TEMPLATE).unwrap()
}

/// Key of tenant `a`, which may read the public corpus `manuals`.
pub(crate) const KEY_A: &str = "key-of-a";
/// Key of tenant `b`, which may read no corpus.
pub(crate) const KEY_B: &str = "key-of-b";
/// Key of an administrator, of tenant `ops`.
pub(crate) const KEY_OPS: &str = "key-of-ops";

/// Two tenants and an administrator.
pub(crate) fn tenants() -> Tenants {
    let key = |key: &str, tenant: &str| ApiKey {
        sha256: ApiKey::digest(key),
        tenant: tenant.to_owned(),
        is_admin: false,
        quota: None,
        public: vec![],
    };
    let reader = ApiKey { public: vec!["manuals".to_owned()], ..key(KEY_A, "a") };
    Tenants::try_new(vec![reader, key(KEY_B, "b"), ApiKey { is_admin: true, ..key(KEY_OPS, "ops") }]).unwrap()
}

/// Returns 200 pseudorandom letters, so that the text does not overlap itself.
pub(crate) fn document() -> String {
    let mut state = 1u32;
    let mut letter = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + (state >> 24) as u8 % 26)
    };
    (0..200).map(|_| letter()).collect()
}

/// Returns the id of a byte.
pub(crate) fn byte(byte: u8) -> u32 {
    u32::from(byte) + 3
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(Options { server, thread, scheduler, access, embedder, texts }: Options) -> Self {
        let tokenizer = Arc::new(tokenizer());
        let info = Arc::new(ModelInfo {
            id: MODEL.to_owned(),
            aliases: vec!["alias".to_owned()],
            max_model_len: scheduler.max_model_len,
            vocab_size: tokenizer.vocab_size() as u32,
            eos_token_ids: vec![TokenId(EOS)],
            created: 1_700_000_000,
            forms: server::AnswerForms::of_template(CHAT_TEMPLATE),
        });
        let control = Arc::new(Control::default());
        let echo = EchoExecutor::new(Reply::Prompt, scheduler.block_size.as_usize()).poisoned_by(TokenId(POISON));
        let executor = ControlledExecutor { echo, control: Arc::clone(&control), launched: None };
        let metrics = Arc::new(Metrics::new(&info, &scheduler));
        let core = EngineCore::new(scheduler, executor).unwrap();
        let (on_fatal, fatal) = oneshot::channel();
        let on_fatal = |error: Fatal| drop(on_fatal.send(error.to_string()));
        let engine = EngineThread::spawn(core, thread, Arc::clone(&metrics), &Handle::current(), on_fatal).unwrap();
        let app =
            AppState::new(ServedModel { info, tokenizer, embedder, texts }, engine.clone(), metrics, server, access).unwrap();
        Self { router: router(Arc::clone(&app)), app, engine, control, fatal }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        self.answer_to(Request::builder().method(method).uri(path).header(CONTENT_TYPE, JSON).body(body.into()).unwrap()).await
    }

    /// Sends with a key. An empty body is omitted.
    pub(crate) async fn send_as(&self, key: &str, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let authorization = format!("Bearer {key}");
        let request =
            Request::builder().method(method).uri(path).header(CONTENT_TYPE, JSON).header("authorization", authorization);
        self.answer_to(request.body(body).unwrap()).await
    }

    pub(crate) async fn answer_to(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, body.to_string()).await
    }

    /// Begins a streamed answer and returns its body, unread.
    pub(crate) async fn begin(&self, path: &str, body: &Value) -> Body {
        self.begin_as("", path, body).await
    }

    /// Begins a streamed answer with a key.
    pub(crate) async fn begin_as(&self, key: &str, path: &str, body: &Value) -> Body {
        let request = Request::builder().method("POST").uri(path).header(CONTENT_TYPE, JSON);
        let request = request.header("authorization", format!("Bearer {key}"));
        let request = request.body(Body::from(body.to_string())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body()
    }

    /// Creates a server that requires keys.
    pub(crate) fn with_tenants() -> Self {
        Self::with(Options { access: Access::new(tenants(), ScopeSecret::random()), ..Options::default() })
    }

    /// Returns the usage of a completion, requested with a key.
    pub(crate) async fn usage_as(&self, key: &str, prompt: &str, more: Value) -> Value {
        self.send_as(key, "POST", COMPLETIONS, &completion(prompt, more)).await.ok()["usage"].clone()
    }

    /// Waits, for a while, until the engine's figures are as wanted.
    pub(crate) async fn wait_for(&self, what: &str, is_reached: impl FnMut(&EngineStats) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(30), self.engine.wait_for_stats(is_reached)).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.engine.stats());
    }

    /// Waits until the engine has nothing to do and no block is held.
    pub(crate) async fn wait_until_free(&self) {
        self.wait_for("free", |stats| stats.num_running == 0 && stats.num_waiting == 0 && stats.blocks.active == 0).await;
    }
}

/// A whole response.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// Returns the body of a success.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Returns the events of a stream.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        assert!(self.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        events_of(&self.text)
    }
}

/// Parses the events in the text of a stream; `[DONE]` is a string.
pub(crate) fn events_of(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| if data == "[DONE]" { json!("[DONE]") } else { serde_json::from_str(data).unwrap() }).collect()
}

/// Builds a chat request with more fields.
pub(crate) fn chat(text: &str, more: Value) -> Value {
    merged(json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 8}), more)
}

/// Builds a completion request with more fields.
pub(crate) fn completion(prompt: impl Into<Value>, more: Value) -> Value {
    merged(json!({"model": MODEL, "prompt": prompt.into(), "max_tokens": 8}), more)
}

fn merged(mut base: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("fields in an object") };
    for (field, value) in more {
        base[field] = value;
    }
    base
}

/// Media type of every request body.
const JSON: &str = "application/json";
pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";
