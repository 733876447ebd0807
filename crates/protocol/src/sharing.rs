//! KV sharing options of a request.

use serde::{Deserialize, Serialize};
use tokens::SharingMode;

use crate::object::read_only_from;

/// Options of KV sharing for one request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, remote = "Self")]
pub struct KvSharingOptions {
    /// KV that may be reused; the server's default when absent.
    #[serde(with = "crate::sharing_mode::optional", skip_serializing_if = "Option::is_none")]
    pub mode: Option<SharingMode>,
    /// Policy that selects the reused span tokens to recompute: `name`, or `name@ratio` with a share of the prompt in `0..=1`, and further
    /// options (`+drift`, `+decode=tokens/every`). The server's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Deviation from full computation, as `usage` reports it, at or below which no more tokens are recomputed. The server's default when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_deviation: Option<DeviationBound>,
    /// True if later requests may reuse this one's KV; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<bool>,
    /// Starts of segments of the prompt that do not depend on preceding text. Detected in the text when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<SegmentMark>>,
    /// True if an answer with a `seed` must not depend on the cache: only exact sharing is used then. False when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// Handling of removed text in a rewritten history; `tidy` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditMode>,
    /// True to normalize insignificant whitespace before the prompt is tokenized. False when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    /// Name under which the KV that this request stores can be erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

impl From<SharingMode> for KvSharingOptions {
    /// Creates options that name nothing but a mode.
    fn from(mode: SharingMode) -> Self {
        Self { mode: Some(mode), ..Self::default() }
    }
}

/// Handling of removed text in a rewritten history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub enum EditMode {
    /// Text after a removed part may be reused as it was computed after that part.
    Tidy,
    /// Text after a change is recomputed, so that nothing of the removed text remains. Reuses as `prefix` does.
    Forget,
}

read_only_from!(deserialize_str, FromName, EditMode);
read_only_from!(deserialize_map, FromObject, KvSharingOptions);

/// Maximum deviation of an answer from full computation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number, or one of \"strict\", \"balanced\" and \"fast\"")]
pub enum DeviationBound {
    /// A bound of at least 0. 0 requires exact sharing.
    Number(f32),
    /// Name of a predefined bound.
    Preset(String),
}

/// Start of a segment of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "the index of a message, or a text that stands before a segment")]
pub enum SegmentMark {
    /// Start of the text of this message, counted from 0.
    Message(u32),
    /// End of each occurrence of this text.
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
        let options = KvSharingOptions::from(SharingMode::Off);
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
