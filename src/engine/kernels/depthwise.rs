//! Depthwise convolution, vectorised over channels.

use super::conv::ConvWeights;
use super::epilogue::{Epilogue, clamp, smooth};
use super::{Context, Kernel, View, part, task_count};
use crate::engine::simd::{Vector, dispatch, padded};
use crate::graph::Conv2d;

/// Output pixels computed together, so that a weight is loaded once for all of them.
const TILE: usize = 4;
const MACS_PER_TASK: usize = 1 << 17;

/// A depthwise convolution (one filter per channel), with its activation.
pub(in crate::engine) struct Depthwise {
    input: View,
    output: View,
    conv: Conv2d,
    /// `[kh·kw][padded channels]`.
    weights: Vec<f32>,
    bias: Vec<f32>,
    epilogue: Epilogue,
}

impl Depthwise {
    /// Lays the weights out for vectors of channels.
    pub fn new(conv: Conv2d, weights: &ConvWeights, [input, output]: [View; 2], epilogue: Epilogue) -> Self {
        let (channels, taps) = (conv.out_channels, conv.kernel[0] * conv.kernel[1]);
        let mut packed = vec![0.0; taps * padded(channels)];
        for (tap, row) in packed.chunks_mut(padded(channels)).enumerate() {
            for (c, value) in row.iter_mut().take(channels).enumerate() {
                *value = weights.weight[c * taps + tap];
            }
        }
        Self { input, output, conv, weights: packed, bias: weights.padded_bias(channels), epilogue }
    }
}

impl Kernel for Depthwise {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        let rows = batch * self.output.size[0];
        let macs = rows * self.output.size[1] * self.weights.len();
        task_count(macs, MACS_PER_TASK, threads, rows)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        let tasks = self.tasks(context.batch, context.threads);
        for row in part(context.batch * self.output.size[0], task, tasks) {
            // SAFETY: the caller's.
            unsafe { dispatch!(context.isa, output_row(this: &Depthwise = self, context: &Context = context, row: usize = row)) }
        }
    }

    fn name(&self) -> String {
        "depthwise".to_string()
    }

    fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len()) * size_of::<f32>()
    }
}

/// The taps `0..taps` that stay inside `0..size` from position `start`, which may lie in front of it (wrapped around).
#[inline(always)]
fn valid(start: usize, taps: usize, dilation: usize, size: usize) -> (usize, usize) {
    let mut first = 0;
    while first < taps && start.wrapping_add(first * dilation) >= size {
        first += 1;
    }
    let mut end = first;
    while end < taps && start.wrapping_add(end * dilation) < size {
        end += 1;
    }
    (first, end)
}

/// One row of output pixels; `row` counts over the batch.
#[inline(always)]
unsafe fn output_row<V: Vector>(this: &Depthwise, context: &Context, row: usize) {
    let (conv, input, output) = (&this.conv, &this.input, &this.output);
    let (n, oy) = (row / output.size[0], row % output.size[0]);
    let y = (oy * conv.stride[0]).wrapping_sub(conv.padding.top);
    let rows = valid(y, conv.kernel[0], conv.dilation[0], input.size[0]);
    let reach = (conv.kernel[1] - 1) * conv.dilation[1];
    let mut ox = 0;
    while ox < output.size[1] {
        let x = (ox * conv.stride[1]).wrapping_sub(conv.padding.left);
        let last = ox + TILE - 1;
        let end = last * conv.stride[1] + reach;
        let whole = x < input.size[1] && last < output.size[1] && end < conv.padding.left + input.size[1];
        // SAFETY: taps outside the image are left out; pixels are inside the output.
        unsafe {
            let image = context.at(input, n).cast_const();
            let out = context.at(output, n).add((oy * output.size[1] + ox) * output.pixel);
            let origin = image.wrapping_add(y.wrapping_mul(input.row()).wrapping_add(x.wrapping_mul(input.pixel)));
            if whole {
                pixels::<V, TILE>(this, origin, out, (rows, (0, conv.kernel[1])));
                ox += TILE;
            } else {
                let columns = valid(x, conv.kernel[1], conv.dilation[1], input.size[1]);
                pixels::<V, 1>(this, origin, out, (rows, columns));
                ox += 1;
            }
        }
    }
}

/// `T` neighbouring output pixels, all channels, over the taps given as ranges of rows and columns.
#[inline(always)]
unsafe fn pixels<V: Vector, const T: usize>(
    this: &Depthwise,
    origin: *const f32,
    out: *mut f32,
    (rows, columns): ((usize, usize), (usize, usize)),
) {
    let (conv, input, channels) = (&this.conv, &this.input, this.bias.len());
    let step = conv.stride[1] * input.pixel;
    // SAFETY: the caller's; channels are padded on both sides.
    unsafe {
        let (low, high) = (V::splat(this.epilogue.low), V::splat(this.epilogue.high));
        let mut c = 0;
        while c < channels {
            let mut acc = [V::load(this.bias.as_ptr().add(c)); T];
            for ky in rows.0..rows.1 {
                for kx in columns.0..columns.1 {
                    let w = V::load(this.weights.as_ptr().add((ky * conv.kernel[1] + kx) * channels + c));
                    let from = ky * conv.dilation[0] * input.row() + kx * conv.dilation[1] * input.pixel + c;
                    for t in 0..T {
                        acc[t] = acc[t].fma(V::load(origin.wrapping_add(from + t * step)), w);
                    }
                }
            }
            for t in 0..T {
                let mut y = clamp(acc[t], low, high);
                if let Some(function) = this.epilogue.smooth {
                    y = smooth(y, function);
                }
                y.store(out.add(t * this.output.pixel + c));
            }
            c += V::LANES;
        }
    }
}
