//! Depthwise convolution, vectorised over channels.

use super::conv::ConvWeights;
use super::epilogue::{Epilogue, clamp, smooth};
use super::{Context, Kernel, View, part, task_count};
use crate::engine::element::Element;
use crate::engine::simd::{CHANNEL_BLOCK, Vector, dispatch, padded};
use crate::graph::Conv2d;

/// Output pixels computed together, so that a weight is loaded once for all of them.
const TILE: usize = 4;
const MACS_PER_TASK: usize = 1 << 17;
/// Weights that stay in the first-level cache while a task goes over its rows.
const WEIGHTS_PER_BLOCK: usize = 4 << 10;

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
        let rows = part(context.batch * self.output.size[0], task, self.tasks(context.batch, context.threads));
        let rows = (rows.start, rows.end);
        // SAFETY: the caller's.
        unsafe {
            match self.conv.kernel[1] {
                3 => {
                    dispatch!(context, rows3(this: &Depthwise = self, context: &Context = context, rows: (usize, usize) = rows))
                }
                5 => {
                    dispatch!(context, rows5(this: &Depthwise = self, context: &Context = context, rows: (usize, usize) = rows))
                }
                _ => {
                    dispatch!(context, rows_any(this: &Depthwise = self, context: &Context = context, rows: (usize, usize) = rows))
                }
            }
        }
    }

    fn name(&self) -> String {
        "depthwise".to_string()
    }

    fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len()) * size_of::<f32>()
    }
}

#[inline(always)]
unsafe fn rows3<V: Vector, E: Element>(this: &Depthwise, context: &Context, rows: (usize, usize)) {
    // SAFETY: the caller's.
    unsafe { output_rows::<V, E, 3>(this, context, rows) }
}

#[inline(always)]
unsafe fn rows5<V: Vector, E: Element>(this: &Depthwise, context: &Context, rows: (usize, usize)) {
    // SAFETY: the caller's.
    unsafe { output_rows::<V, E, 5>(this, context, rows) }
}

#[inline(always)]
unsafe fn rows_any<V: Vector, E: Element>(this: &Depthwise, context: &Context, rows: (usize, usize)) {
    // SAFETY: the caller's.
    unsafe { output_rows::<V, E, 0>(this, context, rows) }
}

/// Some output rows, counted over the batch, for a kernel `KW` columns wide (0: any width).
#[inline(always)]
unsafe fn output_rows<V: Vector, E: Element, const KW: usize>(
    this: &Depthwise,
    context: &Context,
    rows: (usize, usize),
) {
    let (conv, input, output, channels) = (&this.conv, &this.input, &this.output, this.bias.len());
    let taps = conv.kernel[0] * conv.kernel[1];
    let block = (WEIGHTS_PER_BLOCK / taps / CHANNEL_BLOCK).max(1) * CHANNEL_BLOCK;
    let reach = (conv.kernel[1] - 1) * conv.dilation[1];
    let mut c = 0;
    while c < channels {
        let end = channels.min(c + block);
        for row in rows.0..rows.1 {
            let (n, oy) = (row / output.size[0], row % output.size[0]);
            let y = (oy * conv.stride[0]).wrapping_sub(conv.padding.top);
            let (mut first, mut last) = (0, conv.kernel[0]);
            while first < last && y.wrapping_add(first * conv.dilation[0]) >= input.size[0] {
                first += 1;
            }
            while last > first && y.wrapping_add((last - 1) * conv.dilation[0]) >= input.size[0] {
                last -= 1;
            }
            let mut ox = 0;
            while ox < output.size[1] {
                let x = (ox * conv.stride[1]).wrapping_sub(conv.padding.left);
                let count = TILE.min(output.size[1] - ox);
                let far = (ox + TILE - 1) * conv.stride[1] + reach;
                let whole = count == TILE && x < input.size[1] && far < conv.padding.left + input.size[1];
                // SAFETY: taps outside the image are left out; the pixels are the output's.
                unsafe {
                    let image = context.at::<E>(input, n).cast_const();
                    let at = y.wrapping_mul(input.row()).wrapping_add(x.wrapping_mul(input.pixel));
                    let tile = Tile {
                        origin: image.wrapping_add(at),
                        out: context.at::<E>(output, n).add((oy * output.size[1] + ox) * output.pixel),
                        rows: (first, last),
                        x,
                        count,
                        channels: (c, end),
                    };
                    if whole {
                        pixels::<V, E, KW, true>(this, &tile);
                    } else {
                        pixels::<V, E, KW, false>(this, &tile);
                    }
                }
                ox += TILE;
            }
        }
        c = end;
    }
}

/// Up to [`TILE`] neighbouring output pixels.
struct Tile<E> {
    /// Where the first tap of the first pixel reads; may lie outside the image.
    origin: *const E,
    out: *mut E,
    /// Kernel rows that lie in the image.
    rows: (usize, usize),
    /// The origin's column, wrapped around if it lies in front of the image.
    x: usize,
    /// Pixels to write.
    count: usize,
    channels: (usize, usize),
}

/// Computes a tile; `WHOLE` promises that all its columns lie in the image and that it is full.
#[inline(always)]
unsafe fn pixels<V: Vector, E: Element, const KW: usize, const WHOLE: bool>(this: &Depthwise, tile: &Tile<E>) {
    let (conv, input, channels) = (&this.conv, &this.input, this.bias.len());
    let kernel_width = if KW == 0 { conv.kernel[1] } else { KW };
    let (step, tap_step) = (conv.stride[1] * input.pixel, conv.dilation[1] * input.pixel);
    let mut c = tile.channels.0;
    while c < tile.channels.1 {
        // SAFETY: the caller's; channels are padded on both sides.
        unsafe {
            let mut acc = [V::load(this.bias.as_ptr().add(c)); TILE];
            for ky in tile.rows.0..tile.rows.1 {
                let mut weights = this.weights.as_ptr().add(ky * kernel_width * channels + c);
                let mut from = tile.origin.wrapping_add(ky * conv.dilation[0] * input.row() + c);
                for kx in 0..kernel_width {
                    let w = V::load(weights);
                    for t in 0..TILE {
                        let x = tile.x.wrapping_add(t * conv.stride[1] + kx * conv.dilation[1]);
                        if WHOLE || (x < input.size[1] && t < tile.count) {
                            acc[t] = acc[t].fma(E::load(from.wrapping_add(t * step), input.quant), w);
                        }
                    }
                    weights = weights.wrapping_add(channels);
                    from = from.wrapping_add(tap_step);
                }
            }
            let (low, high) = (V::splat(this.epilogue.low), V::splat(this.epilogue.high));
            for t in 0..TILE {
                if WHOLE || t < tile.count {
                    let mut y = clamp(acc[t], low, high);
                    if let Some(function) = this.epilogue.smooth {
                        y = smooth(y, function);
                    }
                    E::store(tile.out.add(t * this.output.pixel + c), y, this.output.quant);
                }
            }
        }
        c += V::LANES;
    }
}
