//! Default sampling parameters.

use std::fmt;
use std::ops::RangeInclusive;

use engine::SamplingParams;
use protocol::SamplingFields;

/// Sampling parameters of requests that specify none, as recommended by the model's author. `None` is the API's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Temperature in `0..=2`; 0 is greedy.
    pub temperature: Option<f32>,
    /// Nucleus sampling mass in `0 < p <= 1`.
    pub top_p: Option<f32>,
    /// Number of likeliest tokens to keep; 0 keeps all.
    pub top_k: Option<u32>,
    /// Minimum relative probability in `0..=1`.
    pub min_p: Option<f32>,
    /// Penalty in `0.01..=100`; 1 has no effect.
    pub repetition_penalty: Option<f32>,
    /// Maximum tokens of a chat answer.
    pub max_tokens: Option<u32>,
}

impl SamplingDefaults {
    /// Checks all ranges, which equal those of requests.
    ///
    /// # Errors
    /// Names the first value that would be invalid in a request.
    pub fn validate(&self) -> Result<(), String> {
        let smallest = f32::MIN_POSITIVE;
        let numbers: [(&str, Option<f32>, RangeInclusive<f32>); 4] = [
            ("temperature", self.temperature, SamplingParams::TEMPERATURE),
            ("top_p", self.top_p, smallest..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("repetition_penalty", self.repetition_penalty, SamplingParams::REPETITION_PENALTY),
        ];
        for (name, value, range) in numbers {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                return Err(format!("{name} is {value}, which no request may ask for"));
            }
        }
        if self.max_tokens == Some(0) { Err("max_new_tokens is 0".to_owned()) } else { Ok(()) }
    }

    /// Fills the absent values of `fields` with these.
    pub(crate) fn fill(&self, fields: SamplingFields) -> SamplingFields {
        SamplingFields {
            temperature: fields.temperature.or(self.temperature.map(f64::from)),
            top_p: fields.top_p.or(self.top_p.map(f64::from)),
            top_k: fields.top_k.or(self.top_k.map(i64::from)),
            min_p: fields.min_p.or(self.min_p.map(f64::from)),
            repetition_penalty: fields.repetition_penalty.or(self.repetition_penalty.map(f64::from)),
            ..fields
        }
    }
}

impl fmt::Display for SamplingDefaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |name: &str, value: Option<f32>| value.map(|value| format!("{name} {value}"));
        let count = |name: &str, value: Option<u32>| value.map(|value| format!("{name} {value}"));
        let shown = [
            number("temperature", self.temperature),
            number("top_p", self.top_p),
            count("top_k", self.top_k),
            number("min_p", self.min_p),
            number("repetition_penalty", self.repetition_penalty),
            count("max_tokens", self.max_tokens),
        ];
        let shown: Vec<String> = shown.into_iter().flatten().collect();
        f.write_str(&if shown.is_empty() { "those of the API".to_owned() } else { shown.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_says_wins() {
        let defaults = SamplingDefaults { temperature: Some(0.7), top_k: Some(20), ..SamplingDefaults::default() };
        let sent = SamplingFields { temperature: Some(0.0), ..SamplingFields::default() };
        let filled = defaults.fill(sent);
        assert_eq!((filled.temperature, filled.top_k, filled.top_p), (Some(0.0), Some(20), None));
        assert_eq!(defaults.to_string(), "temperature 0.7, top_k 20");
    }

    #[test]
    fn what_no_request_may_ask_for_is_no_default() {
        let with = |temperature| SamplingDefaults { temperature: Some(temperature), ..SamplingDefaults::default() };
        assert!(with(2.0).validate().is_ok());
        for temperature in [2.5, -1.0, f32::NAN] {
            assert!(with(temperature).validate().unwrap_err().contains("temperature"));
        }
        assert!(SamplingDefaults { top_p: Some(0.0), ..SamplingDefaults::default() }.validate().is_err());
        assert!(SamplingDefaults { repetition_penalty: Some(1e-3), ..SamplingDefaults::default() }.validate().is_err());
    }
}
