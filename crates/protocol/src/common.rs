//! Fields that both generation endpoints share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::object::read_only_from;
use crate::{KvSharingOptions, SegmentMark, Tool};

/// Sampling and stopping fields, as sent. Ranges are not checked here. Numbers keep JSON's precision, so that an error message shows the
/// value as it was sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingFields {
    /// Maximum number of tokens to generate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i64>,
    /// Temperature; 0 is greedy; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus sampling mass, in `0 < p <= 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Likeliest tokens to keep; 0 and -1 keep all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// Minimum probability relative to the likeliest token, in `0..=1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Number of answers for each prompt; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// Text that ends generation and is not returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// True if the text includes the stop string that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_stop_str_in_output: Option<bool>,
    /// True if special tokens are omitted from the text; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_special_tokens: Option<bool>,
    /// Tokens that end generation, in addition to those of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Seed that makes the answer repeatable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Penalty in `-2..=2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// Penalty in `-2..=2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Penalty in `0.01..=100`; 1 has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// Token id, written as a string, to an addend of its logit in `-100..=100`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// True to continue after an end-of-sequence token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
    /// Tokens to generate before a stop token may be sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_tokens: Option<i64>,
    /// True to answer in server-sent events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Options of the stream; only with `stream`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// End user of the caller; passed on, never interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Narrows the scope of cache sharing to requests with the same salt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// Option of llama.cpp: false computes the whole prompt, as `kv_sharing.mode` `off` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_prompt: Option<bool>,
    /// KV that this request may reuse and store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_sharing: Option<KvSharingOptions>,
    /// Alias of `kv_sharing.segments`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_segments: Option<Vec<SegmentMark>>,
}

/// Fields that constrain the text of an answer, under the names of OpenAI, vLLM, SGLang, llama.cpp and TGI. At most one constrains.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConstraintFields {
    /// `{"type": "text" | "json_object" | "json_schema", ...}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Value>,
    /// vLLM: an object with one of `json`, `regex`, `choice`, `grammar` and `json_object`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structured_outputs: Option<Value>,
    /// A JSON schema, as an object or its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guided_json: Option<Value>,
    /// A regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guided_regex: Option<String>,
    /// Texts, one of which is the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guided_choice: Option<Vec<String>>,
    /// A grammar in Lark's syntax.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guided_grammar: Option<String>,
    /// A JSON schema, as an object or its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json_schema: Option<Value>,
    /// A regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// A grammar in Lark's syntax, or an object of TGI: `{"type": "json" | "regex", "value": ...}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grammar: Option<Value>,
}

/// Options of rendering a conversation into a prompt, common to all endpoints that take one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TemplateFields {
    /// True if the prompt ends with the start of the assistant's answer; true when absent, unless `continue_final_message`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_generation_prompt: Option<bool>,
    /// True if the prompt ends with the text of the last message, which the answer continues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continue_final_message: Option<bool>,
    /// Source of a template that replaces the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Additional template variables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Tools that the model may call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Tool>>,
    /// Effort of models that reason: a variable of their templates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<String>,
}

/// One stop string or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub enum Stop {
    /// A single string.
    One(String),
    /// Several strings; the first occurrence of any ends generation.
    Many(Vec<String>),
}

/// Options of a streamed answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct StreamOptions {
    /// True if a last chunk carries the usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_usage: Option<bool>,
    /// True if every chunk carries the usage so far; only with `include_usage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuous_usage_stats: Option<bool>,
}

read_only_from!(deserialize_map, FromObject, StreamOptions);

/// Reason why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop string or stop token.
    Stop,
    /// The token limit.
    Length,
    /// The end of calls of tools.
    ToolCalls,
}
