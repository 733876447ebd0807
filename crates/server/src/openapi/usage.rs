//! Schemas of the reported KV reuse.

use protocol::ReuseReason;
use serde_json::{Value, json};
use tokens::SharingMode;

/// Returns the schema of `usage.kv_sharing`.
pub(super) fn kv_sharing_usage() -> Value {
    let count = |description: &str| json!({"type": "integer", "minimum": 0, "description": description});
    let mode = json!({
        "enum": SharingMode::NAMES,
        "description": "What was allowed: the server's default when the request named none.",
    });
    let deviation = json!({
        "type": ["number", "null"], "minimum": 0,
        "description": "How much of what was reused is left as it was, after repair; null when no span was reused.",
    });
    json!({
        "type": "object",
        "required": ["mode", "prefix_tokens", "continued_tokens", "span_tokens", "recomputed_tokens", "donors", "class", "deviation", "normalized", "reason"],
        "properties": {
            "mode": mode,
            "prefix_tokens": count("Tokens reused as a prefix. Exact."),
            "continued_tokens": count("Tokens after them whose KV an earlier turn of the conversation computed over spans. Approximate."),
            "span_tokens": count("Tokens reused as spans of other prompts. Approximate."),
            "recomputed_tokens": count("Tokens that a donor had and that were computed all the same."),
            "donors": count("Donors that gave spans."),
            "class": class(),
            "deviation": deviation,
            "normalized": {"type": "boolean", "description": "Whether a prompt had blanks that were written another way before it was tokenized."},
            "reason": reason(),
        },
    })
}

/// Returns the schema of `/v1/kv/explain`.
pub(super) fn explanation() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    json!({
        "type": "object",
        "description": "What usage.kv_sharing of the request would say if it ran now, and why. A run may compute up to policy_tokens of \
            span_tokens too, once they are measured.",
        "properties": {
            "prompt_tokens": count, "prefix_tokens": count, "continued_tokens": count, "span_tokens": count, "recomputed_tokens": count,
            "computed_tokens": count, "policy_tokens": count, "donors": count, "class": class(), "reason": reason(),
        },
        "additionalProperties": true,
    })
}

fn class() -> Value {
    json!({
        "enum": ["same_past", "same_left_context", "composition", "downstream_of_edit", null],
        "description": "How far the worst span agrees with its donor on what stands left of it; null when no span was reused.",
    })
}

fn reason() -> Value {
    let reasons = ReuseReason::ALL.iter().map(|reason| json!(reason)).chain([Value::Null]);
    json!({
        "enum": reasons.collect::<Vec<_>>(),
        "description": "Why no span was reused; null when one was. mode: only prefixes, or nothing, may be reused. prompt_too_short, \
            prefix_covers, too_short: there is too little to reuse. no_donor: no earlier prompt has text in common. edited: all of that \
            stands after a change in its own segment. not_worth_it: it saves too little time. not_resident: its KV was evicted. no_room: \
            the pool or the quota is full. switched_off: verified answers of the tenant were too far off. unproven: in mode auto, \
            such requests have not proven yet that reuse is good for them. shadowed: it was only counted. bailed_out, recomputed, failed_check: what was measured in the run had all of it computed.",
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use protocol::{KvSharingUsage, MatchClass};

    use super::*;

    #[test]
    fn the_document_has_the_fields_and_words_of_the_usage() {
        let usage = KvSharingUsage {
            mode: SharingMode::Span,
            prefix_tokens: 1,
            continued_tokens: 0,
            span_tokens: 1,
            recomputed_tokens: 1,
            donors: 1,
            class: Some(MatchClass::Composition),
            deviation: Some(0.5),
            normalized: false,
            reason: None,
        };
        let written = serde_json::to_value(usage).unwrap();
        let typed: BTreeSet<_> = written.as_object().unwrap().keys().cloned().collect();
        let documented = kv_sharing_usage();
        assert_eq!(documented["properties"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>(), typed);
        assert_eq!(documented["required"].as_array().unwrap().len(), typed.len());
        let reasons = documented["properties"]["reason"]["enum"].as_array().unwrap();
        let words: BTreeSet<_> = reasons.iter().map(Value::to_string).collect();
        assert_eq!((reasons.len(), words.len()), (16, 16));
        let text = documented["properties"]["reason"]["description"].as_str().unwrap();
        assert!(reasons.iter().filter_map(Value::as_str).all(|reason| text.contains(reason)), "each word is explained");
    }
}
