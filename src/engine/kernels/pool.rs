//! Max, average and global average pooling, vectorised over channels.

use super::{Context, Kernel, View, part, task_count};
use crate::engine::dispatch::dispatch;
use crate::engine::element::Element;
use crate::graph::Pool2d;
use crate::simd::{CHANNEL_BLOCK, Vector, padded};

const VALUES_PER_TASK: usize = 1 << 17;

/// What a window becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum PoolKind {
    /// The largest value; padding never wins.
    Max,
    /// The mean; padding counts as zeros.
    Average,
}

/// Max or average pooling.
pub(in crate::engine) struct Pooling {
    pub input: View,
    pub output: View,
    pub pool: Pool2d,
    pub kind: PoolKind,
}

impl Kernel for Pooling {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        let rows = batch * self.output.size[0];
        let window = self.pool.kernel[0] * self.pool.kernel[1];
        task_count(rows * self.output.size[1] * self.output.pixel * window, VALUES_PER_TASK, threads, rows)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        let tasks = self.tasks(context.batch, context.threads);
        for row in part(context.batch * self.output.size[0], task, tasks) {
            // SAFETY: the caller's.
            unsafe {
                dispatch!(context, pool_row(this: &Pooling = self, context: &Context = context, row: usize = row))
            }
        }
    }

    fn name(&self) -> String {
        match self.kind {
            PoolKind::Max => "max pool".to_string(),
            PoolKind::Average => "average pool".to_string(),
        }
    }
}

/// The part of the window at `position·stride − padding` that lies in `0..size`.
#[inline(always)]
fn window(position: usize, [stride, padding, kernel]: [usize; 3], size: usize) -> (usize, usize) {
    let start = position * stride;
    (start.saturating_sub(padding), (start + kernel).saturating_sub(padding).min(size))
}

#[inline(always)]
unsafe fn pool_row<V: Vector, E: Element>(this: &Pooling, context: &Context, row: usize) {
    let (input, output, pool) = (&this.input, &this.output, &this.pool);
    let (n, oy) = (row / output.size[0], row % output.size[0]);
    let (top, bottom) = window(oy, [pool.stride[0], pool.padding.top, pool.kernel[0]], input.size[0]);
    let max = this.kind == PoolKind::Max;
    let start = if max { f32::NEG_INFINITY } else { 0.0 };
    for ox in 0..output.size[1] {
        let (left, right) = window(ox, [pool.stride[1], pool.padding.left, pool.kernel[1]], input.size[1]);
        let mut c = 0;
        // SAFETY: the window is clipped to the image.
        unsafe {
            let image = context.at::<E>(input, n).cast_const();
            let out = context.at::<E>(output, n).add((oy * output.size[1] + ox) * output.pixel);
            let scale = V::splat(if max { 1.0 } else { 1.0 / (pool.kernel[0] * pool.kernel[1]) as f32 });
            while c < output.pixel {
                let mut acc = V::splat(start);
                for y in top..bottom {
                    for x in left..right {
                        let value = E::load(image.add((y * input.size[1] + x) * input.pixel + c), input.quant);
                        acc = if max { acc.max(value) } else { acc.add(value) };
                    }
                }
                E::store(out.add(c), acc.mul(scale), output.quant);
                c += V::LANES;
            }
        }
    }
}

/// Mean over all pixels.
pub(in crate::engine) struct GlobalAvgPool {
    pub input: View,
    pub output: View,
}

/// Channels a task takes.
const CHANNELS: usize = 16 * CHANNEL_BLOCK;

impl Kernel for GlobalAvgPool {
    fn tasks(&self, batch: usize, _threads: usize) -> usize {
        batch * padded(self.input.channels).div_ceil(CHANNELS)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe {
            dispatch!(context, mean(this: &GlobalAvgPool = self, context: &Context = context, task: usize = task))
        }
    }

    fn name(&self) -> String {
        "global pool".to_string()
    }
}

#[inline(always)]
unsafe fn mean<V: Vector, E: Element>(this: &GlobalAvgPool, context: &Context, task: usize) {
    let channels = padded(this.input.channels);
    let parts = channels.div_ceil(CHANNELS);
    let (n, start) = (task / parts, task % parts * CHANNELS);
    let pixels = this.input.pixels();
    // SAFETY: the caller's.
    unsafe {
        let (image, out) = (context.at::<E>(&this.input, n).cast_const(), context.at::<E>(&this.output, n));
        let load = |i: usize| E::load::<V>(image.add(i), this.input.quant);
        let scale = V::splat(1.0 / pixels as f32);
        let mut c = start;
        while c < channels.min(start + CHANNELS) {
            // Two sums, so that one addition need not wait for the last.
            let (mut even, mut odd) = (V::splat(0.0), V::splat(0.0));
            let mut pixel = 0;
            while pixel + 1 < pixels {
                even = even.add(load(pixel * this.input.pixel + c));
                odd = odd.add(load((pixel + 1) * this.input.pixel + c));
                pixel += 2;
            }
            if pixel < pixels {
                even = even.add(load(pixel * this.input.pixel + c));
            }
            E::store(out.add(c), even.add(odd).mul(scale), this.output.quant);
            c += V::LANES;
        }
    }
}
