//! Weight blocks of GGUF files, decoded to one form: small integers with a scale and optionally a minimum for each group of 16 or 32.
//!
//! All ggml formats up to 8 bits are exactly `w = scale * code + min` with integer codes, so one matrix kernel supports them all and
//! nothing is rounded but the product `d * sc` of the K formats, once, in f32. Block layouts: ggml, `ggml-common.h` and `ggml-quants.c`
//! (`dequantize_row_*`).

use half::f16;

/// A supported weight format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are ggml's")]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// A format number that is not in [`GgmlType`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsupportedType(pub u32);

impl std::fmt::Display for UnsupportedType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ggml type {} is not supported", self.0)
    }
}

impl std::error::Error for UnsupportedType {}

impl TryFrom<u32> for GgmlType {
    type Error = UnsupportedType;

    /// Converts the number in a GGUF tensor header (`enum ggml_type`).
    fn try_from(number: u32) -> Result<Self, UnsupportedType> {
        Ok(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            other => return Err(UnsupportedType(other)),
        })
    }
}

impl GgmlType {
    /// Returns the number of weights per block.
    #[must_use]
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Returns the bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Returns the number of weights that share a scale, for the quantised formats.
    pub(crate) fn group(self) -> usize {
        match self {
            Self::Q2K | Self::Q3K | Self::Q6K => 16,
            _ => 32,
        }
    }

    /// Returns, for 4-bit formats, the offset that makes a decoded code unsigned.
    pub(crate) fn nibble_offset(self) -> Option<i8> {
        match self {
            Self::Q4_0 => Some(8),
            Self::Q4_1 | Self::Q4K => Some(0),
            _ => None,
        }
    }

    /// Returns true if groups have a minimum.
    pub(crate) fn is_affine(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q2K | Self::Q4K | Self::Q5K)
    }
}

/// One row of weights, decoded: `w[i] = scales[i / group] * codes[i] + mins[i / group]`.
pub(crate) struct DecodedRow {
    pub(crate) codes: Vec<i8>,
    pub(crate) scales: Vec<f32>,
    pub(crate) mins: Vec<f32>,
}

impl DecodedRow {
    pub(crate) fn new(k: usize, group: usize) -> Self {
        Self { codes: vec![0; k], scales: vec![0.0; k / group], mins: vec![0.0; k / group] }
    }

    /// Decodes one row of a quantised format. `bytes` holds its blocks, `k / block_len` of them.
    pub(crate) fn decode(&mut self, ty: GgmlType, bytes: &[u8]) {
        let (len, groups) = (ty.block_len(), ty.block_len() / ty.group());
        for (i, block) in bytes.chunks_exact(ty.block_bytes()).enumerate() {
            let out = Block {
                codes: &mut self.codes[i * len..(i + 1) * len],
                scales: &mut self.scales[i * groups..(i + 1) * groups],
                mins: &mut self.mins[i * groups..(i + 1) * groups],
            };
            out.decode(ty, block);
        }
    }
}

struct Block<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    mins: &'a mut [f32],
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

impl Block<'_> {
    fn decode(self, ty: GgmlType, b: &[u8]) {
        match ty {
            GgmlType::Q4_0 => self.nibbles(half_at(b, 0), 0.0, 8, &[0; 4], &b[2..]),
            GgmlType::Q4_1 => self.nibbles(half_at(b, 0), half_at(b, 2), 0, &[0; 4], &b[4..]),
            GgmlType::Q5_0 => self.nibbles(half_at(b, 0), 0.0, 16, &b[2..6], &b[6..]),
            GgmlType::Q5_1 => self.nibbles(half_at(b, 0), half_at(b, 2), 0, &b[4..8], &b[8..]),
            GgmlType::Q8_0 => self.bytes(half_at(b, 0), &b[2..]),
            GgmlType::Q2K => self.q2k(b),
            GgmlType::Q3K => self.q3k(b),
            GgmlType::Q4K => self.q45k(b, None, &b[16..]),
            GgmlType::Q5K => self.q45k(b, Some(&b[16..48]), &b[48..]),
            GgmlType::Q6K => self.q6k(b),
            GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 => unreachable!("dense formats have no codes"),
        }
    }

    /// Decodes Q4_0, Q4_1, Q5_0, Q5_1: low nibbles are weights 0..16, high nibbles 16..32, a fifth bit comes from `high`.
    fn nibbles(self, scale: f32, min: f32, offset: i8, high: &[u8], qs: &[u8]) {
        let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
        for j in 0..16 {
            let bit = |i: usize| (((high >> i) & 1) as i8) << 4;
            self.codes[j] = ((qs[j] & 15) as i8 | bit(j)) - offset;
            self.codes[j + 16] = ((qs[j] >> 4) as i8 | bit(j + 16)) - offset;
        }
        self.scales[0] = scale;
        self.mins[0] = min;
    }

    fn bytes(self, scale: f32, qs: &[u8]) {
        for (code, q) in self.codes.iter_mut().zip(qs) {
            *code = *q as i8;
        }
        self.scales[0] = scale;
    }

    fn q2k(self, b: &[u8]) {
        let (scales, qs, d, dmin) = (&b[..16], &b[16..80], half_at(b, 80), half_at(b, 82));
        for (i, s) in scales.iter().enumerate() {
            self.scales[i] = d * f32::from(s & 15);
            self.mins[i] = -(dmin * f32::from(s >> 4));
        }
        for i in 0..256 {
            let (part, shift, l) = (i / 128, 2 * (i % 128 / 32), i % 32);
            self.codes[i] = ((qs[32 * part + l] >> shift) & 3) as i8;
        }
    }

    fn q3k(self, b: &[u8]) {
        let (hmask, qs, scales, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
        for i in 0..16 {
            let low = if i < 8 { scales[i] & 15 } else { scales[i - 8] >> 4 };
            let high = (scales[8 + i % 4] >> (2 * (i / 4))) & 3;
            self.scales[i] = d * f32::from((low | (high << 4)) as i8 - 32);
        }
        for i in 0..256 {
            let (part, j, l) = (i / 128, i % 128 / 32, i % 32);
            let low = ((qs[32 * part + l] >> (2 * j)) & 3) as i8;
            let bit = hmask[l] >> (4 * part + j) & 1;
            self.codes[i] = if bit == 1 { low } else { low - 4 };
        }
    }

    /// Decodes Q4_K and Q5_K: eight groups of 32, 6-bit scales and minima, and for Q5_K a plane of fifth bits.
    fn q45k(self, b: &[u8], high: Option<&[u8]>, qs: &[u8]) {
        let (d, dmin, packed) = (half_at(b, 0), half_at(b, 2), &b[4..16]);
        for j in 0..8 {
            let (scale, min) = if j < 4 {
                (packed[j] & 63, packed[j + 4] & 63)
            } else {
                ((packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4))
            };
            self.scales[j] = d * f32::from(scale);
            self.mins[j] = -(dmin * f32::from(min));
        }
        for i in 0..256 {
            let (group, l) = (i / 32, i % 32);
            let byte = qs[32 * (group / 2) + l];
            let nibble = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
            let bit = high.map_or(0, |plane| plane[l] >> group & 1);
            self.codes[i] = (nibble | (bit << 4)) as i8;
        }
    }

    fn q6k(self, b: &[u8]) {
        let (ql, qh, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
        for (out, s) in self.scales.iter_mut().zip(scales) {
            *out = d * f32::from(*s as i8);
        }
        for i in 0..256 {
            let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let byte = ql[64 * part + 32 * (quarter % 2) + l];
            let low = if quarter < 2 { byte & 15 } else { byte >> 4 };
            let high = (qh[32 * part + l] >> (2 * quarter)) & 3;
            self.codes[i] = (low | (high << 4)) as i8 - 32;
        }
    }
}
