//! Model to serve, its name, and its source.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use models::ModelSource;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use server::AnswerForms;

use super::Auto;
use super::flag::set;

/// Model that is served when none is named.
pub(crate) const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// `[model]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelConfig {
    /// Catalogue name, `owner/name` or `owner/name:file.gguf` on the hub, or a path.
    pub(crate) name: String,
    /// Branch, tag or commit on the hub.
    pub(crate) revision: String,
    /// Name in the API; the model's own by default.
    pub(crate) served_model_name: Auto<String>,
    /// Source of the weights.
    pub(crate) load_format: LoadFormat,
    /// `tokenizer.json`, or a GGUF file with a vocabulary, to use instead of the model's own.
    pub(crate) tokenizer: Auto<PathBuf>,
    /// True if the names of control tokens in messages become those tokens; else they are text.
    pub(crate) content_control_tokens: bool,
    /// Folder with a `generation_config.json` for sampling defaults, or `none`; the model's own by default.
    pub(crate) generation_config: Auto<PathBuf>,
    /// File with a chat template to use instead of the model's own.
    pub(crate) chat_template: Auto<PathBuf>,
    /// Dialect of the model's calls of tools, or `none`; that of its chat template by default.
    pub(crate) tool_call_parser: Auto<String>,
    /// Form of the model's reasoning, or `none`; that of its chat template by default.
    pub(crate) reasoning_parser: Auto<String>,
    /// Folder of the sentence encoder that embeds clients' texts; by default that of `sharing.embedder_model`, if it is used.
    pub(crate) embedding_model: Auto<PathBuf>,
    /// Name of that encoder in the API; its folder's by default.
    pub(crate) embedding_model_name: Auto<String>,
    /// Folder of catalogue models.
    pub(crate) cache_dir: Auto<PathBuf>,
    /// True to never contact the hub; its cache is still read.
    pub(crate) hub_offline: bool,
    /// Access token for the hub; by default the one that the hub's own tools have stored.
    pub(crate) hub_token: Auto<Secret>,
}

/// Source of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LoadFormat {
    /// From the model's files.
    Auto,
    /// Nowhere: random weights in the shape of its `config.json`, for measurements of speed.
    Dummy,
}

/// Text that is never printed.
#[derive(Clone, PartialEq)]
pub(crate) struct Secret(String);

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: DEFAULT_MODEL.to_owned(),
            revision: "main".to_owned(),
            served_model_name: Auto::Auto,
            load_format: LoadFormat::Auto,
            tokenizer: Auto::Auto,
            content_control_tokens: false,
            generation_config: Auto::Auto,
            chat_template: Auto::Auto,
            tool_call_parser: Auto::Auto,
            reasoning_parser: Auto::Auto,
            embedding_model: Auto::Auto,
            embedding_model_name: Auto::Auto,
            cache_dir: Auto::Auto,
            hub_offline: false,
            hub_token: Auto::Auto,
        }
    }
}

impl ModelConfig {
    /// Returns what to resolve the model by.
    pub(crate) fn source(&self) -> ModelSource<'_> {
        ModelSource {
            name: &self.name,
            revision: &self.revision,
            served_name: self.served_model_name.as_ref().value().map(String::as_str),
            has_random_weights: self.load_format == LoadFormat::Dummy,
            tokenizer: self.tokenizer.as_ref().value().map(PathBuf::as_path),
            cache_dir: self.cache_dir.as_ref().value().map(PathBuf::as_path),
            is_offline: self.hub_offline,
            hub_token: self.hub_token.as_ref().value().map(Secret::reveal),
        }
    }

    /// True if sampling defaults of models are ignored.
    pub(crate) fn has_no_generation_config(&self) -> bool {
        self.generation_config.as_ref().value().is_some_and(|folder| folder.as_os_str() == "none")
    }

    /// Returns the folder whose `generation_config.json` replaces the model's own.
    pub(crate) fn generation_folder(&self) -> Option<&Path> {
        self.generation_config.as_ref().value().map(PathBuf::as_path).filter(|_| !self.has_no_generation_config())
    }

    /// Returns the forms of calls and reasoning of a model with this chat template, as far as the operator left them to it.
    ///
    /// # Errors
    /// If a parser has an unknown name.
    pub(crate) fn answer_forms(&self, template: Option<&str>) -> anyhow::Result<AnswerForms> {
        let mut forms = template.map(AnswerForms::of_template).unwrap_or_default();
        if let Auto::Set(name) = &self.tool_call_parser {
            forms.dialect = if name == "none" { None } else { Some(name.parse()?) };
        }
        if let Auto::Set(name) = &self.reasoning_parser {
            forms.thinking = if name == "none" { None } else { Some(name.parse()?) };
        }
        Ok(forms)
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(self.answer_forms(None).err().map(|error| format!("model: {error}")));
        if self.name.is_empty() {
            problems.push("model.name is empty".to_owned());
        }
        if self.revision.is_empty() {
            problems.push("model.revision is empty".to_owned());
        }
        if self.served_model_name.as_ref().value().is_some_and(|name| name.trim().is_empty()) {
            problems.push("model.served_model_name is empty".to_owned());
        }
        if self.embedding_model_name.as_ref().value().is_some_and(|name| name.trim().is_empty()) {
            problems.push("model.embedding_model_name is empty".to_owned());
        }
        problems
    }
}

impl Secret {
    /// Returns the text itself, for sending.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// Flags of `[model]`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Catalogue name, `owner/name[:file.gguf]` on the hub, or a path [default: smollm2-135m-instruct]
    #[arg(long, short, env = "KVSHARE_MODEL")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Name of the model in the API [default: its own]
    #[arg(long, env = "KVSHARE_SERVED_MODEL_NAME")]
    served_model_name: Option<String>,
    /// `dummy`: random weights in the shape of the model's config.json, to measure speed without any
    #[arg(long, env = "KVSHARE_LOAD_FORMAT", value_enum, value_name = "FORMAT")]
    load_format: Option<LoadFormat>,
    /// A tokenizer.json, or a GGUF file with a vocabulary, to use instead of the model's own
    #[arg(long, env = "KVSHARE_TOKENIZER", value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Let the names of control tokens in messages become those tokens [default: false, they are text]
    #[arg(long, env = "KVSHARE_CONTENT_CONTROL_TOKENS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    content_control_tokens: Option<bool>,
    /// Sampling defaults: `auto` (the model's own generation_config.json), `none`, or a folder with one [default: auto]
    #[arg(long, env = "KVSHARE_GENERATION_CONFIG", value_name = "auto|none|DIR")]
    generation_config: Option<PathBuf>,
    /// File with a chat template [default: the model's own]
    #[arg(long, env = "KVSHARE_CHAT_TEMPLATE", value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Form of the model's calls of tools: `none`, hermes, qwen3_coder, glm, json, pythonic, mistral, deepseek or harmony [default: auto, that of its chat template]
    #[arg(long, env = "KVSHARE_TOOL_CALL_PARSER", value_name = "NAME")]
    tool_call_parser: Option<Auto<String>>,
    /// Form of the model's reasoning: `none`, think or mistral [default: auto, that of its chat template]
    #[arg(long, env = "KVSHARE_REASONING_PARSER", value_name = "NAME")]
    reasoning_parser: Option<Auto<String>>,
    /// Folder of a BERT sentence encoder for embeddings and reranking, as all-MiniLM-L6-v2 [default: that of --embedder bert]
    #[arg(long, env = "KVSHARE_EMBEDDING_MODEL", value_name = "PATH")]
    embedding_model: Option<PathBuf>,
    /// Name of the embedding model in the API [default: its folder's]
    #[arg(long, env = "KVSHARE_EMBEDDING_MODEL_NAME", value_name = "NAME")]
    embedding_model_name: Option<String>,
}

/// Flags for the source of a model.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct SourceArgs {
    /// Branch, tag or commit on the hub [default: main]
    #[arg(long, env = "KVSHARE_REVISION")]
    revision: Option<String>,
    /// Folder for catalogue models [default: kvshare/models in the user's cache folder]
    #[arg(long, env = "KVSHARE_CACHE", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Never contact the hub; read its cache only
    #[arg(long, env = "HF_HUB_OFFLINE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL",
          value_parser = clap::builder::BoolishValueParser::new())]
    hub_offline: Option<bool>,
    /// Access token for the hub
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    hub_token: Option<Secret>,
}

impl ModelArgs {
    pub(super) fn apply(self, config: &mut ModelConfig) {
        set(&mut config.name, self.model);
        set(&mut config.served_model_name, self.served_model_name.map(Auto::Set));
        set(&mut config.load_format, self.load_format);
        set(&mut config.tokenizer, self.tokenizer.map(Auto::Set));
        set(&mut config.content_control_tokens, self.content_control_tokens);
        let automatic = |folder: PathBuf| if folder.as_os_str() == "auto" { Auto::Auto } else { Auto::Set(folder) };
        set(&mut config.generation_config, self.generation_config.map(automatic));
        set(&mut config.chat_template, self.chat_template.map(Auto::Set));
        set(&mut config.tool_call_parser, self.tool_call_parser);
        set(&mut config.reasoning_parser, self.reasoning_parser);
        set(&mut config.embedding_model, self.embedding_model.map(Auto::Set));
        set(&mut config.embedding_model_name, self.embedding_model_name.map(Auto::Set));
        self.source.apply(config);
    }
}

impl SourceArgs {
    pub(crate) fn apply(self, config: &mut ModelConfig) {
        set(&mut config.revision, self.revision);
        set(&mut config.cache_dir, self.cache_dir.map(Auto::Set));
        set(&mut config.hub_offline, self.hub_offline);
        set(&mut config.hub_token, self.hub_token.map(Auto::Set));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_model_is_in_the_catalogue() {
        assert!(models::catalogue().iter().any(|model| model.name == DEFAULT_MODEL));
    }
}
