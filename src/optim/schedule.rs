//! Factors on the learning rate, as functions of the progress t through a phase.
//!
//! t runs from 0 to 1 and is clamped to that range; the factor is between 0 and 1.

use std::f64::consts::PI;

/// Half a cosine wave from 1 to 0: `(1 + cos(π·t)) / 2`.
///
/// # Source
/// Loshchilov, Hutter 2016, arXiv:1608.03983, without restarts.
pub fn cosine(t: f64) -> f64 {
    (1.0 + (PI * t.clamp(0.0, 1.0)).cos()) / 2.0
}

/// SHOT's decay: `(1 + 10·t)^−0.75`, from 1 to 0.166.
///
/// # Source
/// Liang, Hu, Feng 2020, arXiv:2002.08546; first used by Ganin, Lempitsky 2014, arXiv:1409.7495.
pub fn inverse_power(t: f64) -> f64 {
    (1.0 + 10.0 * t.clamp(0.0, 1.0)).powf(-0.75)
}

/// A straight line from 0 at t = 0 to 1 at t = `fraction`, then 1; multiply another schedule by it.
///
/// A `fraction` of 0 or less means no warm-up.
pub fn linear_warm_up(t: f64, fraction: f64) -> f64 {
    if fraction <= 0.0 { 1.0 } else { (t.clamp(0.0, 1.0) / fraction).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::testing::F64_TOLERANCE;

    #[track_caller]
    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < F64_TOLERANCE, "got {got}, want {want}");
    }

    #[test]
    fn known_points() {
        near(cosine(0.0), 1.0);
        near(cosine(1.0 / 3.0), 0.75);
        near(cosine(1.0), 0.0);
        near(inverse_power(0.0), 1.0);
        near(inverse_power(1.5 / 10.0), 2.5f64.powf(-0.75));
        near(inverse_power(1.0), 1.0 / 11f64.powf(0.75));
        near(linear_warm_up(0.05, 0.1), 0.5);
        near(linear_warm_up(0.4, 0.1), 1.0);
        near(linear_warm_up(0.0, 0.0), 1.0);
    }

    #[test]
    fn progress_outside_the_phase_is_clamped() {
        assert_eq!((cosine(-1.0), cosine(2.0)), (1.0, cosine(1.0)));
        assert_eq!((inverse_power(-0.2), inverse_power(7.0)), (1.0, inverse_power(1.0)));
        assert_eq!(linear_warm_up(-0.1, 0.5), 0.0);
    }
}
