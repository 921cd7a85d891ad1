//! Depthwise convolution, vectorised over channels.

use super::conv::ConvWeights;
use super::{Context, Kernel, View, part, task_count};
use crate::engine::dispatch::dispatch;
use crate::engine::element::Element;
use crate::graph::Conv2d;
use crate::simd::epilogue::{Epilogue, clamp, smooth};
use crate::simd::{CHANNEL_BLOCK, Vector, padded};

/// Output pixels of a row computed together, so that weights and columns are loaded once for all of them. Maps are
/// mostly 7·2ⁿ wide.
const TILE: usize = 7;
const MACS_PER_TASK: usize = 1 << 17;
/// Input values under the kernel's rows that stay in the first-level cache while a task goes down its rows.
const INPUT_PER_BLOCK: usize = 6 << 10;
/// Fewer channels make runs too short to be fetched ahead.
const LEAST_CHANNELS: usize = 64;

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
            match (self.conv.kernel[1], self.conv.stride[1], self.conv.dilation[1]) {
                (3, 1, 1) => {
                    dispatch!(wide context, rows3(this: &Depthwise = self, context: &Context = context, rows: (usize, usize) = rows));
                }
                (3, 2, 1) => {
                    dispatch!(wide context, rows3_by2(this: &Depthwise = self, context: &Context = context, rows: (usize, usize) = rows));
                }
                (5, 1, 1) => {
                    dispatch!(wide context, rows5(this: &Depthwise = self, context: &Context = context, rows: (usize, usize) = rows));
                }
                (5, 2, 1) => {
                    dispatch!(wide context, rows5_by2(this: &Depthwise = self, context: &Context = context, rows: (usize, usize) = rows));
                }
                _ => {
                    dispatch!(context, rows_any(this: &Depthwise = self, context: &Context = context, rows: (usize, usize) = rows));
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
    unsafe { output_rows::<V, E, 3, 1>(this, context, rows) }
}

#[inline(always)]
unsafe fn rows3_by2<V: Vector, E: Element>(this: &Depthwise, context: &Context, rows: (usize, usize)) {
    // SAFETY: the caller's.
    unsafe { output_rows::<V, E, 3, 2>(this, context, rows) }
}

#[inline(always)]
unsafe fn rows5<V: Vector, E: Element>(this: &Depthwise, context: &Context, rows: (usize, usize)) {
    // SAFETY: the caller's.
    unsafe { output_rows::<V, E, 5, 1>(this, context, rows) }
}

#[inline(always)]
unsafe fn rows5_by2<V: Vector, E: Element>(this: &Depthwise, context: &Context, rows: (usize, usize)) {
    // SAFETY: the caller's.
    unsafe { output_rows::<V, E, 5, 2>(this, context, rows) }
}

#[inline(always)]
unsafe fn rows_any<V: Vector, E: Element>(this: &Depthwise, context: &Context, rows: (usize, usize)) {
    // SAFETY: the caller's.
    unsafe { output_rows::<V, E, 0, 0>(this, context, rows) }
}

/// Some output rows, counted over the batch, for a kernel `KW` columns wide and horizontal stride `S` (0: any).
#[inline(always)]
unsafe fn output_rows<V: Vector, E: Element, const KW: usize, const S: usize>(
    this: &Depthwise,
    context: &Context,
    rows: (usize, usize),
) {
    let (conv, input, output, channels) = (&this.conv, &this.input, &this.output, this.bias.len());
    let block =
        (INPUT_PER_BLOCK / (conv.kernel[0] * input.size[1])).max(LEAST_CHANNELS).next_multiple_of(2 * CHANNEL_BLOCK);
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
                        pixels::<V, E, KW, S, true>(this, &tile);
                    } else {
                        pixels::<V, E, KW, S, false>(this, &tile);
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
unsafe fn pixels<V: Vector, E: Element, const KW: usize, const S: usize, const WHOLE: bool>(
    this: &Depthwise,
    tile: &Tile<E>,
) {
    let (conv, input) = (&this.conv, &this.input);
    let mut c = tile.channels.0;
    while c < tile.channels.1 {
        let some = V::LANES.min(tile.channels.1 - c);
        // SAFETY: the caller's; channels are padded on both sides.
        unsafe {
            let mut acc = [V::load_first(this.bias.as_ptr().add(c), some); TILE];
            for ky in tile.rows.0..tile.rows.1 {
                let from = tile.origin.wrapping_add(ky * conv.dilation[0] * input.row() + c);
                let line = Line { from, ky, c, some };
                if S == 1 {
                    shared_line::<V, E, KW, WHOLE>(this, tile, line, &mut acc);
                } else {
                    any_line::<V, E, KW, S, WHOLE>(this, tile, line, &mut acc);
                }
            }
            let (low, high) = (V::splat(this.epilogue.low), V::splat(this.epilogue.high));
            for t in 0..TILE {
                if WHOLE || t < tile.count {
                    let mut y = clamp(acc[t], low, high);
                    if let Some(function) = this.epilogue.smooth {
                        y = smooth(y, function);
                    }
                    E::store_first(tile.out.add(t * this.output.pixel + c), y, some, this.output.quant);
                }
            }
        }
        c += V::LANES;
    }
}

/// One kernel row over some channels of a tile.
struct Line<E> {
    /// Where the first tap of the first pixel reads.
    from: *const E,
    ky: usize,
    /// First channel, number of channels.
    c: usize,
    some: usize,
}

/// Adds a kernel row of stride 1: every input column is loaded once and goes to all pixels that want it.
#[inline(always)]
unsafe fn shared_line<V: Vector, E: Element, const KW: usize, const WHOLE: bool>(
    this: &Depthwise,
    tile: &Tile<E>,
    line: Line<E>,
    acc: &mut [V; TILE],
) {
    let (input, channels) = (&this.input, this.bias.len());
    // SAFETY: the caller's; columns outside the image are left out.
    unsafe {
        let mut weights = [V::splat(0.0); KW];
        for (kx, weight) in weights.iter_mut().enumerate() {
            let at = this.weights.as_ptr().add((line.ky * KW + kx) * channels + line.c);
            *weight = V::load_first(at, line.some);
        }
        for column in 0..TILE - 1 + KW {
            if WHOLE || tile.x.wrapping_add(column) < input.size[1] {
                let value: V = E::load_first(line.from.wrapping_add(column * input.pixel), line.some, input.quant);
                for t in 0..TILE {
                    if let Some(&weight) = column.checked_sub(t).and_then(|kx| weights.get(kx)) {
                        acc[t] = acc[t].fma(value, weight);
                    }
                }
            }
        }
    }
}

/// Adds a kernel row of any stride and dilation.
#[inline(always)]
unsafe fn any_line<V: Vector, E: Element, const KW: usize, const S: usize, const WHOLE: bool>(
    this: &Depthwise,
    tile: &Tile<E>,
    line: Line<E>,
    acc: &mut [V; TILE],
) {
    let (conv, input, channels) = (&this.conv, &this.input, this.bias.len());
    let (kernel_width, stride, dilation) =
        if KW == 0 { (conv.kernel[1], conv.stride[1], conv.dilation[1]) } else { (KW, S, 1) };
    for kx in 0..kernel_width {
        // SAFETY: the caller's; columns outside the image are left out.
        unsafe {
            let weight = this.weights.as_ptr().add((line.ky * kernel_width + kx) * channels + line.c);
            let weight = V::load_first(weight, line.some);
            for t in 0..TILE {
                let column = t * stride + kx * dilation;
                if WHOLE || (tile.x.wrapping_add(column) < input.size[1] && t < tile.count) {
                    let value: V = E::load_first(line.from.wrapping_add(column * input.pixel), line.some, input.quant);
                    acc[t] = acc[t].fma(value, weight);
                }
            }
        }
    }
}
