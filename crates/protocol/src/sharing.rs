//! What a request says about sharing KV.

use serde::{Deserialize, Serialize};

use crate::object::read_only_from;

/// A request's wishes about sharing KV.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, remote = "Self")]
pub struct KvSharingOptions {
    /// What may be reused; the server's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<SharingMode>,
    /// Which tokens of reused spans are computed all the same: `name`, or `name@ratio` with a share of the prompt in `0..=1`, and what
    /// the policy has further (`+drift`, `+decode=tokens/every`). The
    /// server's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// No more tokens are recomputed once what is left deviates from full computation by at most this, as `usage` reports it. The
    /// server's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_deviation: Option<DeviationBound>,
    /// Whether later requests may reuse this one's KV; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<bool>,
    /// Where pieces of the prompt begin that do not depend on what stands before them. Found in the text when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<SegmentMark>>,
    /// Whether an answer with a `seed` must be the same whatever the cache holds: then only exact sharing is used. False when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// Influence of removed text on a rewritten history; `tidy` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditMode>,
    /// True to write blanks that mean nothing one way before the prompt is tokenized. False when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    /// A name under which what this request leaves behind can be erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Which KV of earlier requests may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub enum SharingMode {
    /// None. Exact.
    Off,
    /// Equal prefixes. Exact.
    Prefix,
    /// Also equal spans at other positions. Approximate.
    Span,
    /// As `Span`, and of donors of the same text the one behind the most similar text. Approximate.
    Semantic,
    /// As `Span` for requests like those where that has proven to change nothing that matters, and as `Prefix` for all others.
    Auto,
    /// Finds what `Semantic` would reuse and records it, but reuses as `Prefix` does. Exact.
    Shadow,
}

/// Influence of removed text on a rewritten history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub enum EditMode {
    /// Text after a removed part may be reused as it was computed after that part.
    Tidy,
    /// Text after a change is computed exactly: nothing of what was removed is left. Reuses as `prefix` does.
    Forget,
}

read_only_from!(deserialize_str, FromName, EditMode);
read_only_from!(deserialize_map, FromObject, KvSharingOptions);
read_only_from!(deserialize_str, FromName, SharingMode);

/// How far an answer may be from the one of full computation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number, or one of \"strict\", \"balanced\" and \"fast\"")]
pub enum DeviationBound {
    /// At least 0. 0 asks for exact sharing.
    Number(f32),
    /// The name of a number.
    Preset(String),
}

/// Where segments of a prompt begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "the index of a message, or a text that stands before a segment")]
pub enum SegmentMark {
    /// At the text of this message, counted from 0.
    Message(u32),
    /// Behind each occurrence of this text.
    Separator(String),
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bound_is_a_number_or_a_name() {
        let parse = |value| serde_json::from_value::<DeviationBound>(value);
        assert_eq!(parse(json!(0)).unwrap(), DeviationBound::Number(0.0));
        assert_eq!(parse(json!("fast")).unwrap(), DeviationBound::Preset("fast".into()));
        assert!(parse(json!([])).unwrap_err().to_string().contains("balanced"));
    }

    #[test]
    fn options_are_an_object_and_a_mode_is_a_string() {
        for options in [json!([]), json!(["off"]), json!("off"), json!(1)] {
            assert!(serde_json::from_value::<KvSharingOptions>(options.clone()).is_err(), "{options}");
        }
        for mode in [json!({"off": null}), json!(["off"]), json!(0)] {
            assert!(serde_json::from_value::<KvSharingOptions>(json!({"mode": mode})).is_err(), "{mode}");
        }
        let options = KvSharingOptions { mode: Some(SharingMode::Off), ..KvSharingOptions::default() };
        assert_eq!(serde_json::to_value(&options).unwrap(), json!({"mode": "off"}));
        assert_eq!(serde_json::from_value::<KvSharingOptions>(json!({"mode": "off"})).unwrap(), options);
    }

    #[test]
    fn a_misspelt_wish_is_refused() {
        let refused = serde_json::from_value::<KvSharingOptions>(json!({"stroe": false})).unwrap_err();
        assert!(refused.to_string().contains("stroe"), "{refused}");
    }

    #[test]
    fn marks_may_be_mixed() {
        let marks: Vec<SegmentMark> = serde_json::from_value(json!([1, "---"])).unwrap();
        assert_eq!(marks, [SegmentMark::Message(1), SegmentMark::Separator("---".into())]);
    }
}
