//! Names of the parts of a split GGUF file: `name-00001-of-00003.gguf` and so on.

/// Name of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartName<'n> {
    prefix: &'n str,
    /// Number from 1.
    number: u32,
    count: u32,
}

impl<'n> PartName<'n> {
    /// Parses the name of a part; `None` for a whole file.
    pub(super) fn of(name: &'n str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits =
            |text: &str| if text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None };
        Some(Self { prefix, number: digits(number)?, count: digits(count)? })
    }

    /// True if another part comes first.
    pub(super) fn is_later(self) -> bool {
        self.number > 1
    }

    /// Returns the names of the other parts.
    pub(super) fn others(self) -> impl Iterator<Item = String> {
        let Self { prefix, number, count } = self;
        (1..=count).filter(move |other| *other != number).map(move |other| format!("{prefix}-{other:05}-of-{count:05}.gguf"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_know_their_siblings() {
        let part = PartName::of("q4/m-00002-of-00003.gguf").unwrap();
        assert!(part.is_later());
        assert_eq!(part.others().collect::<Vec<_>>(), ["q4/m-00001-of-00003.gguf", "q4/m-00003-of-00003.gguf"]);
        assert!(!PartName::of("m-00001-of-00003.gguf").unwrap().is_later());
        for whole in ["m.gguf", "m-1-of-3.gguf", "m-00001-of-00003.safetensors", "m-0000x-of-00003.gguf"] {
            assert_eq!(PartName::of(whole), None);
        }
    }
}
