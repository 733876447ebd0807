//! Validated KV sharing options of a request, completed by the server's defaults.

use engine::{Repair, RepairError};
use protocol::{DeviationBound, EditMode, KvSharingOptions, SegmentMark};
use tokenizer::SegmentRule;
use tokens::SharingMode;

use crate::config::SharingDefaults;
use crate::deviation::deviation_preset;
use crate::error::ApiError;

/// KV sharing of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidSharing {
    /// KV that may be reused, as far as the rest of the request allows.
    pub(crate) mode: SharingMode,
    /// Named policy.
    pub(crate) repair: Repair,
    /// Same as [`SharingDefaults::max_deviation`].
    pub(crate) max_deviation: Option<f32>,
    pub(crate) store: bool,
    pub(crate) segments: SegmentRule,
    pub(crate) normalize: bool,
    pub(crate) session: Option<String>,
}

impl ValidSharing {
    /// Returns the policy with the bound, which takes precedence over one in the policy's name.
    pub(crate) fn bounded_repair(&self) -> Repair {
        self.max_deviation.map_or(self.repair, |max_deviation| Repair { max_deviation, ..self.repair })
    }
}

/// Other properties of a request that restrict sharing.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharingContext {
    /// Number of messages; `None` for a completion.
    pub(super) num_messages: Option<usize>,
    pub(super) has_seed: bool,
    /// True if the whole prompt must be computed: it is scored, or the request asks for that.
    pub(super) computes_all: bool,
}

/// Maximum bytes of a separator, and of a session name. Chosen.
const MAX_TEXT_BYTES: usize = 64;
/// Maximum bytes of a policy, which errors repeat. Chosen: three times those of the longest rule with all its options.
const MAX_POLICY_BYTES: usize = 200;
/// Maximum separators of a request. The whole prompt is searched for each.
const MAX_SEPARATORS: usize = 8;

/// Validates `options` and `cache_segments`, the alias of the segments in them.
pub(super) fn valid_sharing(
    options: Option<KvSharingOptions>,
    cache_segments: Option<Vec<SegmentMark>>,
    context: SharingContext,
    defaults: &SharingDefaults,
) -> Result<ValidSharing, ApiError> {
    let options = options.unwrap_or_default();
    let segments = match (options.segments, cache_segments) {
        (Some(_), Some(_)) => return Err(ApiError::param("cache_segments", "`kv_sharing.segments` says the same already")),
        (Some(marks), None) => segment_rule("kv_sharing.segments", marks, context.num_messages)?,
        (None, Some(marks)) => segment_rule("cache_segments", marks, context.num_messages)?,
        (None, None) => SegmentRule::Text,
    };
    let repair = match options.policy {
        Some(text) if text.len() > MAX_POLICY_BYTES => {
            return Err(ApiError::param("kv_sharing.policy", format!("a policy has at most {MAX_POLICY_BYTES} bytes")));
        }
        Some(text) => text.parse().map_err(|error: RepairError| ApiError::param("kv_sharing.policy", error.to_string()))?,
        None => defaults.repair,
    };
    let max_deviation = match options.max_deviation {
        Some(bound) => Some(valid_bound(&bound)?),
        None => defaults.max_deviation,
    };
    let forgets = options.edit == Some(EditMode::Forget);
    let must_be_exact = forgets || max_deviation == Some(0.0) || (options.strict == Some(true) && context.has_seed);
    Ok(ValidSharing {
        mode: allowed_mode(options.mode.unwrap_or(defaults.mode), must_be_exact, context.computes_all),
        repair,
        max_deviation,
        store: options.store.unwrap_or(true),
        segments,
        normalize: options.normalize.unwrap_or(false),
        session: valid_session("kv_sharing.session", options.session)?,
    })
}

/// Restricts the requested mode to what may be reused.
fn allowed_mode(requested: SharingMode, must_be_exact: bool, computes_all: bool) -> SharingMode {
    match requested {
        _ if computes_all => SharingMode::Off,
        SharingMode::Span | SharingMode::Semantic | SharingMode::Auto if must_be_exact => SharingMode::Prefix,
        mode => mode,
    }
}

fn valid_bound(bound: &DeviationBound) -> Result<f32, ApiError> {
    let number = match bound {
        DeviationBound::Number(number) => Some(*number).filter(|number| *number >= 0.0 && number.is_finite()),
        DeviationBound::Preset(name) => deviation_preset(name),
    };
    let message = "must be a number of at least 0, or `strict`, `balanced` or `fast`";
    number.ok_or_else(|| ApiError::param("kv_sharing.max_deviation", message))
}

fn segment_rule(param: &str, marks: Vec<SegmentMark>, num_messages: Option<usize>) -> Result<SegmentRule, ApiError> {
    let (mut messages, mut separators) = (Vec::new(), Vec::new());
    for mark in marks {
        match (mark, num_messages) {
            (SegmentMark::Message(index), Some(num)) if (index as usize) < num => messages.push(index),
            (SegmentMark::Message(index), Some(num)) => {
                return Err(ApiError::param(param, format!("there is no message {index}: there are {num}, counted from 0")));
            }
            (SegmentMark::Message(_), None) => {
                return Err(ApiError::param(param, "a completion has no messages: name texts that stand before segments"));
            }
            (SegmentMark::Separator(text), _) if text.is_empty() || text.len() > MAX_TEXT_BYTES => {
                return Err(ApiError::param(param, format!("a text before a segment has between 1 and {MAX_TEXT_BYTES} bytes")));
            }
            (SegmentMark::Separator(text), _) => separators.push(text),
        }
    }
    if separators.len() > MAX_SEPARATORS {
        return Err(ApiError::param(param, format!("at most {MAX_SEPARATORS} texts")));
    }
    Ok(SegmentRule::Named { messages, separators })
}

/// Validates a session name, which came from the field `param`.
pub(crate) fn valid_session(param: &str, session: Option<String>) -> Result<Option<String>, ApiError> {
    match session {
        Some(name) if name.is_empty() || name.len() > MAX_TEXT_BYTES => {
            Err(ApiError::param(param, format!("the name of a session has between 1 and {MAX_TEXT_BYTES} bytes")))
        }
        session => Ok(session),
    }
}

#[cfg(test)]
mod tests {
    use engine::RepairPolicy;
    use serde_json::{Value, json};

    use super::*;

    const CHAT: SharingContext = SharingContext { num_messages: Some(2), has_seed: true, computes_all: false };

    fn parse(options: Value, context: SharingContext) -> Result<ValidSharing, ApiError> {
        let options: KvSharingOptions = serde_json::from_value(options).unwrap();
        valid_sharing(Some(options), None, context, &SharingDefaults::default())
    }

    #[track_caller]
    fn check(options: Value, context: SharingContext, expected: SharingMode) {
        assert_eq!(parse(options, context).unwrap().mode, expected);
    }

    #[track_caller]
    fn check_refused(options: Value, context: SharingContext, param: &str) {
        let error = parse(options, context).unwrap_err().body().error;
        assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
    }

    #[test]
    fn the_mode_is_what_was_asked_for() {
        check(json!({}), CHAT, SharingMode::Prefix);
        check(json!({"mode": "semantic"}), CHAT, SharingMode::Semantic);
        check(json!({"mode": "shadow", "max_deviation": "strict"}), CHAT, SharingMode::Shadow);
    }

    #[test]
    fn a_wish_for_exactness_goes_before_the_mode() {
        check(json!({"mode": "span", "max_deviation": 0}), CHAT, SharingMode::Prefix);
        check(json!({"mode": "span", "strict": true}), CHAT, SharingMode::Prefix);
        check(json!({"mode": "span", "strict": true}), SharingContext { has_seed: false, ..CHAT }, SharingMode::Span);
        check(json!({"mode": "span", "strict": false}), CHAT, SharingMode::Span);
        check(json!({"mode": "off", "strict": true}), CHAT, SharingMode::Off);
        check(json!({"mode": "span", "edit": "forget"}), CHAT, SharingMode::Prefix);
        check(json!({"mode": "auto", "edit": "forget"}), CHAT, SharingMode::Prefix);
        check(json!({"mode": "span", "edit": "tidy"}), CHAT, SharingMode::Span);
    }

    #[test]
    fn a_prompt_that_is_scored_shares_nothing() {
        check(json!({"mode": "semantic"}), SharingContext { computes_all: true, ..CHAT }, SharingMode::Off);
    }

    #[test]
    fn what_is_asked_for_arrives() {
        let sharing = parse(
            json!({"policy": "dhd@0.5", "max_deviation": 0.25, "store": false, "session": "s", "segments": [1, "--"], "normalize": true}),
            CHAT,
        );
        let expected = ValidSharing {
            mode: SharingMode::Prefix,
            repair: Repair { policy: RepairPolicy::Dhd, ratio: 0.5, ..Repair::structural() },
            max_deviation: Some(0.25),
            store: false,
            segments: SegmentRule::Named { messages: vec![1], separators: vec!["--".to_owned()] },
            normalize: true,
            session: Some("s".to_owned()),
        };
        assert_eq!(sharing, Ok(expected));
    }

    #[test]
    fn a_bound_goes_before_that_of_the_policy() {
        let bounded = |options| parse(options, CHAT).unwrap().bounded_repair().max_deviation;
        assert_eq!(bounded(json!({"policy": "dhd@0.5+deviation=0.5"})), 0.5);
        assert_eq!(bounded(json!({"policy": "dhd@0.5+deviation=0.5", "max_deviation": 0.25})), 0.25);
        assert_eq!(bounded(json!({"policy": "dhd@0.5"})), 0.0);
    }

    #[test]
    fn wishes_that_make_no_sense_are_refused_by_name() {
        check_refused(json!({"policy": "best"}), CHAT, "kv_sharing.policy");
        check_refused(json!({"policy": "dhd@2"}), CHAT, "kv_sharing.policy");
        check_refused(json!({"policy": "x".repeat(100_000)}), CHAT, "kv_sharing.policy");
        let options = serde_json::from_value(json!({"policy": "x".repeat(100_000)})).unwrap();
        let error = valid_sharing(Some(options), None, CHAT, &SharingDefaults::default()).unwrap_err();
        assert!(format!("{error:?}").len() < 300);
        check_refused(json!({"max_deviation": -0.1}), CHAT, "kv_sharing.max_deviation");
        check_refused(json!({"max_deviation": "loose"}), CHAT, "kv_sharing.max_deviation");
        check_refused(json!({"session": ""}), CHAT, "kv_sharing.session");
        check_refused(json!({"segments": [2]}), CHAT, "kv_sharing.segments");
        check_refused(json!({"segments": [""]}), CHAT, "kv_sharing.segments");
        check_refused(json!({"segments": vec!["x"; MAX_SEPARATORS + 1]}), CHAT, "kv_sharing.segments");
        check_refused(json!({"segments": [0]}), SharingContext { num_messages: None, ..CHAT }, "kv_sharing.segments");
    }

    #[test]
    fn segments_have_two_names_but_one_meaning() {
        let marks = || Some(vec![SegmentMark::Message(0)]);
        let valid = |options, marks| valid_sharing(options, marks, CHAT, &SharingDefaults::default());
        let named = SegmentRule::Named { messages: vec![0], separators: vec![] };
        assert_eq!(valid(None, marks()).unwrap().segments, named);
        let both = KvSharingOptions { segments: marks(), ..KvSharingOptions::default() };
        let error = valid(Some(both), marks()).unwrap_err();
        assert_eq!(error.body().error.param.as_deref(), Some("cache_segments"));
    }
}
