//! Names of dialects, and the dialect of a chat template.

use std::fmt;
use std::str::FromStr;

use crate::markers::{DEEPSEEK_CALL, MISTRAL_CALLS};

/// Form in which a model writes calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen2.5 and Qwen3, and templates that know no tools.
    Hermes,
    /// `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`: Qwen3-Coder.
    Qwen3Coder,
    /// `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`: GLM.
    Glm,
    /// `{"name": ..., "parameters": ...}` as the whole answer: Llama 3.
    Json,
    /// `[name(key=value)]` as the whole answer: Llama 3.2 and 4.
    Pythonic,
    /// `[TOOL_CALLS]`: Mistral.
    Mistral,
    /// `<｜tool▁call▁begin｜>`: DeepSeek.
    DeepSeek,
    /// `<|channel|>commentary to=functions.name`: gpt-oss.
    Harmony,
}

/// A name that no dialect has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown tool call parser `{0}`: one of auto, none, hermes, qwen3_coder, glm, json, pythonic, mistral, deepseek or harmony"
)]
pub struct UnknownDialect(pub String);

/// Texts by which a template shows its dialect, in the order in which they are looked for.
const SIGNS: [(&str, Dialect); 10] = [
    ("<|channel|>", Dialect::Harmony),
    ("<｜tool▁call", Dialect::DeepSeek),
    ("[TOOL_CALLS]", Dialect::Mistral),
    ("<arg_key>", Dialect::Glm),
    ("<function=", Dialect::Qwen3Coder),
    ("<tool_call>", Dialect::Hermes),
    ("<|python_start|>", Dialect::Pythonic),
    ("[func_name1(params_name1=params_value1", Dialect::Pythonic),
    ("<|python_tag|>", Dialect::Json),
    ("\"parameters\"", Dialect::Json),
];

impl Dialect {
    /// All dialects.
    pub const ALL: [Self; 8] =
        [Self::Hermes, Self::Qwen3Coder, Self::Glm, Self::Json, Self::Pythonic, Self::Mistral, Self::DeepSeek, Self::Harmony];

    /// Returns the dialect that the source of a chat template teaches. One that writes tools in no known form is taken for Hermes.
    #[must_use]
    pub fn of_template(source: &str) -> Self {
        SIGNS.iter().find(|(sign, _)| source.contains(sign)).map_or(Self::Hermes, |(_, dialect)| *dialect)
    }

    /// True if the source of a chat template reads the request's tools.
    #[must_use]
    pub fn knows_tools(source: &str) -> bool {
        source.contains("tools") || source.contains("tool_call")
    }

    /// Returns the name that flags use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
            Self::Qwen3Coder => "qwen3_coder",
            Self::Glm => "glm",
            Self::Json => "json",
            Self::Pythonic => "pythonic",
            Self::Mistral => "mistral",
            Self::DeepSeek => "deepseek",
            Self::Harmony => "harmony",
        }
    }

    /// Returns the text with which calls begin; `None` if the answer as a whole is one.
    #[must_use]
    pub fn opening(self) -> Option<&'static str> {
        match self {
            Self::Hermes | Self::Qwen3Coder | Self::Glm => Some("<tool_call>"),
            Self::Mistral => Some(MISTRAL_CALLS),
            Self::DeepSeek => Some(DEEPSEEK_CALL),
            Self::Json | Self::Pythonic | Self::Harmony => None,
        }
    }

    /// Returns the texts that structure an answer and that a vocabulary may hold as control tokens.
    #[must_use]
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Qwen3Coder => &["<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>"],
            Self::Glm => &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
            Self::Json => &["<|python_tag|>"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            Self::DeepSeek => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁calls▁end｜>",
            ],
            Self::Harmony => &["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>"],
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dialect {
    type Err = UnknownDialect;

    /// Reads a name; vLLM's names of parsers too.
    fn from_str(name: &str) -> Result<Self, UnknownDialect> {
        Ok(match name {
            "hermes" | "qwen" | "qwen2_5" | "qwen3" => Self::Hermes,
            "qwen3_coder" | "qwen3_xml" => Self::Qwen3Coder,
            "glm" | "glm45" | "glm47" => Self::Glm,
            "json" | "llama3_json" | "llama4_json" => Self::Json,
            "pythonic" | "llama4_pythonic" | "olmo3" => Self::Pythonic,
            "mistral" => Self::Mistral,
            "deepseek" | "deepseek_v3" | "deepseek_v31" => Self::DeepSeek,
            "harmony" | "openai" => Self::Harmony,
            _ => return Err(UnknownDialect(name.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for dialect in Dialect::ALL {
            assert_eq!(dialect.name().parse(), Ok(dialect));
        }
        assert!("klingon".parse::<Dialect>().is_err());
    }

    #[test]
    fn a_template_shows_its_dialect() {
        for (source, dialect) in [
            ("{% for tool in tools %}<tool_call>{{ tool }}", Dialect::Hermes),
            ("<tool_call><function=", Dialect::Qwen3Coder),
            ("{{ '<|python_tag|>' }}\"parameters\"", Dialect::Json),
            ("[TOOL_CALLS]", Dialect::Mistral),
            ("no tools", Dialect::Hermes),
        ] {
            assert_eq!(Dialect::of_template(source), dialect, "{source}");
        }
    }
}
