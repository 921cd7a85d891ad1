//! Mean and variance of each channel, taken block by block while a block is in the cache.

use std::mem::MaybeUninit;

use super::kernels::{fold, repeat, squares, sum, widths};
use crate::nn::simd::Element;
use crate::nn::threads::partials;

/// Mean and biased variance per channel, and whether they depend on the input.
#[derive(Debug)]
pub(in crate::nn) struct Moments {
    pub mean: Vec<f64>,
    pub var: Vec<f64>,
    pub of_batch: bool,
}

impl Moments {
    /// Those of channels-last `x`.
    pub fn of<T: Element>(x: &[T], channels: usize) -> Self {
        let (_, block) = widths(channels);
        let parts = partials(x.len().div_ceil(block), channels, |blocks| {
            PartialMoments::of(&x[blocks.start * block..x.len().min(blocks.end * block)], channels)
        });
        Self::combine(&parts)
    }

    /// Those of all rows, from those of some rows each.
    pub fn combine(parts: &[PartialMoments]) -> Self {
        let mut total = PartialMoments::none(parts.first().map_or(0, |part| part.mean.len()));
        parts.iter().for_each(|part| total.add(part));
        let var = total.deviations.iter().map(|d| d / total.rows.max(1.0)).collect();
        Self { mean: total.mean, var, of_batch: true }
    }
}

/// Rows seen, their mean and the sum of squared deviations from it, per channel.
///
/// # Source
/// Chan, Golub and LeVeque 1979: combination of means and squared deviations of blocks.
#[derive(Debug, Clone)]
pub(in crate::nn) struct PartialMoments {
    rows: f64,
    mean: Vec<f64>,
    deviations: Vec<f64>,
}

impl PartialMoments {
    fn none(channels: usize) -> Self {
        Self { rows: 0.0, mean: vec![0.0; channels], deviations: vec![0.0; channels] }
    }

    /// Those of channels-last `x`, on this thread.
    pub fn of<T: Element>(x: &[T], channels: usize) -> Self {
        let (wide, block) = widths(channels);
        let mut total = Self::none(channels);
        let mut sums = vec![T::ZERO; wide];
        for x in x.chunks(block) {
            let rows = (x.len() / channels) as f64;
            let mut mean = vec![0.0; channels];
            sums.fill(T::ZERO);
            sum(x, &mut sums);
            fold(&sums, &mut mean);
            mean.iter_mut().for_each(|m| *m /= rows);
            let near: Vec<T> = mean.iter().map(|m| T::from_f64(*m)).collect();
            sums.fill(T::ZERO);
            squares(x, &repeat(&near, wide), &mut sums);
            let mut deviations = vec![0.0; channels];
            fold(&sums, &mut deviations);
            total.add(&Self { rows, mean, deviations });
        }
        total
    }

    /// As [`PartialMoments::of`].
    ///
    /// # Safety
    /// Every value of `x` has been written.
    pub unsafe fn of_written<T: Element>(x: &[MaybeUninit<T>], channels: usize) -> Self {
        // SAFETY: `MaybeUninit<T>` has the layout of `T`; the rest is the caller's.
        Self::of(unsafe { &*(std::ptr::from_ref(x) as *const [T]) }, channels)
    }

    fn add(&mut self, other: &Self) {
        let rows = self.rows + other.rows;
        let (share, cross) = (other.rows / rows, self.rows * other.rows / rows);
        let mine = self.mean.iter_mut().zip(&mut self.deviations);
        for ((mean, deviations), (m, d)) in mine.zip(other.mean.iter().zip(&other.deviations)) {
            let delta = m - *mean;
            *mean += delta * share;
            *deviations += d + delta * delta * cross;
        }
        self.rows = rows;
    }
}
