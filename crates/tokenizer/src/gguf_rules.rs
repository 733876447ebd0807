//! The pre-tokenization rules that GGUF files name in `tokenizer.ggml.pre`, as llama.cpp defines them.

use crate::TokenizerError;
use crate::pre_tokenizer::{Cut, GPT2, PreTokenizerKind};

/// A pre-tokenization rule with the properties that its name implies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GgufRule {
    names: &'static [&'static str],
    pub(crate) cut: Cut,
    /// True if a piece that is a token is taken whole, before any merge.
    pub(crate) ignores_merges: bool,
    /// True if prompts start with the beginning-of-text token unless the file specifies otherwise.
    pub(crate) adds_bos: bool,
    /// True if the vocabulary was trained on text in Unicode's normal form C.
    pub(crate) normalizes_to_nfc: bool,
}

const fn rule(names: &'static [&'static str], cut: Cut) -> GgufRule {
    GgufRule { names, cut, ignores_merges: false, adds_bos: false, normalizes_to_nfc: false }
}

/// Letters of scripts without case count as both upper and lower case.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const QWEN35: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Han and Hangul, and the characters between them.
const EAST_ASIAN: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";
const HAN_AND_KANA: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";

/// All rules that can be expressed here.
const RULES: [GgufRule; 17] = [
    rule(
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-code",
            "jina-v2-es",
            "jina-v2-de",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "mellum",
            "a.x-4.0",
        ],
        Cut::Quick(PreTokenizerKind::Gpt2),
    ),
    rule(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        Cut::Quick(PreTokenizerKind::Smollm),
    ),
    GgufRule {
        normalizes_to_nfc: true,
        ..rule(&["qwen2", "deepseek-r1-qwen", "kormo", "megrez"], Cut::Quick(PreTokenizerKind::Qwen2))
    },
    rule(&["stablelm2", "hunyuan", "solar-open", "grok-2"], Cut::Quick(PreTokenizerKind::Qwen2)),
    GgufRule {
        ignores_merges: true,
        adds_bos: true,
        ..rule(
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
            Cut::Quick(PreTokenizerKind::LlamaBpe),
        )
    },
    rule(&["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], Cut::Quick(PreTokenizerKind::LlamaBpe)),
    rule(&["default"], Cut::Steps(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"])),
    rule(&["falcon"], Cut::Steps(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"])),
    rule(&["deepseek-coder"], Cut::Steps(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, r"\p{N}"])),
    rule(&["deepseek-v3", "hunyuan-dense", "joyai-llm"], Cut::Steps(&[r"\p{N}{1,3}", HAN_AND_KANA, DEEPSEEK_V3])),
    GgufRule { ignores_merges: true, ..rule(&["tekken"], Cut::Steps(&[TEKKEN])) },
    rule(&["gpt-4o", "llama4", "kanana2", "minimax-m2"], Cut::Steps(&[GPT_4O])),
    rule(&["qwen35"], Cut::Steps(&[QWEN35])),
    rule(&["seed-coder"], Cut::Steps(&[SEED_CODER])),
    rule(&["bailingmoe", "bailingmoe2", "llada-moe"], Cut::Steps(&[BAILING])),
    rule(&["bloom", "gpt3-finnish", "poro-chat"], Cut::Steps(&[BLOOM])),
    rule(&["viking"], Cut::Steps(&[BLOOM, r"\p{N}"])),
];

impl GgufRule {
    /// Returns the rule with the name `pre`.
    ///
    /// # Errors
    /// If it is not known: guessing would serve wrong tokens.
    pub(crate) fn named(pre: &str) -> Result<Self, TokenizerError> {
        RULES.into_iter().find(|rule| rule.names.contains(&pre)).ok_or_else(|| TokenizerError::UnsupportedPreTokenizer {
            pre: crate::error::brief(&pre),
            supported: RULES.iter().flat_map(|rule| rule.names).copied().collect::<Vec<_>>().join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        GgufRule::named(pre).unwrap().cut.reference().pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    #[track_caller]
    fn check(pre: &str, text: &str, expected: &[&str]) {
        assert_eq!(pieces(pre, text), expected);
    }

    #[test]
    fn names_of_one_rule_cut_alike() {
        let text = "It's 12345 km/h,\n\n  naïve Ünïcode... 日本語 x";
        for (a, b) in [("deepseek-r1-qwen", "qwen2"), ("smaug-bpe", "llama-bpe"), ("starcoder", "smollm"), ("mpt", "gpt-2")] {
            assert_eq!(pieces(a, text), pieces(b, text));
        }
    }

    #[test]
    fn every_rule_cuts_without_gaps() {
        let text = "It's 12345 km/h,\r\n\n  naïve Ünïcode... 日本語 가나 $x=1;\t[y] ٣½\u{301}😀";
        for rule in RULES {
            assert_eq!(pieces(rule.names[0], text).concat(), text, "{:?}", rule.names);
        }
    }

    #[test]
    fn rules_of_several_steps_cut_as_published() {
        check("default", "a  b, 12345.", &["a", " ", " b", ",", " ", "123", "45", "."]);
        check("deepseek-coder", "if (a)\n12", &["if", " (", "a", ")", "\n", "1", "2"]);
        check("deepseek-v3", "x 1234 日本 _y", &["x", " ", "123", "4", " ", "日本", " _", "y"]);
        check("tekken", "HelloWorld's 12", &["Hello", "World", "'s", " ", "1", "2"]);
        check("gpt-4o", "HelloWorld's 1234", &["Hello", "World's", " ", "123", "4"]);
    }

    #[test]
    fn what_cannot_be_expressed_is_refused_by_name() {
        for pre in ["kimi-k2", "superbpe", "", "no\nsuch"] {
            let error = GgufRule::named(pre).unwrap_err().to_string();
            assert!(error.contains("qwen2") && !error.contains('\n'), "{error}");
        }
    }
}
