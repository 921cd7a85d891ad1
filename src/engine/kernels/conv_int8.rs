//! Dense convolution and linear layer in 8 bits: rows are gathered, as the instruction set wants them, into scratch and
//! multiplied there. Where pixels already are such rows, they are multiplied where they lie.

use super::conv::ConvWeights;
use super::epilogue::Epilogue;
use super::gemm::TileShape;
use super::gemm_int8::{IntProduct, IntWeights, Target, product, tile_shape};
use super::taps::Taps;
use super::{Context, Kernel, View, part, task_count};
use crate::engine::element::Element;
use crate::engine::simd::{DotLayout, Isa, Vector, dispatch};
use crate::graph::Conv2d;

/// Multiply-accumulates that make a task worth handing out: about 10 µs.
const MACS_PER_TASK: usize = 2 << 20;
/// Bytes of gathered rows a task works on: half of a second-level cache.
const ROWS_PER_TASK: usize = 224 << 10;

/// An 8-bit convolution, with what follows it.
pub(in crate::engine) struct ConvInt8 {
    input: View,
    output: View,
    residual: Option<View>,
    taps: Taps,
    layout: DotLayout,
    /// Pixels of the input are rows of the product as they lie; weights of the channels they are padded with are zero.
    in_place: bool,
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
        let taps = Taps::new(conv, input);
        let inner = taps.count * taps.inner;
        let packed =
            IntWeights::new(isa, inner, conv.out_channels, |k, column| weights.value(&conv, input.channels, k, column));
        let layout = DotLayout::of(isa);
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
            in_place: taps.pointwise && layout == DotLayout::U8x4 && packed.groups * 4 <= input.pixel,
            weights: packed,
            input,
            output,
            residual,
            taps,
            layout,
            epilogue,
        }
    }

    fn row_bytes(&self) -> usize {
        self.weights.groups * 4
    }

    fn most_rows(&self) -> usize {
        (ROWS_PER_TASK / self.row_bytes()).max(4 * self.shape.rows())
    }

    /// Chunks of rows × groups of panels.
    fn split(&self, batch: usize, threads: usize) -> (usize, usize) {
        let rows = batch * self.output.pixels();
        let panels = self.shape.panels(self.columns).len();
        let wanted = task_count(rows * self.columns * self.row_bytes(), MACS_PER_TASK, threads, usize::MAX);
        // Few rows: threads share the panels, so that each goes over its own part of the weights only.
        if rows < wanted * 4 * self.shape.rows() {
            let chunks = rows.div_ceil(self.most_rows());
            return (chunks, wanted.div_ceil(chunks).min(panels));
        }
        (rows.div_ceil(self.most_rows()).max(wanted).next_multiple_of(wanted), 1)
    }
}

impl Kernel for ConvInt8 {
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
        let panels = part(self.shape.panels(self.columns).len(), task / chunks, groups);
        let bytes = if self.target == Target::Real { size_of::<f32>() } else { 1 };
        // SAFETY: the plan's: views lie in the arena; row `rows.start` of the output is in it.
        unsafe {
            let (first_row, row_bytes) = if self.in_place {
                (context.at::<u8>(&self.input, 0).add(rows.start * self.input.pixel).cast_const(), self.input.pixel)
            } else {
                let pixels = (rows.start, rows.end);
                dispatch!(context, gather(this: &ConvInt8 = self, context: &Context = context, pixels: (usize, usize) = pixels));
                (context.scratch.cast::<u8>().cast_const(), self.row_bytes())
            };
            for panel in self.shape.panels(self.columns).skip(panels.start).take(panels.len()) {
                let (first, residual) = (panel.first, self.residual.as_ref());
                let out = context.arena.cast::<u8>().add(self.output.offset);
                let product_of = IntProduct {
                    rows: first_row,
                    row_bytes,
                    groups: self.weights.groups,
                    weights: self.weights.packed.as_ptr().add(first * self.row_bytes()),
                    panel,
                    start: self.start.as_ptr().add(first),
                    scale: self.scale.as_ptr().add(first),
                    bias: self.bias.as_ptr().add(first),
                    out: out.add((rows.start * self.output.pixel + first) * bytes),
                    out_stride: self.output.pixel,
                    target: self.target,
                    residual: residual.map_or(std::ptr::null(), |view| {
                        context.at::<u8>(view, 0).add(rows.start * view.pixel + first).cast_const()
                    }),
                    residual_stride: residual.map_or(0, |view| view.pixel),
                    residual_quant: residual.map_or(self.input.quant, |view| view.quant),
                    epilogue: self.epilogue,
                };
                product(context.isa, &product_of, rows.len());
            }
        }
    }

    fn scratch(&self) -> usize {
        if self.in_place {
            return 0;
        }
        (self.most_rows() + 1) * self.weights.groups
    }

    fn name(&self) -> String {
        "int8".to_string()
    }

    fn weight_bytes(&self) -> usize {
        self.weights.bytes() + (self.start.len() + self.scale.len() + self.bias.len()) * size_of::<f32>()
    }
}

/// Writes the rows of output pixels `first..end` to scratch.
#[inline(always)]
unsafe fn gather<V: Vector, E: Element>(this: &ConvInt8, context: &Context, (first, end): (usize, usize)) {
    let (inner, zero, layout) = (this.taps.inner, this.input.quant.zero, this.layout);
    let mut row = context.scratch.cast::<u8>();
    for pixel in first..end {
        // SAFETY: scratch holds `most_rows` rows; sources lie in the image.
        unsafe {
            // The last group may be longer than what is left for it.
            row.add(this.row_bytes() - 4).cast::<[u8; 4]>().write([0; 4]);
            let mut to = row;
            this.taps.each::<u8>(context, (&this.input, &this.output), pixel, |source| {
                match layout {
                    DotLayout::U8x4 if source.is_null() => to.write_bytes(zero, inner),
                    DotLayout::U8x4 => copy_bytes(source, to, inner),
                    DotLayout::I8x4 => stored(source, zero, (to, inner), |q| q ^ 0x80),
                    DotLayout::I16x2 | DotLayout::I16x2Split => {
                        stored(source, zero, (to.cast::<u16>(), inner), u16::from);
                    }
                }
                to = to.add(inner * layout.bytes());
            });
            row = row.add(this.row_bytes());
        }
    }
}

/// A run of the image, or of zeros where `source` is null, as the instruction set wants it.
///
/// # Safety
/// `to` takes `inner` values; `source` is null or has as many.
#[inline(always)]
unsafe fn stored<T: Copy>(source: *const u8, zero: u8, (to, inner): (*mut T, usize), value: impl Fn(u8) -> T) {
    // SAFETY: the caller's.
    unsafe {
        let to = std::slice::from_raw_parts_mut(to, inner);
        if source.is_null() {
            return to.fill(value(zero));
        }
        to.iter_mut().zip(std::slice::from_raw_parts(source, inner)).for_each(|(to, q)| *to = value(*q));
    }
}

/// Copies a run in blocks of a fixed size, the last one overlapping the one before: runs are so short that a call of
/// `memcpy` costs more than the copy.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`].
#[inline(always)]
unsafe fn copy_bytes(from: *const u8, to: *mut u8, count: usize) {
    /// # Safety
    /// The caller's, and `count` is at least `SIZE`.
    #[inline(always)]
    unsafe fn blocks<const SIZE: usize>(from: *const u8, to: *mut u8, count: usize) {
        let mut at = 0;
        while at < count {
            let start = at.min(count - SIZE);
            // SAFETY: the caller's; `start + SIZE` is at most `count`.
            unsafe {
                to.add(start)
                    .cast::<[u8; SIZE]>()
                    .write_unaligned(from.add(start).cast::<[u8; SIZE]>().read_unaligned())
            }
            at += SIZE;
        }
    }
    // SAFETY: the caller's.
    unsafe {
        match count {
            0..4 => (0..count).for_each(|i| *to.add(i) = *from.add(i)),
            4..8 => blocks::<4>(from, to, count),
            8..16 => blocks::<8>(from, to, count),
            16..32 => blocks::<16>(from, to, count),
            _ => blocks::<32>(from, to, count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::copy_bytes;

    #[test]
    fn every_length_is_copied_and_nothing_beyond() {
        let from: Vec<u8> = (1..=100).collect();
        for count in 0..=from.len() {
            let mut to = vec![0; 101];
            // SAFETY: both are longer than `count`.
            unsafe { copy_bytes(from.as_ptr(), to.as_mut_ptr(), count) };
            assert_eq!(to[..count], from[..count]);
            assert!(to[count..].iter().all(|&byte| byte == 0));
        }
    }
}
