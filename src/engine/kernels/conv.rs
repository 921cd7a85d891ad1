//! Dense convolution and linear layer as a product of gathered rows with packed weights.

use super::epilogue::Epilogue;
use super::gemm::{MAX_ROWS, PanelProduct, TileShape, pack, product, split_rows};
use super::{Context, Kernel, View, part, task_count};
use crate::engine::simd::{Isa, padded};
use crate::graph::Conv2d;

/// Multiply-accumulates that make a task worth handing out: about 10 µs.
const MACS_PER_TASK: usize = 1 << 20;
/// Values of the input a task goes over again for every panel: half of a second-level cache.
const INPUT_PER_TASK: usize = 48 << 10;

/// A dense layer's weights as the graph has them, the batch normalisation folded in.
pub(in crate::engine) struct ConvWeights<'a> {
    /// `[out, in / groups, kh, kw]`.
    pub weight: &'a [f32],
    /// `[out]`.
    pub bias: Option<&'a [f32]>,
}

impl ConvWeights<'_> {
    /// The bias, padded.
    pub fn padded_bias(&self, channels: usize) -> Vec<f32> {
        let mut bias = self.bias.map_or_else(Vec::new, <[f32]>::to_vec);
        bias.resize(padded(channels), 0.0);
        bias
    }
}

/// A convolution, with what follows it.
pub(in crate::engine) struct Conv {
    input: View,
    output: View,
    residual: Option<View>,
    conv: Conv2d,
    /// Pointers per output pixel and values behind each.
    taps: usize,
    inner: usize,
    /// A row of the kernel is one run of values: pixels without channel padding, and the padding is in the margin.
    merged: bool,
    shape: TileShape,
    weights: Vec<f32>,
    bias: Vec<f32>,
    epilogue: Epilogue,
    /// What a tap outside the image reads.
    zeros: Vec<f32>,
}

impl Conv {
    /// Packs a convolution for `isa`. If the input has a margin, it must be the convolution's padding, its pixels as wide
    /// as the channels, and the dilation 1.
    pub fn new(
        isa: Isa,
        conv: Conv2d,
        weights: &ConvWeights,
        [input, output]: [View; 2],
        (residual, epilogue): (Option<View>, Epilogue),
    ) -> Self {
        let [kh, kw] = conv.kernel;
        let channels = input.channels;
        let p = conv.padding;
        let merged =
            input.pixel == channels && conv.dilation == [1, 1] && input.margin == [p.top, p.bottom, p.left, p.right];
        let (taps, inner) = if merged { (kh, kw * channels) } else { (kh * kw, channels) };
        let shape = TileShape::of(isa);
        let per_group = channels / conv.groups;
        let outputs = conv.out_channels / conv.groups;
        let value = |k: usize, column: usize| {
            let (tap, c) = (k / channels, k % channels);
            // Grouped convolutions are dense ones with zeros between the groups.
            if c / per_group != column / outputs {
                return 0.0;
            }
            weights.weight[(column * per_group + c % per_group) * kh * kw + tap]
        };
        Self {
            input,
            output,
            residual,
            conv,
            taps,
            inner,
            merged,
            shape,
            weights: pack(shape, kh * kw * channels, conv.out_channels, value),
            bias: weights.padded_bias(conv.out_channels),
            epilogue,
            zeros: vec![0.0; inner],
        }
    }

    /// Rows per task and groups of panels: tasks are `row chunks × panel groups`.
    fn split(&self, batch: usize, threads: usize) -> (usize, usize) {
        let rows = batch * self.output.pixels();
        let columns = padded(self.conv.out_channels);
        let panels = self.shape.panels(columns).count();
        let macs = rows * columns * self.taps * self.inner;
        let wanted = task_count(macs, MACS_PER_TASK, threads, usize::MAX);
        let reach = self.conv.stride[0] * self.conv.stride[1] * self.input.pixel;
        let most_rows = (INPUT_PER_TASK / reach).max(8 * self.shape.rows);
        // Few rows: threads share the panels, so that each goes over its own part of the weights only.
        if rows < wanted * 4 * self.shape.rows {
            let chunks = rows.div_ceil(most_rows);
            return (chunks, wanted.div_ceil(chunks).min(panels));
        }
        (rows.div_ceil(most_rows).max(wanted).next_multiple_of(wanted), 1)
    }

    /// Fills the table of row pointers of output pixels `rows`, in blocks as [`split_rows`] cuts them.
    unsafe fn gather(&self, context: &Context, rows: std::ops::Range<usize>, tile_rows: usize) {
        let mut entry = context.scratch.cast::<*const f32>();
        let mut pixel = rows.start;
        for (size, blocks) in split_rows(rows.len(), tile_rows) {
            for _ in 0..blocks {
                // SAFETY: `scratch` says how long the table gets; the pixels are the output's.
                unsafe {
                    for r in 0..size {
                        self.pointers(context, pixel + r, (entry.add(r), size));
                    }
                    entry = entry.add(size * self.taps);
                }
                pixel += size;
            }
        }
    }

    /// Writes the pointers of one output pixel, one per tap, `step` entries apart.
    #[inline]
    unsafe fn pointers(&self, context: &Context, pixel: usize, (mut entry, step): (*mut *const f32, usize)) {
        let (view, conv) = (&self.input, &self.conv);
        let [_, width] = self.output.size;
        let (n, rest) = (pixel / self.output.pixels(), pixel % self.output.pixels());
        let (oy, ox) = (rest / width, rest % width);
        // SAFETY: in the image, or the zero row.
        unsafe {
            let image = context.at(view, n).cast_const();
            if self.merged {
                let start = image.add(ox * conv.stride[1] * view.pixel);
                for ky in 0..conv.kernel[0] {
                    *entry = start.add((oy * conv.stride[0] + ky) * view.row());
                    entry = entry.add(step);
                }
                return;
            }
            for ky in 0..conv.kernel[0] {
                let y = (oy * conv.stride[0] + ky * conv.dilation[0]).wrapping_sub(conv.padding.top);
                for kx in 0..conv.kernel[1] {
                    let x = (ox * conv.stride[1] + kx * conv.dilation[1]).wrapping_sub(conv.padding.left);
                    let inside = y < view.size[0] && x < view.size[1];
                    let row = image.wrapping_add(y.wrapping_mul(view.row()).wrapping_add(x.wrapping_mul(view.pixel)));
                    *entry = if inside { row } else { self.zeros.as_ptr() };
                    entry = entry.add(step);
                }
            }
        }
    }
}

impl Kernel for Conv {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        let (chunks, groups) = self.split(batch, threads);
        chunks * groups
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        let (chunks, groups) = self.split(context.batch, context.threads);
        let rows = part(context.batch * self.output.pixels(), task % chunks, chunks);
        if rows.is_empty() {
            return;
        }
        let columns = padded(self.conv.out_channels);
        let panels = part(self.shape.panels(columns).count(), task / chunks, groups);
        let inner = self.taps * self.inner;
        let mut table_for = 0;
        for (first, width) in self.shape.panels(columns).skip(panels.start).take(panels.len()) {
            let tile_rows = self.shape.rows_for(width);
            // SAFETY: the plan's: views lie in the arena; row `rows.start` of the output is in it.
            unsafe {
                if table_for != tile_rows {
                    self.gather(context, rows.clone(), tile_rows);
                    table_for = tile_rows;
                }
                let pixel = |view: &View| context.arena.add(view.offset + rows.start * view.pixel + first);
                let residual = self.residual.as_ref();
                let panel = PanelProduct {
                    table: context.scratch.cast(),
                    taps: self.taps,
                    inner: self.inner,
                    weights: self.weights.as_ptr().add(first * inner),
                    width,
                    bias: self.bias.as_ptr().add(first),
                    out: pixel(&self.output),
                    out_stride: self.output.pixel,
                    residual: residual.map_or(std::ptr::null(), |view| pixel(view).cast_const()),
                    residual_stride: residual.map_or(0, |view| view.pixel),
                    epilogue: self.epilogue,
                };
                product(context.isa, &panel, rows.len());
            }
        }
    }

    fn scratch(&self) -> usize {
        let reach = self.conv.stride[0] * self.conv.stride[1] * self.input.pixel;
        let rows = (INPUT_PER_TASK / reach).max(8 * self.shape.rows) + MAX_ROWS;
        rows * self.taps * (size_of::<*const f32>() / size_of::<f32>())
    }

    fn name(&self) -> String {
        if self.conv.kernel == [1, 1] { "gemm".to_string() } else { "direct".to_string() }
    }

    fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len()) * size_of::<f32>()
    }
}
