//! Token ids from words.

use tokens::TokenId;

/// Upper bound of the ids of [`prompt`] and [`passage`].
const NUM_IDS: u32 = 1 << 20;

/// Makes one token for each word of `text`; a word that is a number is that id.
#[must_use]
pub fn prompt(text: &str) -> Vec<TokenId> {
    text.split_whitespace().map(|word| TokenId(word.parse().unwrap_or_else(|_| id_of(word)))).collect()
}

/// Makes `num_tokens` tokens that are always the same for the same `name`.
#[must_use]
pub fn passage(name: &str, num_tokens: usize) -> Vec<TokenId> {
    (0..num_tokens).map(|i| TokenId(id_of(&format!("{name}.{i}")))).collect()
}

/// Hashes with FNV-1a (Fowler, Noll, Vo), 32 bits, reduced to the ids in use.
fn id_of(word: &str) -> u32 {
    word.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) % NUM_IDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_tokens_and_numbers_are_ids() {
        let ids = prompt("a b a 7");
        assert_eq!((ids[0], ids[3]), (ids[2], TokenId(7)));
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn passages_differ_by_name_and_not_by_length() {
        assert_eq!(passage("x", 9)[..4], passage("x", 4)[..]);
        assert_ne!(passage("x", 4), passage("y", 4));
    }
}
