//! One answer: converts engine tokens into text that may be released.
//!
//! Text is held back while it may be part of a character or of a stop string, and a token's score waits for its text.

use std::collections::VecDeque;
use std::sync::Arc;

use engine::{EngineEvent, FinishReason, TokenLogProbs};
use tokenizer::{DetokenizeStream, StopMatcher, StopOutput, Tokenizer};
use tokens::TokenId;

use super::delta::ChoiceDelta;
use super::parse::{AnswerParser, AnswerParserOptions};
use super::scores::ScoredToken;
use super::usage::ChoiceUsage;
use crate::echo::{EchoedPrompt, num_chars};
use crate::engine_thread::{StreamError, TokenStream};
use crate::error::ApiError;
use crate::valid::TextOptions;

/// An answer in progress.
pub(crate) struct Choice {
    index: u32,
    /// Engine events; `None` after the last one.
    events: Option<TokenStream>,
    text: TextStream,
    /// Parser of the text; `None` if all of it is text.
    parser: Option<AnswerParser>,
    stop_token_ids: Arc<[TokenId]>,
    /// The prompt, until it has been sent.
    echo: Option<Echo>,
    wants_logprobs: bool,
    is_constrained: bool,
    usage: ChoiceUsage,
    ready: VecDeque<ChoiceDelta>,
}

/// Start of an answer that includes its prompt.
pub(super) struct Echo {
    pub(super) prompt: EchoedPrompt,
    pub(super) token_ids: Arc<[TokenId]>,
}

/// Options that all answers of a request share.
#[derive(Clone)]
pub(super) struct ChoiceOptions {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) text: TextOptions,
    pub(super) stop_token_ids: Arc<[TokenId]>,
    pub(super) wants_logprobs: bool,
    pub(super) is_constrained: bool,
    pub(super) parser: Option<AnswerParserOptions>,
}

impl Choice {
    pub(super) fn new(index: u32, events: TokenStream, echo: Option<Echo>, options: &ChoiceOptions) -> Self {
        let mut choice = Self {
            index,
            events: Some(events),
            text: TextStream::new(options, echo.as_ref()),
            parser: options.parser.as_ref().and_then(AnswerParserOptions::parser),
            stop_token_ids: Arc::clone(&options.stop_token_ids),
            echo,
            wants_logprobs: options.wants_logprobs,
            is_constrained: options.is_constrained,
            usage: ChoiceUsage::default(),
            ready: VecDeque::new(),
        };
        if !choice.wants_logprobs {
            choice.send_echo(vec![]);
        }
        choice
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Returns the usage so far; it is complete after the last delta.
    pub(super) fn usage(&self) -> ChoiceUsage {
        self.usage
    }

    /// Waits for the next delta. Must not be called after a delta with a finish reason.
    pub(super) async fn next(&mut self) -> Result<ChoiceDelta, ApiError> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                return Ok(delta);
            }
            self.receive().await?;
        }
    }

    /// Waits for the engine's first event, which reports the admission. To be called before [`Self::next`], at most once.
    pub(super) async fn admitted(&mut self) -> Result<(), ApiError> {
        self.receive().await
    }

    /// Processes one event. No event is lost when the future is dropped.
    async fn receive(&mut self) -> Result<(), ApiError> {
        let events = self.events.as_mut().expect("an answer without events has its last delta ready");
        match events.next().await.map_err(stream_error)? {
            EngineEvent::Admitted { usage, .. } => self.usage.kv = usage,
            EngineEvent::PromptLogProbs { logprobs, .. } => self.send_echo(logprobs),
            EngineEvent::Token { token, logprobs, .. } => self.accept(token, logprobs),
            EngineEvent::Finished { reason, usage, .. } => {
                self.usage.kv = usage;
                self.finish(reason)?;
            }
        }
        Ok(())
    }

    /// Sends the prompt if it has not been sent. `logprobs` cover its tokens except the first.
    fn send_echo(&mut self, logprobs: Vec<TokenLogProbs>) {
        let Some(Echo { prompt, token_ids }) = self.echo.take() else { return };
        let scores = if self.wants_logprobs { score_prompt(&prompt, &token_ids, logprobs) } else { vec![] };
        self.text.skip(&prompt.text);
        self.ready.push_back(ChoiceDelta { text: prompt.text, scores, ..ChoiceDelta::default() });
    }

    fn accept(&mut self, token: TokenId, logprobs: Option<TokenLogProbs>) {
        // A prompt of one token has no scores to wait for.
        self.send_echo(vec![]);
        self.usage.num_generated += 1;
        self.usage.num_reasoning += u32::from(self.parser.as_ref().is_some_and(AnswerParser::is_reasoning));
        if self.stop_token_ids.contains(&token) && !self.text.includes_stop {
            // The stop token is not part of the answer; `Finished` follows.
            return;
        }
        let piece = self.text.push(token, logprobs.filter(|_| self.wants_logprobs));
        self.send(piece.text, piece.scores);
        if piece.stop.is_some() {
            if let Some(events) = self.events.take() {
                events.complete();
            }
            self.send_finish(protocol::FinishReason::Stop, piece.stop);
        }
    }

    fn finish(&mut self, reason: FinishReason) -> Result<(), ApiError> {
        self.send_echo(vec![]);
        self.events = None;
        let reason = match reason {
            FinishReason::Stop(_) | FinishReason::Complete => protocol::FinishReason::Stop,
            FinishReason::Length => protocol::FinishReason::Length,
            // Only the reader aborts requests, and a reader that did reads no more.
            FinishReason::Aborted => return Err(ApiError::Internal),
            // Without a mask nothing may follow, which leaves no finite logits either.
            FinishReason::Faulty if self.is_constrained => return Err(ApiError::CostlyGrammar),
            FinishReason::Faulty => return Err(ApiError::FaultyLogits),
        };
        let piece = self.text.finish();
        self.send(piece.text, piece.scores);
        let reason = if piece.stop.is_some() { protocol::FinishReason::Stop } else { reason };
        self.send_finish(reason, piece.stop);
        Ok(())
    }

    fn send(&mut self, text: String, scores: Vec<ScoredToken>) {
        let delta = match &mut self.parser {
            Some(parser) => ChoiceDelta { scores, ..parser.push(&text) },
            None => ChoiceDelta { text, scores, ..ChoiceDelta::default() },
        };
        self.send_delta(delta);
    }

    fn send_delta(&mut self, delta: ChoiceDelta) {
        if delta != ChoiceDelta::default() {
            self.ready.push_back(delta);
        }
    }

    fn send_finish(&mut self, mut reason: protocol::FinishReason, stop: Option<String>) {
        if let Some(parser) = &mut self.parser {
            let rest = parser.finish();
            if parser.has_complete_calls() && reason == protocol::FinishReason::Stop {
                reason = protocol::FinishReason::ToolCalls;
            }
            self.send_delta(rest);
        }
        self.ready.push_back(ChoiceDelta { finish_reason: Some(reason), stop, ..ChoiceDelta::default() });
    }
}

pub(super) fn stream_error(error: StreamError) -> ApiError {
    match error {
        StreamError::TooSlow => ApiError::SlowReader,
        StreamError::QueueTimeout => ApiError::QueueTimeout,
        StreamError::Stopped => ApiError::CutByShutdown,
        StreamError::Failed => ApiError::EngineFailed,
    }
}

/// Converter of tokens into text that may be released, with the scores of its tokens.
struct TextStream {
    tokenizer: Arc<Tokenizer>,
    detokenizer: DetokenizeStream,
    stops: StopMatcher,
    skips_special: bool,
    /// Special tokens that are never omitted.
    markers: Arc<[TokenId]>,
    /// True if the text includes the stop string or token that ends it.
    includes_stop: bool,
    /// Number of next tokens in which no stop string is searched for.
    num_unsearched: u32,
    /// Scores of tokens whose text is held back.
    held_back: VecDeque<ScoredToken>,
    /// Characters that entered the stop matcher, and those that left it.
    num_chars_in: u32,
    num_chars_out: u32,
}

/// Text and scores released by one more token.
#[derive(Default)]
struct Piece {
    text: String,
    scores: Vec<ScoredToken>,
    /// Stop string that matched: nothing follows.
    stop: Option<String>,
}

impl TextStream {
    /// Creates the stream; it continues after `echo` if the prompt is shown.
    fn new(options: &ChoiceOptions, echo: Option<&Echo>) -> Self {
        let tokenizer = Arc::clone(&options.tokenizer);
        let TextOptions { stop, skips_special, includes_stop, min_tokens } = options.text.clone();
        let detokenizer = match echo {
            Some(echo) => echo.prompt.following.clone().skipping_special(skips_special),
            None => DetokenizeStream::after_prompt(Arc::clone(&tokenizer), skips_special),
        };
        Self {
            tokenizer,
            detokenizer,
            stops: StopMatcher::new(stop, includes_stop),
            skips_special,
            markers: options.parser.as_ref().map(|parser| Arc::clone(&parser.markers)).unwrap_or_default(),
            includes_stop,
            num_unsearched: min_tokens,
            held_back: VecDeque::new(),
            num_chars_in: 0,
            num_chars_out: 0,
        }
    }

    fn push(&mut self, token: TokenId, logprobs: Option<TokenLogProbs>) -> Piece {
        if let Some(logprobs) = logprobs {
            let text_offset = self.num_chars_in + self.detokenizer.chars_broken_by(token);
            self.held_back.push_back(ScoredToken::new(token, Some(logprobs), text_offset));
        }
        let is_hidden = self.skips_special && self.tokenizer.is_special(token) && !self.markers.contains(&token);
        let text = match self.markers.contains(&token) {
            true => self.detokenizer.finish() + &self.tokenizer.token_str(token),
            false => self.detokenizer.push(token),
        };
        if self.num_unsearched > 0 {
            self.num_unsearched -= 1;
            return self.pass(&text);
        }
        if is_hidden {
            let output = self.stops.push_hidden(&self.tokenizer.token_str(token));
            return self.hand_out(output);
        }
        if text.is_empty() { Piece::default() } else { self.release(&text) }
    }

    /// Releases `text` without searching for stop strings.
    fn pass(&mut self, text: &str) -> Piece {
        self.num_chars_in += num_chars(text);
        let output = StopOutput { text: self.stops.pass(text), stop: None };
        self.hand_out(output)
    }

    /// Releases the text held back only because more might have followed.
    fn finish(&mut self) -> Piece {
        let rest = self.detokenizer.finish();
        let mut piece = self.release(&rest);
        if piece.stop.is_none() {
            piece.text.push_str(&self.stops.finish());
            piece.scores.extend(self.held_back.drain(..));
        }
        piece
    }

    fn release(&mut self, text: &str) -> Piece {
        self.num_chars_in += num_chars(text);
        let output = self.stops.push(text);
        self.hand_out(output)
    }

    fn hand_out(&mut self, output: StopOutput) -> Piece {
        self.num_chars_out += num_chars(&output.text);
        // A token belongs to the text that contains its first character.
        let num_released = self.held_back.partition_point(|score| score.text_offset < self.num_chars_out);
        let scores = self.held_back.drain(..num_released).collect();
        let stop = output.stop.map(|index| self.stops.stop(index).to_owned());
        Piece { text: output.text, scores, stop }
    }

    /// Counts text that precedes everything that will be pushed.
    fn skip(&mut self, text: &str) {
        self.num_chars_in += num_chars(text);
        self.num_chars_out += num_chars(text);
    }
}

/// Returns the scores of the tokens of an echoed prompt. `logprobs` cover all but the first, or none.
fn score_prompt(prompt: &EchoedPrompt, token_ids: &[TokenId], logprobs: Vec<TokenLogProbs>) -> Vec<ScoredToken> {
    let logprobs = std::iter::once(None).chain(logprobs.into_iter().map(Some));
    let tokens = token_ids.iter().zip(&prompt.offsets[..]).zip(logprobs).enumerate();
    tokens
        .map(|(idx, ((&token, &text_offset), logprobs))| ScoredToken {
            drops_space: prompt.drops_space == Some(idx),
            ..ScoredToken::new(token, logprobs, text_offset)
        })
        .collect()
}
