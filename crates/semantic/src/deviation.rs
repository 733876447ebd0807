//! Distance of moved tokens from fresh ones, where a measurement may not be a finite number.

/// Measurements of one reused token. Norms are over all heads of the check layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenDeviation {
    /// Attention received, averaged over readers, heads and layers: a reader's attention to all positions sums to 1.
    pub attention: f32,
    /// `‖K_fresh − K_moved‖₂`
    pub key_l2: f32,
    /// `‖V_fresh − V_moved‖₂`
    pub value_l2: f32,
    /// `‖V_fresh − V_moved‖₁`
    pub value_l1: f32,
    /// `‖V_fresh‖₂`
    pub value_norm: f32,
    /// `√d`, the root of `head_dim`.
    pub root_head_dim: f32,
}

/// Summed distance of tokens from fresh ones. Infinitely far tokens are counted, so that they can be subtracted again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deviation {
    /// `‖ΔV‖₂²`, summed over the finite ones.
    finite: f64,
    num_infinite: u32,
}

impl Deviation {
    pub(crate) fn of(found: &TokenDeviation) -> Self {
        match is_all_finite(found) {
            true => Self { finite: f64::from(found.value_l2).powi(2), num_infinite: 0 },
            false => Self { finite: 0.0, num_infinite: 1 },
        }
    }

    pub(crate) fn is_finite(self) -> bool {
        self.num_infinite == 0
    }

    /// Returns the distance times `unit`; infinite if a token is infinitely far.
    pub(crate) fn in_units(self, unit: f64) -> f32 {
        if self.is_finite() { (self.finite * unit).max(0.0) as f32 } else { f32::INFINITY }
    }
}

impl std::ops::Sub for Deviation {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { finite: self.finite - other.finite, num_infinite: self.num_infinite - other.num_infinite }
    }
}

impl std::iter::Sum for Deviation {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self { finite: a.finite + b.finite, num_infinite: a.num_infinite + b.num_infinite })
    }
}

/// True if all measurements of a token are finite. Otherwise its moved or its fresh KV is unusable.
fn is_all_finite(found: &TokenDeviation) -> bool {
    let TokenDeviation { attention, key_l2, value_l2, value_l1, value_norm, root_head_dim: _ } = *found;
    [attention, key_l2, value_l2, value_l1, value_norm].iter().all(|x| x.is_finite())
}

/// Returns one over the mean `‖V‖₂²`.
pub(crate) fn unit_of(measured: &[TokenDeviation]) -> f64 {
    let norms = measured.iter().filter(|found| is_all_finite(found)).map(|found| f64::from(found.value_norm).powi(2));
    let (num, sum) = norms.fold((0.0, 0.0), |(num, sum), norm| (num + 1.0, sum + norm));
    num / f64::max(sum, f64::MIN_POSITIVE)
}
