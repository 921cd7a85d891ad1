//! Dense convolution and linear layer in 8 bits.

use super::band::Band;
use super::conv::ConvWeights;
use super::epilogue::Epilogue;
use super::gemm::TileShape;
use super::gemm_int8::{IntProduct, IntWeights, Target, product, tile_shape};
use super::{Context, Kernel, View, part, task_count};
use crate::engine::simd::{DotLayout, Isa};
use crate::graph::Conv2d;

/// Multiply-accumulates that make a task worth handing out: about 10 µs.
const MACS_PER_TASK: usize = 2 << 20;
/// Bytes of input a task goes over again for every panel: half of a second-level cache.
const INPUT_PER_TASK: usize = 224 << 10;

/// An 8-bit convolution, with what follows it.
pub(in crate::engine) struct ConvInt8 {
    input: View,
    output: View,
    residual: Option<View>,
    band: Band,
    layout: DotLayout,
    shape: TileShape,
    weights: IntWeights,
    /// Makes up for the zero point of the input, per packed column.
    start: Vec<i32>,
    /// Real size of one unit of a sum, per packed column.
    scale: Vec<f32>,
    bias: Vec<f32>,
    target: Target,
    epilogue: Epilogue,
    columns: usize,
}

impl ConvInt8 {
    /// Quantises and packs a convolution for `isa`; `real` makes it write f32 values.
    pub fn new(
        (isa, real): (Isa, bool),
        conv: Conv2d,
        weights: &ConvWeights,
        [input, output]: [View; 2],
        (residual, epilogue): (Option<View>, Epilogue),
    ) -> Self {
        let layout = DotLayout::of(isa);
        let band = Band::new(conv, [input, output], layout);
        let packed = IntWeights::new(isa, band.inner(), conv.out_channels, |k, column| {
            band.source(k).map_or(0.0, |k| weights.value(&conv, input.channels, k, column))
        });
        let zero = i32::from(input.quant.zero) - layout.offset();
        let mut bias = weights.padded_bias(conv.out_channels);
        bias.resize(packed.sums.len(), 0.0);
        Self {
            start: packed.sums.iter().map(|sum| -zero * sum).collect(),
            scale: packed.scale.iter().map(|scale| scale * input.quant.scale).collect(),
            bias,
            target: if real { Target::Real } else { Target::Quantized(output.quant) },
            columns: conv.out_channels.next_multiple_of(crate::engine::simd::CHANNEL_BLOCK),
            shape: tile_shape(isa),
            weights: packed,
            input,
            output,
            residual,
            band,
            layout,
            epilogue,
        }
    }

    fn most_rows(&self) -> usize {
        (INPUT_PER_TASK / (self.band.reach() * self.layout.bytes())).max(4 * self.shape.rows())
    }

    /// Stretches of pixels that tasks cut: images, or the batch as one; and pixels of each.
    fn stretches(&self, batch: usize) -> (usize, usize) {
        if self.band.pointwise { (1, batch * self.output.pixels()) } else { (batch, self.output.pixels()) }
    }

    /// Chunks of each stretch × groups of panels.
    fn split(&self, batch: usize, threads: usize) -> (usize, usize) {
        let (stretches, rows) = self.stretches(batch);
        let panels = self.shape.panels(self.columns).len();
        let macs = stretches * rows * self.columns * self.weights.groups * self.layout.group();
        let wanted = task_count(macs, MACS_PER_TASK, threads, usize::MAX);
        let each = wanted.div_ceil(stretches);
        let least = rows.div_ceil(self.most_rows());
        // Few rows: threads share the panels, so that each goes over its own part of the weights only.
        if rows < each * 4 * self.shape.rows() {
            return (least, each.div_ceil(least).min(panels));
        }
        (least.max(each).next_multiple_of(each), 1)
    }
}

impl Kernel for ConvInt8 {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        let (chunks, groups) = self.split(batch, threads);
        self.stretches(batch).0 * chunks * groups
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        let (stretches, pixels) = self.stretches(context.batch);
        let (chunks, groups) = self.split(context.batch, context.threads);
        let (n, chunk, group) = (task % stretches, task / stretches % chunks, task / stretches / chunks);
        let rows = part(pixels, chunk, chunks);
        if rows.is_empty() {
            return;
        }
        let panels = part(self.shape.panels(self.columns).len(), group, groups);
        let bytes = if self.target == Target::Real { size_of::<f32>() } else { 1 };
        let first_row = n * pixels + rows.start;
        // SAFETY: the plan's: views lie in the arena; row `first_row` of the output is in it; `scratch` has room for
        // the places and the band behind them.
        unsafe {
            let places = std::slice::from_raw_parts_mut(context.scratch.cast::<usize>(), rows.len());
            let band = places.as_mut_ptr().add(rows.len()).cast();
            let input = self.band.ready(context, (n, rows.start, rows.end), places, band);
            for panel in self.shape.panels(self.columns).skip(panels.start).take(panels.len()) {
                let (first, residual) = (panel.first, self.residual.as_ref());
                let out = context.arena.cast::<u8>().add(self.output.offset);
                let product_of = IntProduct {
                    input,
                    places,
                    taps: &self.band.taps,
                    groups: self.band.groups,
                    weights: self.weights.packed.as_ptr().add(first * self.weights.groups * 4),
                    panel,
                    start: self.start.as_ptr().add(first),
                    scale: self.scale.as_ptr().add(first),
                    bias: self.bias.as_ptr().add(first),
                    out: out.add((first_row * self.output.pixel + first) * bytes),
                    out_stride: self.output.pixel,
                    target: self.target,
                    residual: residual.map_or(std::ptr::null(), |view| {
                        context.at::<u8>(view, 0).add(first_row * view.pixel + first).cast_const()
                    }),
                    residual_stride: residual.map_or(0, |view| view.pixel),
                    residual_quant: residual.map_or(self.input.quant, |view| view.quant),
                    epilogue: self.epilogue,
                };
                product(context.isa, &product_of);
            }
        }
    }

    fn scratch(&self) -> usize {
        let most = if self.band.pointwise { usize::MAX } else { self.output.pixels() };
        let rows = self.most_rows().min(most);
        (rows * size_of::<usize>() + self.band.bytes(rows)).div_ceil(size_of::<f32>())
    }

    fn name(&self) -> String {
        "int8".to_string()
    }

    fn weight_bytes(&self) -> usize {
        self.weights.bytes() + (self.start.len() + self.scale.len() + self.bias.len()) * size_of::<f32>()
    }
}
