//! Lines of a depthwise convolution in f32, several pixels at a time: a tap's weights are loaded once for all of them.

use super::{Line, Reach, Source, reach};
use crate::nn::conv::window::Window;
use crate::nn::simd::isa;
use crate::simd::{Vector, compiled_for};

/// Neighbouring pixels computed together.
const TILE: usize = 7;

/// Writes a line of the result to `out`, pixels `first`, `first + step`, …; false if there are too few channels for a vector.
///
/// # Safety
/// `out` has room for the line.
pub(super) unsafe fn convolve(line: &Line<f32>, channels: usize, out: *mut f32) -> bool {
    let job = Convolve { line, channels, out };
    let mut done = false;
    // SAFETY: the caller's; the instruction set was found on this processor.
    unsafe { compiled_for!(isa(), run_convolve(job: Convolve = job, done: &mut bool = &mut done)) };
    done
}

/// Adds one line's share of the weight gradient to `sum` `[taps, C]`; false as above.
pub(super) fn correlate(window: &Window, row: usize, x: &[f32], dy: &[f32], channels: usize, sum: &mut [f32]) -> bool {
    assert!(dy.len() >= window.target[1] * channels && sum.len() >= window.taps.len() * channels);
    let job = Correlate { window, row, x, dy, channels, sum: sum.as_mut_ptr() };
    let mut done = false;
    // SAFETY: both arrays are as long as what is read and written of them; the instruction set was found on this processor.
    unsafe { compiled_for!(isa(), run_correlate(job: Correlate = job, done: &mut bool = &mut done)) };
    done
}

/// What is done with a tile of `T` neighbouring columns whose taps all lie in the image.
trait Job {
    fn channels(&self) -> usize;
    unsafe fn tile<V: Vector, const T: usize>(&self, taps: &[Reach], column: usize);
}

struct Convolve<'a> {
    line: &'a Line<'a, f32>,
    channels: usize,
    out: *mut f32,
}

struct Correlate<'a> {
    window: &'a Window,
    row: usize,
    x: &'a [f32],
    dy: &'a [f32],
    channels: usize,
    sum: *mut f32,
}

#[inline(always)]
unsafe fn run_convolve<V: Vector>(job: Convolve, done: &mut bool) {
    // SAFETY: the caller's.
    *done = unsafe { run::<V, _>(&job, job.line.window, job.line.row, &job.line.source) };
}

#[inline(always)]
unsafe fn run_correlate<V: Vector>(job: Correlate, done: &mut bool) {
    // SAFETY: the caller's.
    *done =
        unsafe { run::<V, _>(&job, job.window, job.row, &Source { values: job.x, lines: 0..job.window.source[0] }) };
}

/// Goes through the columns of target row `row`.
#[inline(always)]
unsafe fn run<V: Vector, J: Job>(job: &J, window: &Window, row: usize, source: &Source<f32>) -> bool {
    let channels = job.channels();
    if channels < V::LANES {
        return false;
    }
    assert!(source.values.len() >= source.lines.len() * window.source[1] * channels);
    let (reaches, inside) = reach(window, row, channels, &source.lines);
    let width = window.target[1];
    let mut edge = Vec::with_capacity(reaches.len());
    let mut column = 0;
    while column < width {
        // SAFETY: the taps of these columns lie in the image.
        unsafe {
            if !inside.contains(&column) {
                let x = (column * window.stride[1]) as isize;
                edge.clear();
                edge.extend(reaches.iter().filter(|r| (0..window.source[1] as isize).contains(&(x + r.dx))).copied());
                job.tile::<V, 1>(&edge, column);
                column += 1;
                continue;
            }
            let left = inside.end - column;
            if left >= TILE {
                job.tile::<V, TILE>(&reaches, column);
                column += TILE;
            } else if left >= 4 {
                job.tile::<V, 4>(&reaches, column);
                column += 4;
            } else if left >= 2 {
                job.tile::<V, 2>(&reaches, column);
                column += 2;
            } else {
                job.tile::<V, 1>(&reaches, column);
                column += 1;
            }
        }
    }
    true
}

impl Job for Convolve<'_> {
    fn channels(&self) -> usize {
        self.channels
    }

    #[inline(always)]
    unsafe fn tile<V: Vector, const T: usize>(&self, taps: &[Reach], column: usize) {
        let Line { window, weight, bias, first, step, .. } = *self.line;
        let (from, to) = (window.stride[1] * self.channels, step * self.channels);
        let mut c = 0;
        while c < self.channels {
            // The last channels come with some of their neighbours, a second time.
            let at = c.min(self.channels - V::LANES);
            // SAFETY: the caller's: `T` columns whose taps lie in the image, and channels `at..at + LANES` of each.
            unsafe {
                let start = match bias {
                    Some(bias) => V::load(bias.as_ptr().add(at)),
                    None => V::splat(0.0),
                };
                let mut sums = [start; T];
                for tap in taps {
                    let weight = V::load(weight.as_ptr().add(tap.weight + at));
                    let x = self.line.source.values.as_ptr().offset(tap.source + (column * from + at) as isize);
                    for t in 0..T {
                        sums[t] = sums[t].fma(V::load(x.add(t * from)), weight);
                    }
                }
                let out = self.out.add((first + column * step) * self.channels + at);
                for t in 0..T {
                    sums[t].store(out.add(t * to));
                }
            }
            c += V::LANES;
        }
    }
}

impl Job for Correlate<'_> {
    fn channels(&self) -> usize {
        self.channels
    }

    #[inline(always)]
    unsafe fn tile<V: Vector, const T: usize>(&self, taps: &[Reach], column: usize) {
        let from = self.window.stride[1] * self.channels;
        let whole = self.channels / V::LANES * V::LANES;
        for at in (0..whole).step_by(V::LANES) {
            // SAFETY: as above; the sums are the caller's alone.
            unsafe {
                let dy = self.dy.as_ptr().add(column * self.channels + at);
                let mut gradients = [V::splat(0.0); T];
                for t in 0..T {
                    gradients[t] = V::load(dy.add(t * self.channels));
                }
                for tap in taps {
                    let to = self.sum.add(tap.weight + at);
                    let x = self.x.as_ptr().offset(tap.source + (column * from + at) as isize);
                    let mut sum = V::load(to);
                    for t in 0..T {
                        sum = sum.fma(V::load(x.add(t * from)), gradients[t]);
                    }
                    sum.store(to);
                }
            }
        }
        // Here a channel must not come twice.
        for at in whole..self.channels {
            for tap in taps {
                // SAFETY: as above.
                unsafe {
                    let x = self.x.as_ptr().offset(tap.source + (column * from + at) as isize);
                    let dy = self.dy.as_ptr().add(column * self.channels + at);
                    for t in 0..T {
                        *self.sum.add(tap.weight + at) += *x.add(t * from) * *dy.add(t * self.channels);
                    }
                }
            }
        }
    }
}
