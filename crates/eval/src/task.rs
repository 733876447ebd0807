//! Task scores of answers, by the metric the workload names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::format::Format;
use super::rouge::{rouge_l, words};

/// Metrics of workloads, by their names there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// 1 if the text contains a right answer, else the best F1 over words (SQuAD; Rajpurkar et al. 2016).
    ShortAnswer,
    /// 1 if the text contains a right answer.
    Contains,
    /// Best ROUGE-L over right answers.
    RougeL,
    /// Share of an object's fields that the first JSON object in the text has with equal values.
    JsonFields,
    /// 1 if the last number in the text is the right one.
    FinalNumber,
    /// 1 if the text has the requested format.
    Format,
    /// Only agreement with full computation.
    VsFull,
}

/// Score of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    /// Value from 0 to 1.
    pub(crate) value: f64,
    /// True if it counts as right; `None` where that is a matter of degree.
    pub(crate) is_right: Option<bool>,
}

impl Metric {
    /// Names, for messages.
    pub(crate) const NAMES: &'static str = "short_answer, contains, rougeL, json_fields, final_number, format and vs_full";

    /// Returns the metric of this name; `None` if there is none.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "short_answer" => Self::ShortAnswer,
            "contains" => Self::Contains,
            "rougeL" => Self::RougeL,
            "json_fields" => Self::JsonFields,
            "final_number" => Self::FinalNumber,
            "format" => Self::Format,
            // Default of a record that names none.
            "vs_full" | "" => Self::VsFull,
            _ => return None,
        })
    }

    /// Scores `text` against right answers; `None` if the metric needs some and there are none.
    pub(crate) fn score(self, text: &str, reference: &[Value]) -> Option<Score> {
        let texts = || reference.iter().filter_map(Value::as_str);
        let best = |value: fn(&str, &str) -> f64| texts().map(|right| value(text, right)).max_by(f64::total_cmp);
        let graded = |value| Score { value, is_right: None };
        let decided = |is_right| Score { value: f64::from(u8::from(is_right)), is_right: Some(is_right) };
        let is_contained = texts().any(|right| contains(text, right));
        match self {
            Self::ShortAnswer if is_contained => Some(decided(true)),
            Self::ShortAnswer => best(word_f1).map(|value| Score { value, is_right: Some(false) }),
            Self::Contains => texts().next().map(|_| decided(is_contained)),
            Self::RougeL => best(rouge_l).map(graded),
            Self::JsonFields => {
                let value = equal_fields(text, reference.first()?.as_object()?);
                Some(Score { value, is_right: Some(value == 1.0) })
            }
            Self::FinalNumber => {
                let right = number(&reference.first()?.to_string())?;
                Some(decided(last_number(text) == Some(right)))
            }
            Self::Format => texts().next().and_then(Format::by_name).map(|format| decided(format.is_kept_by(text))),
            Self::VsFull => None,
        }
    }
}

/// True if `text` contains the words of `part` in a row. Every text lacks a part without words.
pub(crate) fn contains(text: &str, part: &str) -> bool {
    let (text, part) = (words(text), words(part));
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

/// Computes F1 of the words of two texts as multisets, without articles.
fn word_f1(text: &str, right: &str) -> f64 {
    let counts = |text: &str| {
        let mut counts = BTreeMap::new();
        for word in words(text).into_iter().filter(|word| !["a", "an", "the"].contains(&word.as_str())) {
            *counts.entry(word).or_insert(0_usize) += 1;
        }
        counts
    };
    let (text, right) = (counts(text), counts(right));
    let common: usize = text.iter().map(|(word, &n)| n.min(right.get(word).copied().unwrap_or(0))).sum();
    let all = text.values().sum::<usize>() + right.values().sum::<usize>();
    if all == 0 { 1.0 } else { 2.0 * common as f64 / all as f64 }
}

/// Returns the share of `right`'s fields that the first JSON object of `text` has. Compares lists as sets, texts by their words.
fn equal_fields(text: &str, right: &serde_json::Map<String, Value>) -> f64 {
    let Some(found) = first_object(text) else { return 0.0 };
    let is_equal = |(name, value): (&String, &Value)| found.get(name).is_some_and(|found| plain(found) == plain(value));
    right.iter().filter(|field| is_equal(*field)).count() as f64 / right.len().max(1) as f64
}

fn first_object(text: &str) -> Option<serde_json::Map<String, Value>> {
    let object = &text[text.find('{')?..];
    serde_json::Deserializer::from_str(object).into_iter().next()?.ok()
}

/// Splits a value into the words of its parts.
fn plain(value: &Value) -> BTreeSet<Vec<String>> {
    match value {
        Value::Array(parts) => parts.iter().flat_map(plain).collect(),
        Value::String(text) => BTreeSet::from([words(text)]),
        other => BTreeSet::from([words(&other.to_string())]),
    }
}

fn last_number(text: &str) -> Option<f64> {
    let is_part = |c: char| c.is_ascii_digit() || matches!(c, '.' | ',' | '-');
    text.split(|c| !is_part(c)).filter_map(number).next_back()
}

/// Parses `1,234.50`, also followed by a full stop or in quotes.
fn number(text: &str) -> Option<f64> {
    let text: String = text.chars().filter(|c| !matches!(c, ',' | '"' | '$')).collect();
    // In `5-3` a minus is no sign.
    let digits = text.rsplit_once('-').map_or(&*text, |(left, right)| if left.is_empty() { &*text } else { right });
    digits.trim().trim_end_matches('.').parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `expected`: the value, and true if it is right.
    #[track_caller]
    fn check(metric: &str, text: &str, reference: &Value, expected: Option<(f64, Option<bool>)>) {
        let reference = reference.as_array().unwrap();
        let score = Metric::by_name(metric).unwrap().score(text, reference);
        assert_eq!(score.map(|score| (score.value, score.is_right)), expected, "{text}");
    }

    #[test]
    fn a_short_answer_is_right_if_it_stands_there_as_words() {
        check("short_answer", "It was the Season Five, I think.", &json!(["season five", "5"]), Some((1.0, Some(true))));
        check("short_answer", "season", &json!(["Season Five"]), Some((2.0 / 3.0, Some(false))));
        check("short_answer", "fiveteen", &json!(["five"]), Some((0.0, Some(false))));
        check("short_answer", "anything", &json!([]), None);
    }

    #[test]
    fn an_identifier_is_contained_as_a_whole() {
        check("contains", "the value is AB12-cd.", &json!(["ab12-cd"]), Some((1.0, Some(true))));
        check("contains", "the value is ab12-cd5.", &json!(["ab12-cd"]), Some((0.0, Some(false))));
    }

    #[test]
    fn rouge_has_no_right_and_wrong() {
        check("rougeL", "police kill the gunman", &json!(["police killed the gunman", "x"]), Some((0.75, None)));
    }

    #[test]
    fn fields_are_counted_one_by_one() {
        let right = json!([{"ticket": "T-1", "amount": "$20.50", "ids": ["A1", "B2"], "n": 3}]);
        check(
            "json_fields",
            r#"Sure: {"ticket":"t-1","amount":"$20.50","ids":["B2","A1"],"n":3,"more":{}} Bye."#,
            &right,
            Some((1.0, Some(true))),
        );
        check("json_fields", r#"{"ticket":"T-1","amount":"20","ids":["A1"]}"#, &right, Some((0.25, Some(false))));
        check("json_fields", r#"{"ticket":"T-1""#, &right, Some((0.0, Some(false))));
        check("json_fields", "none", &right, Some((0.0, Some(false))));
    }

    #[test]
    fn the_last_number_counts() {
        check("final_number", "5 apples and 1,234. Answer: $1,234.00.", &json!(["1234"]), Some((1.0, Some(true))));
        check("final_number", "10 - 4 = 6", &json!([6]), Some((1.0, Some(true))));
        check("final_number", "it is -3", &json!(["-3"]), Some((1.0, Some(true))));
        check("final_number", "from 5-3", &json!(["3"]), Some((1.0, Some(true))));
        check("final_number", "no number", &json!(["3"]), Some((0.0, Some(false))));
    }

    #[test]
    fn a_form_is_kept_or_not() {
        check("format", r#"{"a": 1}"#, &json!(["json"]), Some((1.0, Some(true))));
        check("format", "A sentence.", &json!(["json"]), Some((0.0, Some(false))));
    }

    #[test]
    fn agreement_alone_has_no_score() {
        check("vs_full", "x", &json!(["x"]), None);
        assert_eq!(Metric::by_name("best"), None);
    }
}
