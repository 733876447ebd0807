//! Samples the shingles of a sequence: the least by hash of each window (minimizers).
//!
//! The choice depends on the window's tokens alone, so equal windows sample the same shingle at any position (winnowing, Schleimer,
//! Wilkerson, Aiken 2003). Any two sequences that share `shingle + window - 1` tokens share a sample.

use std::sync::Arc;

use tokens::TokenId;

use crate::Segments;

/// Multiplier of the rolling polynomial; odd, so that no token drops out of the product. Chosen: the golden ratio of 2^64.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// A sampled shingle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Hash of the shingle.
    pub(crate) key: u64,
    /// Position of the shingle's first token.
    pub(crate) pos: u32,
}

/// The sampled shingles of one prompt, by ascending position, and its segments.
///
/// They depend on the prompt alone: it is hashed once for any number of scopes and lookups.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    samples: Arc<[Sample]>,
    segments: Segments,
}

impl Sketch {
    /// Samples `tokens`: at least one of `window_shingles` consecutive shingles of `shingle_tokens` tokens, and the first one of each of
    /// `segments`, so that a segment too short for a window is found too.
    pub(crate) fn of(tokens: &[TokenId], segments: &Segments, shingle_tokens: u32, window_shingles: u32) -> Self {
        let keys = shingle_keys(tokens, shingle_tokens as usize);
        let mut samples = sample(&keys, window_shingles as usize);
        let firsts = segments.whole(tokens.len() as u32).filter(|segment| segment.len() >= shingle_tokens);
        samples.extend(firsts.map(|segment| Sample { key: keys[segment.start as usize], pos: segment.start }));
        samples.sort_unstable_by_key(|sample| sample.pos);
        samples.dedup();
        Self { samples: samples.into(), segments: segments.clone() }
    }

    /// Returns the segments of the prompt.
    #[must_use]
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Returns all samples.
    pub(crate) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Returns the samples that begin at `from` or later.
    pub(crate) fn samples_from(&self, from: u32) -> &[Sample] {
        &self.samples[self.samples.partition_point(|sample| sample.pos < from)..]
    }

    /// Returns the keys of all samples, ascending, each once.
    pub(crate) fn keys(&self) -> Vec<u64> {
        let mut keys: Vec<_> = self.samples.iter().map(|sample| sample.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// Returns the samples of a text whose shingles have the hashes `keys`, by ascending position, each once.
///
/// Takes the leftmost of shingles with equal hash in one window.
fn sample(keys: &[u64], window_shingles: usize) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::with_capacity(2 * keys.len() / window_shingles + 1);
    let mut least = 0;
    for end in window_shingles..=keys.len() {
        let window_start = end - window_shingles;
        if least < window_start || end == window_shingles {
            least = window_start + leftmost_least(&keys[window_start..end]);
        } else if keys[end - 1] < keys[least] {
            least = end - 1;
        }
        if samples.last().is_none_or(|last| last.pos as usize != least) {
            samples.push(Sample { key: keys[least], pos: least as u32 });
        }
    }
    samples
}

fn leftmost_least(keys: &[u64]) -> usize {
    let least = keys.iter().min().expect("a window holds a shingle");
    keys.iter().position(|key| key == least).expect("the least is among them")
}

/// Returns the hash of each `shingle_tokens` consecutive tokens: a rolling polynomial modulo 2^64, then mixed.
fn shingle_keys(tokens: &[TokenId], shingle_tokens: usize) -> Vec<u64> {
    if tokens.len() < shingle_tokens {
        return Vec::new();
    }
    let value = |token: &TokenId| u64::from(token.0) + 1;
    let leaving_factor = (0..shingle_tokens).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let mut hash = tokens[..shingle_tokens].iter().fold(0u64, |hash, token| hash.wrapping_mul(BASE).wrapping_add(value(token)));
    let mut keys = Vec::with_capacity(tokens.len() - shingle_tokens + 1);
    keys.push(mix(hash));
    keys.extend(tokens[shingle_tokens..].iter().zip(tokens).map(|(entering, leaving)| {
        let change = value(entering).wrapping_sub(value(leaving).wrapping_mul(leaving_factor));
        hash = hash.wrapping_mul(BASE).wrapping_add(change);
        mix(hash)
    }));
    keys
}

/// Applies the finaliser of MurmurHash3 (Appleby, `fmix64`): the least key must not follow from the last tokens alone.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const SHINGLE: usize = 4;
    const WINDOW: usize = 6;

    fn tokens(ids: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
        ids.into_iter().map(TokenId).collect()
    }

    /// Samples `tokens` window by window, from the definition.
    fn from_definition(tokens: &[TokenId]) -> Vec<Sample> {
        let keys: Vec<_> = tokens.windows(SHINGLE).map(|shingle| shingle_keys(shingle, SHINGLE)[0]).collect();
        let mut samples: Vec<Sample> = Vec::new();
        for (start, window) in keys.windows(WINDOW).enumerate() {
            let pos = (start + leftmost_least(window)) as u32;
            if !samples.iter().any(|sample| sample.pos == pos) {
                samples.push(Sample { key: keys[pos as usize], pos });
            }
        }
        samples
    }

    #[test]
    fn samples_are_the_least_shingles_of_all_windows() {
        let mut random = Random(3);
        for len in 0..200 {
            let tokens = random.tokens(len, 3);
            assert_eq!(sample(&shingle_keys(&tokens, SHINGLE), WINDOW), from_definition(&tokens));
        }
    }

    #[test]
    fn a_shared_window_shares_a_sample() {
        let mut random = Random(4);
        let shared = random.tokens(SHINGLE + WINDOW - 1, 1000);
        for (left, right) in [(0, 0), (1, 9), (50, 3)] {
            let text = [random.tokens(left, 1000), shared.clone(), random.tokens(right, 1000)].concat();
            let alone = sample(&shingle_keys(&shared, SHINGLE), WINDOW)[0];
            let expected = Sample { pos: alone.pos + left as u32, ..alone };
            assert!(sample(&shingle_keys(&text, SHINGLE), WINDOW).contains(&expected));
        }
    }

    #[test]
    fn a_text_shorter_than_a_window_has_no_sample() {
        assert_eq!(sample(&shingle_keys(&tokens(0..8), SHINGLE), WINDOW), []);
    }
}
