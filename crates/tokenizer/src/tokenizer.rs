//! Tokenization and detokenization.

use std::ops::ControlFlow;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{Model, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token};
use tokens::{Borders, TokenId, TokenRange};
use unicode_normalization::UnicodeNormalization;

use crate::added::{AddedTokens, Segment};
use crate::bound::TokenLengths;
use crate::byte_level::ByteLevelEncoder;
use crate::chat::RenderedChat;
use crate::error::brief;
use crate::file::read_bounded;
use crate::parts::Parts;
use crate::prompt::{ContentStart, TokenSpan, content_starts, template_ranges};
use crate::segments::{SegmentRule, TokenText};
use crate::token_bytes::TokenBytes;
use crate::{ChatError, ChatMessage, ChatOptions, ChatTemplate, EncodedPrompt, GgufVocabulary, TokenizerError};

/// Vocabulary of one model, with its chat template if it has one. Shared between threads in an `Arc`.
///
/// Two paths give the same tokens. Byte-level BPE with a known pre-tokenizer takes the fast one (`byte_level.rs`); everything else, and
/// text that normalization would change, goes through the whole `tokenizers` crate.
pub struct Tokenizer {
    hf: tokenizers::Tokenizer,
    quick: Option<QuickPath>,
    bytes: TokenBytes,
    /// Bounds by token length; `None` if tokens do not spell the bytes of a text one by one.
    lengths: Option<TokenLengths>,
    /// True, by id, if `skip_special` omits the token.
    is_special: Vec<bool>,
    strips_leading_space: bool,
    prefix: Vec<TokenId>,
    suffix: Vec<TokenId>,
    bos: Option<TokenId>,
    eos: Vec<TokenId>,
    chat_template: Option<ChatTemplate>,
    added: AddedTokens,
    /// Chat template variables that name special tokens, such as `pad_token`.
    named_tokens: Map<String, Value>,
    content_control_tokens: bool,
}

struct QuickPath {
    encoder: ByteLevelEncoder,
    needs_nfc: bool,
}

impl Tokenizer {
    /// Rebuilds the tokenizer from the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// If the kind of vocabulary or its pre-tokenizer is not known, or the lists disagree.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, TokenizerError> {
        Self::assemble(vocabulary.into_parts()?)
    }

    /// Reads a `tokenizer.json`. The file does not specify which tokens begin and end a text: see [`Tokenizer::from_folder`] and
    /// [`Tokenizer::with_special_ids`].
    ///
    /// # Errors
    /// If the file cannot be read, or decodes in a way that is not served.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        Self::from_file_with(path, &[])
    }

    /// Reads a `tokenizer.json`, with the further added tokens that `tokenizer_config.json` lists.
    pub(crate) fn from_file_with(path: &Path, added: &[tokenizers::AddedToken]) -> Result<Self, TokenizerError> {
        let json = read_bounded(path, MAX_FILE_BYTES)?;
        let mut hf = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| TokenizerError::Parse { path: path.to_owned(), reason: brief(&error) })?;
        hf.with_truncation(None).map_err(TokenizerError::library)?;
        hf.with_padding(None);
        // Tokens that the file already has stay unchanged; those with other flags are replaced.
        hf.add_tokens(added.iter().cloned()).map_err(TokenizerError::library)?;
        Self::assemble(Parts::from_library(hf)?)
    }

    /// Sets the tokens at the beginning and the end of a text.
    #[must_use]
    pub fn with_special_ids(self, bos: Option<TokenId>, eos: Vec<TokenId>) -> Self {
        Self { bos, eos, ..self }
    }

    /// Sets the chat template, rendered with this vocabulary's special tokens.
    ///
    /// # Errors
    /// If the template is not valid.
    pub fn with_chat_template(mut self, source: &str) -> Result<Self, ChatError> {
        self.chat_template = Some(self.compile(source)?);
        Ok(self)
    }

    /// Sets the treatment of control token names in messages: those tokens if true, text by default.
    #[must_use]
    pub fn with_content_control_tokens(self, content_control_tokens: bool) -> Self {
        Self { content_control_tokens, ..self }
    }

    /// Sets the special tokens that the chat template receives by name.
    #[must_use]
    pub(crate) fn with_named_tokens(self, named_tokens: Map<String, Value>) -> Self {
        Self { named_tokens, ..self }
    }

    /// Compiles a chat template with this vocabulary's special tokens.
    fn compile(&self, source: &str) -> Result<ChatTemplate, ChatError> {
        let mut tokens = self.named_tokens.clone();
        for (name, id) in [("bos_token", self.bos), ("eos_token", self.eos.first().copied())] {
            if let Some(id) = id {
                tokens.entry(name).or_insert_with(|| self.token_str(id).into());
            }
        }
        ChatTemplate::new(source, tokens)
    }

    fn assemble(parts: Parts) -> Result<Self, TokenizerError> {
        let mut is_special = vec![false; parts.bytes.len()];
        for token in parts.added.iter().filter(|token| token.is_special) {
            is_special[token.id.0 as usize] = true;
        }
        let quick = match parts.pre_tokenizer {
            None => None,
            Some(kind) => {
                Some(QuickPath { encoder: ByteLevelEncoder::new(kind), needs_nfc: parts.hf.get_normalizer().is_some() })
            }
        };
        let spells_bytes = quick.is_some() || spells_bytes(&parts.hf);
        let lengths =
            spells_bytes.then(|| TokenLengths::new((0..parts.bytes.len()).map(|id| parts.bytes.get(TokenId(id as u32)))));
        Ok(Self {
            hf: parts.hf,
            quick,
            lengths,
            bytes: parts.bytes,
            is_special,
            strips_leading_space: parts.strips_leading_space,
            prefix: parts.prefix,
            suffix: parts.suffix,
            bos: parts.bos,
            eos: parts.eos,
            chat_template: None,
            added: AddedTokens::new(&parts.added).map_err(TokenizerError::library)?,
            named_tokens: parts.named_tokens,
            content_control_tokens: false,
        })
    }

    /// Encodes `text`. The text of a special token in it becomes that token, as in the models' own tokenizers; see
    /// [`Tokenizer::encode_as_text`] for text that must not. `add_special_tokens` adds the tokens that the model expects around a text,
    /// such as a beginning-of-text token.
    ///
    /// # Errors
    /// If the underlying library refuses the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<EncodedPrompt, TokenizerError> {
        self.encode_within(text, add_special_tokens, usize::MAX)
    }

    /// Encodes like [`Tokenizer::encode`] a text of at most `max_tokens` tokens. A longer one is refused as early as its length is known.
    ///
    /// # Errors
    /// [`TokenizerError::TooManyTokens`] if the text is longer; else as [`Tokenizer::encode`].
    pub fn encode_within(
        &self,
        text: &str,
        add_special_tokens: bool,
        max_tokens: usize,
    ) -> Result<EncodedPrompt, TokenizerError> {
        let (prefix, suffix) = if add_special_tokens { (&*self.prefix, &*self.suffix) } else { (&[][..], &[][..]) };
        let mut token_ids = prefix.to_vec();
        self.append_ids(text, max_tokens, &mut token_ids)?;
        let text_end = token_ids.len();
        token_ids.extend_from_slice(suffix);
        let range = |start: usize, end: usize| TokenRange::new(to_pos(start), to_pos(end));
        let mut template = vec![range(0, prefix.len()), range(text_end, token_ids.len())];
        template.retain(|range| !range.is_empty());
        let contents = match text_end > prefix.len() {
            true => vec![ContentStart { message: 0, position: to_pos(prefix.len()) }],
            false => Vec::new(),
        };
        Ok(EncodedPrompt { token_ids, template, contents })
    }

    /// Returns the byte of `text` at which each token of [`Tokenizer::encode`] begins, without the tokens added around a text. A token
    /// that is part of a character may begin inside of it or at its start.
    ///
    /// # Errors
    /// If the underlying library refuses the text.
    pub fn token_starts(&self, text: &str) -> Result<Vec<usize>, TokenizerError> {
        Ok(self.spans(text, &[], usize::MAX)?.into_iter().map(|span| span.bytes.start).collect())
    }

    /// Encodes `text`, taking the names of special tokens literally.
    ///
    /// # Errors
    /// If the underlying library refuses the text.
    pub fn encode_as_text(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut token_ids = Vec::new();
        match self.quick_path(text) {
            Some(quick) => {
                quick.encoder.encode(self.hf.get_model(), text, |_, ids| {
                    token_ids.extend_from_slice(ids);
                    ControlFlow::Continue(())
                })?;
            }
            None => token_ids.extend(self.encode_without_added(text).map_err(TokenizerError::library)?.into_iter().map(TokenId)),
        }
        Ok(token_ids)
    }

    /// Renders `messages` with the model's chat template, or the one in `options`, and encodes the result. The template itself writes the
    /// beginning-of-text token if the model needs one. Only the template can write control tokens: their names in messages and variables
    /// are text, even if the template transforms them; see [`Tokenizer::with_content_control_tokens`].
    ///
    /// # Errors
    /// If there is no template, or the one in `options` is not valid, the template refuses the messages, or the text cannot be encoded.
    pub fn encode_chat(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<EncodedPrompt, ChatError> {
        self.encode_chat_within(messages, options, usize::MAX)
    }

    /// Encodes like [`Tokenizer::encode_chat`] a prompt of at most `max_tokens` tokens. A longer one is refused as early as its length is
    /// known.
    ///
    /// # Errors
    /// [`TokenizerError::TooManyTokens`] if the prompt is longer; else as [`Tokenizer::encode_chat`].
    pub fn encode_chat_within(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
        max_tokens: usize,
    ) -> Result<EncodedPrompt, ChatError> {
        let brought = options.template.as_deref().map(|source| self.compile(source)).transpose()?;
        let chat_template = brought.as_ref().or(self.chat_template.as_ref()).ok_or(ChatError::NoTemplate)?;
        let RenderedChat { text, inputs, contents } = chat_template.render_chat(messages, options)?;
        self.check_length(&text, max_tokens)?;
        let spans = self.spans(&text, if self.content_control_tokens { &[] } else { &inputs }, max_tokens)?;
        let starts = content_starts(&spans, &contents);
        let ranges: Vec<_> = contents.into_iter().map(|content| content.bytes).collect();
        let template = template_ranges(&spans, &ranges, |id| self.is_special(id));
        Ok(EncodedPrompt { token_ids: spans.into_iter().map(|span| span.id).collect(), template, contents: starts })
    }

    /// Returns the segments of `prompt` by `rule`, its sentences and its tables.
    #[must_use]
    pub fn borders(&self, prompt: &EncodedPrompt, rule: &SegmentRule) -> Borders {
        let text = TokenText::new(prompt.token_ids.iter().map(|&id| self.token_bytes(id)));
        Borders { segments: rule.starts(&text, &prompt.contents), sentences: text.sentence_starts(), tables: text.tables() }
    }

    /// Decodes `ids`; invalid UTF-8 becomes U+FFFD. `skip_special` omits special tokens.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids.iter().filter(|&&id| !(skip_special && self.is_special(id))) {
            bytes.extend_from_slice(self.token_bytes(id));
        }
        let text = if self.strips_leading_space { bytes.strip_prefix(b" ").unwrap_or(&bytes) } else { &bytes };
        String::from_utf8_lossy(text).into_owned()
    }

    /// Returns the bytes of `id`, possibly part of a character; none for an id without a token.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.bytes.get(id)
    }

    /// Returns the text of `id` alone; U+FFFD if it is part of a character.
    #[must_use]
    pub fn token_str(&self, id: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// Returns the token spelled `text` in the vocabulary, including special ones.
    #[must_use]
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        self.hf.token_to_id(text).map(TokenId)
    }

    /// Returns the number of ids, including special and unused ones. A model may have more rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the token that begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// Returns the tokens that end an answer, the model's main one first.
    #[must_use]
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.eos
    }

    /// Returns the chat template, if the model has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// True if `id` is a control token and not text.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.is_special.get(id.0 as usize).copied().unwrap_or(false)
    }

    /// True if decoding from the start of a text drops one leading space.
    pub(crate) fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }

    /// Returns the fast path if it gives the right tokens for `text`.
    fn quick_path(&self, text: &str) -> Option<&QuickPath> {
        self.quick.as_ref().filter(|quick| !quick.needs_nfc || text.is_ascii() || unicode_normalization::is_nfc(text))
    }

    /// Refuses a text that, by its bytes alone, has more than `max_tokens` tokens.
    fn check_length(&self, text: &str, max_tokens: usize) -> Result<(), TokenizerError> {
        let Some(lengths) = self.lengths.as_ref().filter(|_| text.len() > max_tokens) else { return Ok(()) };
        let changes = self.quick.as_ref().is_some_and(|quick| quick.needs_nfc) && self.quick_path(text).is_none();
        let at_least = match changes {
            true => lengths.min_tokens(text.nfc().collect::<String>().as_bytes()),
            false => lengths.min_tokens(text.as_bytes()),
        };
        within(at_least, max_tokens)
    }

    fn append_ids(&self, text: &str, max_tokens: usize, out: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        self.check_length(text, max_tokens)?;
        let Some(quick) = self.quick_path(text) else {
            let encoding = self.hf.encode_fast(text, false).map_err(TokenizerError::library)?;
            out.extend(encoding.get_ids().iter().copied().map(TokenId));
            return within(out.len(), max_tokens);
        };
        for segment in self.added.segments(text, &[]) {
            match segment {
                Segment::Added(id, _) => out.push(id),
                Segment::Text(text) => quick.encoder.encode(self.hf.get_model(), text, |_, ids| {
                    out.extend_from_slice(ids);
                    go_on_if(out.len() <= max_tokens)
                })?,
            }
            within(out.len(), max_tokens)?;
        }
        Ok(())
    }

    /// Returns the tokens of `text`, at most `max_tokens`, with the bytes that each covers. No special token overlaps `inputs`, which are
    /// sorted and disjoint.
    fn spans(&self, text: &str, inputs: &[Range<usize>], max_tokens: usize) -> Result<Vec<TokenSpan>, TokenizerError> {
        let Some(quick) = self.quick_path(text) else {
            let encoding = match self.added.are_restricted(text, inputs) {
                true => self.encode_restricted(text, inputs),
                false => self.hf.encode(text, false),
            };
            let encoding = encoding.map_err(TokenizerError::library)?;
            within(encoding.get_ids().len(), max_tokens)?;
            let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
            return Ok(tokens.map(|(&id, &(start, end))| TokenSpan { id: TokenId(id), bytes: start..end }).collect());
        };
        let mut spans = Vec::with_capacity((text.len() / 3).min(max_tokens));
        let mut segment_start = 0;
        for segment in self.added.segments(text, inputs) {
            segment_start += match segment {
                Segment::Added(id, len) => {
                    spans.push(TokenSpan { id, bytes: segment_start..segment_start + len });
                    len
                }
                Segment::Text(text) => {
                    quick.encoder.encode(self.hf.get_model(), text, |piece_start, ids| {
                        self.push_piece(segment_start + piece_start, ids, &mut spans);
                        go_on_if(spans.len() <= max_tokens)
                    })?;
                    text.len()
                }
            };
            within(spans.len(), max_tokens)?;
        }
        Ok(spans)
    }

    /// Appends the tokens of a piece. Byte-level tokens have known lengths, so the start of each is a running sum.
    fn push_piece(&self, piece_start: usize, ids: &[TokenId], spans: &mut Vec<TokenSpan>) {
        let mut start = piece_start;
        for &id in ids {
            let end = start + self.bytes.get(id).len();
            spans.push(TokenSpan { id, bytes: start..end });
            start = end;
        }
    }

    /// Runs the library's pipeline with our search for added tokens, because its own does not support inputs.
    fn encode_restricted(&self, text: &str, inputs: &[Range<usize>]) -> tokenizers::Result<tokenizers::Encoding> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, whole| {
            let mut at = 0;
            let mut splits = Vec::new();
            for segment in self.added.segments(text, inputs) {
                let (len, token) = match segment {
                    Segment::Text(text) => (text.len(), None),
                    Segment::Added(id, len) => (len, Some(vec![Token::new(id.0, text[at..at + len].to_owned(), (0, len))])),
                };
                let piece = whole.slice(tokenizers::normalizer::Range::Original(at..at + len));
                splits.push((piece.ok_or("a segment ends within a character")?, token));
                at += len;
            }
            Ok(splits)
        })?;
        if let Some(normalizer) = self.hf.get_normalizer() {
            pieces.normalize(|piece| normalizer.normalize(piece))?;
        }
        self.cut_and_merge(pieces)
    }

    /// Runs the library's pipeline without its search for added tokens.
    fn encode_without_added(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let mut normalized = tokenizers::NormalizedString::from(text);
        if let Some(normalizer) = self.hf.get_normalizer() {
            normalizer.normalize(&mut normalized)?;
        }
        Ok(self.cut_and_merge(PreTokenizedString::from(normalized))?.get_ids().to_vec())
    }

    /// Runs the last steps of the library's pipeline.
    fn cut_and_merge(&self, mut pieces: PreTokenizedString) -> tokenizers::Result<tokenizers::Encoding> {
        if let Some(pre_tokenizer) = self.hf.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.hf.get_model().tokenize(piece.get()))?;
        pieces.into_encoding(None, 0, OffsetType::Byte)
    }
}

/// True if a SentencePiece vocabulary spells every byte of a text: none is dropped, and unknown ones are separate tokens.
fn spells_bytes(hf: &tokenizers::Tokenizer) -> bool {
    let falls_back = matches!(hf.get_model(), tokenizers::ModelWrapper::BPE(bpe) if bpe.byte_fallback);
    falls_back && (0..=255u8).all(|byte| hf.token_to_id(&format!("<0x{byte:02X}>")).is_some()) && only_marks_spaces(hf)
}

/// True if normalization writes spaces as `▁`, possibly with one more at the start, and changes nothing else.
fn only_marks_spaces(hf: &tokenizers::Tokenizer) -> bool {
    let Ok(json) = serde_json::to_value(hf.get_normalizer()) else { return false };
    let steps = json["normalizers"].as_array().cloned().unwrap_or_else(|| vec![json]);
    steps.iter().all(|step| match step["type"].as_str() {
        None => step.is_null(),
        Some("Prepend") => true,
        Some("Replace") => step["content"] == "▁" && step["pattern"]["String"] == " ",
        Some(_) => false,
    })
}

fn within(num_tokens: usize, max_tokens: usize) -> Result<(), TokenizerError> {
    if num_tokens > max_tokens { Err(TokenizerError::TooManyTokens { at_least: num_tokens }) } else { Ok(()) }
}

fn go_on_if(goes_on: bool) -> ControlFlow<()> {
    if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// Maximum bytes of a `tokenizer.json`. Chosen: those with 256k tokens have 35 MB.
const MAX_FILE_BYTES: u64 = 96 << 20;

fn to_pos(index: usize) -> u32 {
    u32::try_from(index).expect("a prompt has less than 2^32 tokens")
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::byte_level::byte_symbols;
    use crate::pre_tokenizer::PreTokenizerKind;

    /// Returns the `tokenizer.json` of a byte-level vocabulary: 256 bytes, a few merges, `<s>` (special) put in front, `<t>` (not
    /// special).
    pub(crate) fn tokenizer_json() -> String {
        let merges = [("h", "e"), ("l", "l"), ("Ġ", "he"), ("Ã", "©"), ("Ċ", "Ċ"), ("Ġ", "Ġ")];
        let symbols = byte_symbols().map(String::from).into_iter();
        let vocab: serde_json::Map<_, _> =
            symbols.chain(merges.map(|(left, right)| left.to_owned() + right)).zip((0..).map(|id: u32| id.into())).collect();
        let added = |id: u32, text: &str, special: bool| json!({"id": id, "content": text, "special": special, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
        let mut json = json!({
            "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}, "padding": null,
            "added_tokens": [added(262, "<s>", true), added(263, "<t>", false)],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": PreTokenizerKind::Qwen2.reference(),
            "post_processor": {"type": "TemplateProcessing", "pair": [],
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [262], "tokens": ["<s>"]}}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        });
        json["model"] = json!({"type": "BPE", "vocab": vocab, "merges": merges, "fuse_unk": false, "byte_fallback": false});
        json.to_string()
    }

    fn tokenizer() -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, tokenizer_json()).unwrap();
        Tokenizer::from_file(&path).unwrap()
    }

    /// Compares with `expected`, each token's bytes as text, and template positions as `#`.
    #[track_caller]
    fn check_chat(messages: &[ChatMessage], expected: &[&str], expected_template: &str) {
        let source = "{% for m in messages %}<s>{{ m.role }}:{{ m.content | trim }}{% endfor %}";
        let tokenizer = tokenizer().with_chat_template(source).unwrap();
        let prompt = tokenizer.encode_chat(messages, &ChatOptions::default()).unwrap();
        let texts: Vec<_> = prompt.token_ids.iter().map(|&id| tokenizer.token_str(id)).collect();
        let is_template = |pos| prompt.template.iter().any(|range| range.contains(pos));
        let marks: String = (0..to_pos(texts.len())).map(|pos| if is_template(pos) { '#' } else { '.' }).collect();
        assert_eq!((texts, marks.as_str()), (expected.iter().map(|&text| text.to_owned()).collect(), expected_template));
    }

    #[test]
    fn roles_and_special_tokens_are_the_templates() {
        check_chat(&[ChatMessage::new("u", " he<t>l")], &["<s>", "u", ":", "he", "<t>", "l"], "###...");
    }

    #[test]
    fn the_name_of_a_control_token_inside_a_message_is_text() {
        check_chat(&[ChatMessage::new("u", "l<s>u")], &["<s>", "u", ":", "l", "<", "s", ">", "u"], "###.....");
        check_chat(&[ChatMessage::new("u", "<s>e\u{301}")], &["<s>", "u", ":", "<", "s", ">", "é"], "###....");
    }

    #[test]
    fn a_message_cannot_become_a_control_token_whatever_the_template_does() {
        let sources = [
            "{{ m.content }}",
            "{{ m.content | trim }}",
            "{{ m.content | upper | lower }}",
            "{{ m.content.split('~') | join }}",
            "{{ m.content | replace('~', '') }}",
            "{{ m.content[0] + m.content[1:] }}",
            "{{ m.content[::-1][::-1] }}",
            "{{ {'k': [m.content]} | tojson }}",
            "{{ [m.content] }}",
            "{{ '%s' | format(m.content) }}",
            "{{ '{}'.format(m.content) }}",
            "{% for c in m.content %}{{ c }}{% endfor %}",
            "{{ m.content | list | join }}",
            "{% set x %}{{ m.content }}{% endset %}{{ x | indent }}",
            "{{ '<s' + m.content.removeprefix('<s') }}",
            "{{ '<' ~ m.content | replace('<', '') }}",
            "{{ m.name }}",
            "{{ m.calls | tojson }}",
            "{{ extra }}",
        ];
        for (content, source) in
            ["<s>", "<~s~>", "~<S>", "e\u{301}<s>"].iter().flat_map(|content| sources.map(|source| (content, source)))
        {
            let source = format!("{{% for m in messages %}}<s>{source}{{% endfor %}}");
            let mut message = ChatMessage::new("user", *content);
            message.extra.insert("name".to_owned(), "<s>".into());
            message.extra.insert("calls".to_owned(), json!([{"name": "<s>", "<s>": "<s>"}]));
            let variables = Map::from_iter([("extra".to_owned(), json!("<s>"))]);
            let num_special = |content_control_tokens| {
                let tokenizer = tokenizer().with_content_control_tokens(content_control_tokens);
                let options =
                    ChatOptions { template: Some(source.clone()), variables: variables.clone(), ..ChatOptions::default() };
                let prompt = tokenizer.encode_chat(&[message.clone()], &options).unwrap();
                prompt.token_ids.iter().filter(|id| tokenizer.is_special(**id)).count()
            };
            assert_eq!(num_special(false), 1, "{source} of {content:?}");
            let rendered = ChatTemplate::new(&source, Map::new()).unwrap();
            let options = ChatOptions { variables: variables.clone(), ..ChatOptions::default() };
            let text = rendered.render(&[message.clone()], &options).unwrap();
            assert_eq!(num_special(true), text.matches("<s>").count(), "{source} of {content:?}");
        }
    }

    #[test]
    fn a_request_may_bring_its_own_template() {
        let options = ChatOptions { template: Some("{{ bos_token }}hello".to_owned()), ..ChatOptions::default() };
        let tokenizer = tokenizer().with_special_ids(Some(TokenId(262)), vec![]).with_chat_template("never").unwrap();
        let prompt = tokenizer.encode_chat(&[ChatMessage::new("u", "x")], &options).unwrap();
        assert_eq!(tokenizer.decode(&prompt.token_ids, false), "<s>hello");
        let broken = ChatOptions { template: Some("{% if %}".to_owned()), ..ChatOptions::default() };
        assert!(matches!(tokenizer.encode_chat(&[], &broken), Err(ChatError::Syntax { .. })));
    }

    #[test]
    fn text_that_normalization_changes_is_located_too() {
        check_chat(&[ChatMessage::new("u", "e\u{301}l")], &["<s>", "u", ":", "é", "l"], "###..");
    }

    #[test]
    fn chat_without_a_template_is_refused() {
        let refused = tokenizer().encode_chat(&[], &ChatOptions::default());
        assert!(matches!(refused, Err(ChatError::NoTemplate)));
    }

    #[test]
    fn special_tokens_around_a_text_are_the_templates() {
        let prompt = tokenizer().encode("hello there", true).unwrap();
        assert_eq!((prompt.token_ids[0], prompt.template), (TokenId(262), vec![TokenRange::new(0, 1)]));
        assert!(prompt.token_ids.len() > 3, "the file's truncation is not applied");
    }

    #[test]
    fn the_name_of_a_special_token_can_be_plain_text() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.encode("<s>", false).unwrap().token_ids, [TokenId(262)]);
        let symbols = ["<", "s", ">"].map(|text| tokenizer.token_id(text).unwrap());
        assert_eq!(tokenizer.encode_as_text("<s>").unwrap(), symbols);
        let decomposed = tokenizer.encode_as_text("e\u{301}<s>").unwrap();
        assert_eq!(tokenizer.decode(&decomposed, true), "é<s>");
    }

    #[test]
    fn skipping_special_tokens_keeps_the_others() {
        let ids = [262, 263, 256].map(TokenId);
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.decode(&ids, true), "<t>he");
        assert_eq!(tokenizer.decode(&ids, false), "<s><t>he");
    }

    #[test]
    fn both_paths_give_the_same_tokens() {
        let tokenizer = tokenizer();
        let parts = ["he", "l", "l", " ", " ", "\n", "é", "e\u{301}", "<s>", "<t>", "<", "12", "語", "😀", "'s", "\u{338}"];
        let mut state = 5u64;
        for round in 0..2000 {
            let text: String = (0..round % 16)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    parts[(state >> 33) as usize % parts.len()]
                })
                .collect();
            let reference = tokenizer.hf.encode(text.as_str(), false).unwrap();
            let ids: Vec<u32> = tokenizer.encode(&text, false).unwrap().token_ids.iter().map(|id| id.0).collect();
            assert_eq!(ids, reference.get_ids(), "{text:?}");
            let spans = tokenizer.spans(&text, &[], usize::MAX).unwrap();
            assert_eq!(spans.iter().map(|span| span.id.0).collect::<Vec<_>>(), ids, "{text:?}");
            if tokenizer.quick_path(&text).is_some() {
                let covered: Vec<u8> = spans.iter().flat_map(|span| text.as_bytes()[span.bytes.clone()].to_vec()).collect();
                assert_eq!(covered, text.as_bytes());
            }
        }
    }

    #[test]
    fn a_text_that_cannot_fit_is_refused_and_one_that_fits_is_not() {
        let tokenizer = tokenizer();
        let parts = ["he", "l", "  ", "\n\n", "é", "e\u{301}", "<s>", "語", "😀", "x"];
        for (round, part) in (1..200).zip(parts.iter().cycle()) {
            let text = part.repeat(round * 7);
            let num_tokens = tokenizer.encode(&text, false).unwrap().token_ids.len();
            assert!(tokenizer.encode_within(&text, false, num_tokens).is_ok(), "{part} {num_tokens}");
            let refused = tokenizer.encode_within(&text, false, num_tokens - 1);
            assert!(matches!(refused, Err(TokenizerError::TooManyTokens { at_least }) if at_least == num_tokens), "{part}");
            assert!(tokenizer.check_length(&text, num_tokens).is_ok(), "the bound is too high for {part}");
        }
    }

    #[test]
    fn a_hopeless_text_is_refused_by_its_bytes_and_a_long_one_early() {
        let tokenizer = tokenizer();
        let hopeless = "😀".repeat(1 << 20);
        let refused = tokenizer.check_length(&hopeless, 10_000);
        assert!(matches!(refused, Err(TokenizerError::TooManyTokens { at_least }) if at_least > 100_000));
        let words = "hel ".repeat(5000);
        let limit = tokenizer.encode(&words, false).unwrap().token_ids.len() * 9 / 10;
        assert!(tokenizer.check_length(&words, limit).is_ok(), "its bytes alone do not tell");
        let refused = tokenizer.encode_within(&words, false, limit);
        assert!(
            matches!(refused, Err(TokenizerError::TooManyTokens { at_least }) if at_least < limit + 10),
            "stops at the first token too many"
        );
    }

    #[test]
    fn a_run_that_is_never_cut_is_refused() {
        let refused = tokenizer().encode(&"😀".repeat(1 << 20), false);
        assert!(matches!(refused, Err(TokenizerError::RunTooLong { num_bytes: 4_194_304, .. })));
    }

    #[test]
    fn an_id_that_no_vocabulary_has_is_refused_before_a_table_is_made_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "z": u32::MAX}, "merges": []}
        });
        std::fs::write(&path, json.to_string()).unwrap();
        let error = Tokenizer::from_file(&path).err().unwrap().to_string();
        assert!(error.contains("token \"z\" has id 4294967295"), "{error}");
    }
}
