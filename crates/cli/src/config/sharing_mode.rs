//! Flag that names a sharing mode.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use tokens::SharingMode;

/// Returns the parser of a flag's value. The help lists each mode with its meaning.
pub(crate) fn sharing_mode_parser() -> impl TypedValueParser<Value = SharingMode> {
    let values = SharingMode::ALL.map(|mode| PossibleValue::new(mode.as_str()).help(help(mode)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<SharingMode>())
}

const fn help(mode: SharingMode) -> &'static str {
    match mode {
        SharingMode::Off => "None. Exact",
        SharingMode::Prefix => "Equal beginnings. Exact",
        SharingMode::Span => "Also equal spans anywhere. Approximate",
        SharingMode::Semantic => {
            "As span, also from donors that mean something similar if there is an embedder, and of donors of the same text the one \
             behind the most similar text. Approximate"
        }
        SharingMode::Auto => {
            "As span for requests like those where that has proven to be good, by comparisons in idle time; as prefix for all others"
        }
        SharingMode::Shadow => "Finds what span would reuse and records it, but reuses equal beginnings only. Exact",
    }
}
