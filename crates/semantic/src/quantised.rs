//! Vectors in 8 bits.

/// Largest code: symmetric, so that a code and its negative are equally far from 0.
const MAX_CODE: f32 = 127.0;

/// A vector of length one in 8 bits, with a scale of its own. Codes are stored in 16 bits, so that a scan need not widen those of the query
/// again for each row.
pub(crate) struct Quantised {
    /// Codes of the first half, `[num_dimensions.div_ceil(2)]`.
    pub(crate) head: Vec<i16>,
    /// Codes of the second half, `[num_dimensions / 2]`.
    pub(crate) tail: Vec<i16>,
    /// Factor of the codes.
    pub(crate) scale: f32,
    /// Length of the second half.
    pub(crate) tail_length: f32,
}

impl Quantised {
    /// Returns `vector` scaled to length one; `None` if it has no direction (zero, not finite).
    pub(crate) fn of(vector: &[f32]) -> Option<Self> {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        let largest = vector.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        if !length.is_normal() || !largest.is_normal() {
            return None;
        }
        let mut head: Vec<_> = vector.iter().map(|x| (x / largest * MAX_CODE).round() as i16).collect();
        let tail = head.split_off(head.len().div_ceil(2));
        let scale = largest / MAX_CODE / length;
        let tail_length = tail.iter().map(|&code| i32::from(code) * i32::from(code)).sum::<i32>() as f32;
        Some(Self { head, tail, scale, tail_length: tail_length.sqrt() * scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_without_a_direction_has_no_codes() {
        for vector in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 0.0]] {
            assert!(Quantised::of(&vector).is_none(), "{vector:?}");
        }
        assert!(Quantised::of(&[1.0, 0.0]).is_some());
    }
}
