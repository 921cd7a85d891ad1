//! Dense convolution and linear layer as a product of gathered rows with packed weights.

use super::taps::Taps;
use super::{Context, Kernel, View, part, task_count};
use crate::graph::Conv2d;
use crate::simd::epilogue::Epilogue;
use crate::simd::product::{MAX_ROWS, Panel, PanelProduct, TileShape, pack, product, split_rows};
use crate::simd::{Isa, padded};

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
    /// The weight of output `column` at position `k` of an output pixel's runs (see [`Taps`]), over `channels` inputs.
    /// Grouped convolutions are dense ones with zeros between the groups.
    pub fn value(&self, conv: &Conv2d, channels: usize, k: usize, column: usize) -> f32 {
        let (per_group, outputs) = (channels / conv.groups, conv.out_channels / conv.groups);
        let (tap, c) = (k / channels, k % channels);
        if c / per_group != column / outputs {
            return 0.0;
        }
        self.weight[(column * per_group + c % per_group) * conv.kernel[0] * conv.kernel[1] + tap]
    }

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
    taps: Taps,
    shape: TileShape,
    weights: Vec<f32>,
    bias: Vec<f32>,
    epilogue: Epilogue,
    /// What a tap outside the image reads.
    zeros: Vec<f32>,
}

impl Conv {
    /// Packs a convolution for `isa`; `input` as for [`Taps::new`].
    pub fn new(
        isa: Isa,
        conv: Conv2d,
        weights: &ConvWeights,
        [input, output]: [View; 2],
        (residual, epilogue): (Option<View>, Epilogue),
    ) -> Self {
        let (taps, shape) = (Taps::new(conv, input), TileShape::of(isa));
        let value = |k: usize, column: usize| weights.value(&conv, input.channels, k, column);
        Self {
            input,
            output,
            residual,
            conv,
            shape,
            weights: pack(shape, taps.count * taps.inner, conv.out_channels, value),
            bias: weights.padded_bias(conv.out_channels),
            epilogue,
            zeros: vec![0.0; taps.inner],
            taps,
        }
    }

    /// Rows per task and groups of panels: tasks are `row chunks × panel groups`.
    fn split(&self, batch: usize, threads: usize) -> (usize, usize) {
        let rows = batch * self.output.pixels();
        let columns = padded(self.conv.out_channels);
        let panels = self.shape.panels(columns).len();
        let macs = rows * columns * self.taps.count * self.taps.inner;
        let wanted = task_count(macs, MACS_PER_TASK, threads, usize::MAX);
        let reach = self.taps.reach(&self.input);
        let most_rows = (INPUT_PER_TASK / reach).max(8 * self.shape.rows());
        // Few rows: threads share the panels, so that each goes over its own part of the weights only.
        if rows < wanted * 4 * self.shape.rows() {
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
                        let mut to = entry.add(r);
                        self.taps.each::<f32>(context, (&self.input, &self.output), pixel + r, |source| {
                            *to = if source.is_null() { self.zeros.as_ptr() } else { source };
                            to = to.add(size);
                        });
                    }
                    entry = entry.add(size * self.taps.count);
                }
                pixel += size;
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
        let panels = part(self.shape.panels(columns).len(), task / chunks, groups);
        let inner = self.taps.count * self.taps.inner;
        let mut table_for = 0;
        for panel in self.shape.panels(columns).skip(panels.start).take(panels.len()) {
            let Panel { first, rows: tile_rows, .. } = panel;
            // SAFETY: the plan's: views lie in the arena; row `rows.start` of the output is in it.
            unsafe {
                if table_for != tile_rows {
                    self.gather(context, rows.clone(), tile_rows);
                    table_for = tile_rows;
                }
                let pixel = |view: &View| context.arena.add(view.offset + rows.start * view.pixel + first);
                let residual = self.residual.as_ref();
                let product_of = PanelProduct {
                    table: context.scratch.cast(),
                    taps: self.taps.count,
                    inner: self.taps.inner,
                    weights: self.weights.as_ptr().add(first * inner),
                    panel,
                    bias: self.bias.as_ptr().add(first),
                    out: pixel(&self.output),
                    out_stride: self.output.pixel,
                    residual: residual.map_or(std::ptr::null(), |view| pixel(view).cast_const()),
                    residual_stride: residual.map_or(0, |view| view.pixel),
                    epilogue: self.epilogue,
                };
                product(context.isa, &product_of, rows.len());
            }
        }
    }

    fn scratch(&self) -> usize {
        let reach = self.taps.reach(&self.input);
        let rows = (INPUT_PER_TASK / reach).max(8 * self.shape.rows()) + MAX_ROWS;
        rows * self.taps.count * (size_of::<*const f32>() / size_of::<f32>())
    }

    fn name(&self) -> String {
        if self.conv.kernel == [1, 1] { "gemm".to_string() } else { "direct".to_string() }
    }

    fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len()) * size_of::<f32>()
    }
}
