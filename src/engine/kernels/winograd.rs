//! 3×3 convolutions with stride 1 in Winograd's domain: 2.25 or 4 times fewer multiplications.
//!
//! A task transforms a run of input tiles, multiplies each frequency with its packed weights, and transforms back, all in
//! its own scratch, so that only input and output pass through memory.
//!
//! # Source
//! Lavin and Gray 2015, arXiv:1509.09308, F(2×2, 3×3) and F(4×4, 3×3).

use super::conv::ConvWeights;
use super::{Context, Kernel, View, part, task_count};
use crate::engine::dispatch::dispatch;
use crate::engine::element::Element;
use crate::graph::Conv2d;
use crate::simd::epilogue::{Epilogue, clamp, smooth};
use crate::simd::product::{PanelProduct, TileShape, ZEROS, pack, packed_columns, product};
use crate::simd::winograd::{WinogradTile, input2, input4, output2, output4};
use crate::simd::{Isa, Vector};

/// Values of scratch a task aims to stay below: a second-level cache.
const SCRATCH: usize = 160 << 10;
const MACS_PER_TASK: usize = 1 << 20;
/// Weights beyond this many values are shared out between the threads instead of being read by each.
const SHARED_WEIGHTS: usize = 256 << 10;

/// A 3×3 convolution with stride 1, with what follows it.
pub(in crate::engine) struct Winograd {
    tile: WinogradTile,
    input: View,
    output: View,
    residual: Option<View>,
    /// Padding above and to the left; below and to the right it follows from the sizes.
    padding: [usize; 2],
    shape: TileShape,
    /// Frequency after frequency, each in panels.
    weights: Vec<f32>,
    bias: Vec<f32>,
    epilogue: Epilogue,
}

impl Winograd {
    /// Transforms and packs the weights `[out, in, 3, 3]`.
    pub fn new(
        (isa, tile): (Isa, WinogradTile),
        conv: Conv2d,
        weights: &ConvWeights,
        [input, output]: [View; 2],
        (residual, epilogue): (Option<View>, Epilogue),
    ) -> Self {
        let (channels, outputs, frequencies) = (input.channels, conv.out_channels, tile.frequencies());
        let shape = TileShape::of(isa);
        let mut transformed = vec![0f32; frequencies * channels * outputs];
        for (index, filter) in weights.weight.chunks_exact(9).enumerate() {
            let (out, c) = (index / channels, index % channels);
            for (f, value) in tile.transform_weights(filter).into_iter().enumerate() {
                transformed[(f * channels + c) * outputs + out] = value as f32;
            }
        }
        let packed = (0..frequencies)
            .flat_map(|f| pack(shape, channels, outputs, |c, out| transformed[(f * channels + c) * outputs + out]))
            .collect();
        let bias = weights.padded_bias(outputs);
        let padding = [conv.padding.top, conv.padding.left];
        Self { tile, input, output, residual, padding, shape, weights: packed, bias, epilogue }
    }

    /// Chunks of tiles × groups of panels.
    fn split(&self, batch: usize, threads: usize) -> (usize, usize) {
        let [rows, columns] = self.tile.grid(self.output.size);
        let tiles = batch * rows * columns;
        let most = self.most_tiles();
        let panels = self.shape.panels(self.bias.len()).len();
        let chunks = tiles.div_ceil(most);
        if threads > 1 && (self.weights.len() > SHARED_WEIGHTS || chunks < threads) && chunks < 4 * threads {
            return (chunks, threads.min(panels));
        }
        let wanted = task_count(tiles * self.weights.len(), MACS_PER_TASK, threads, tiles.div_ceil(self.shape.rows()));
        (chunks.max(wanted).next_multiple_of(wanted.min(threads)).min(tiles), 1)
    }

    /// Tiles per task at most: whole register tiles.
    fn most_tiles(&self) -> usize {
        let per_tile = self.tile.frequencies() * (self.input.pixel + self.bias.len());
        (SCRATCH / per_tile / self.shape.rows()).max(2) * self.shape.rows()
    }
}

impl Kernel for Winograd {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        let (chunks, groups) = self.split(batch, threads);
        chunks * groups
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        let (chunks, groups) = self.split(context.batch, context.threads);
        let [grid_rows, grid_columns] = self.tile.grid(self.output.size);
        let tiles = part(context.batch * grid_rows * grid_columns, task % chunks, chunks);
        let panels = part(self.shape.panels(self.bias.len()).len(), task / chunks, groups);
        if tiles.is_empty() || panels.is_empty() {
            return;
        }
        let (frequencies, count, pixel) = (self.tile.frequencies(), tiles.len(), self.input.pixel);
        let panels = || self.shape.panels(self.bias.len()).skip(panels.start).take(panels.len());
        let first_column = panels().next().map_or(0, |panel| panel.first);
        let columns: usize = panels().map(|panel| panel.width).sum();
        let per_frequency = packed_columns(self.shape, self.bias.len()) * self.input.channels;
        // Scratch: row pointers, transformed input, products.
        let table = context.scratch.cast::<*const f32>();
        // SAFETY: `scratch` counts all three; views lie in the arena.
        unsafe {
            let transformed = context.scratch.add(count.next_multiple_of(16) * 2);
            let products = transformed.add(frequencies * count * pixel);
            let work =
                Work { context, tiles: (tiles.start, count), transformed, products, columns: (first_column, columns) };
            match self.tile {
                WinogradTile::Two => dispatch!(wide context, input_tiles2(this: &Winograd = self, work: &Work = &work)),
                WinogradTile::Four => {
                    dispatch!(wide context, input_tiles4(this: &Winograd = self, work: &Work = &work))
                }
            }
            for f in 0..frequencies {
                for t in 0..count {
                    *table.add(t) = transformed.add((f * count + t) * pixel).cast_const();
                }
                for panel in panels() {
                    let product_of = PanelProduct {
                        table,
                        taps: 1,
                        inner: self.input.channels,
                        weights: self.weights.as_ptr().add(f * per_frequency + panel.first * self.input.channels),
                        panel,
                        bias: ZEROS.as_ptr(),
                        out: products.add(f * count * columns + panel.first - first_column),
                        out_stride: columns,
                        residual: std::ptr::null(),
                        residual_stride: 0,
                        epilogue: Epilogue::new(None),
                    };
                    product(context.isa, &product_of, count);
                }
            }
            match self.tile {
                WinogradTile::Two => {
                    dispatch!(wide context, output_tiles2(this: &Winograd = self, work: &Work = &work))
                }
                WinogradTile::Four => {
                    dispatch!(wide context, output_tiles4(this: &Winograd = self, work: &Work = &work))
                }
            }
        }
    }

    fn scratch(&self) -> usize {
        let tiles = self.most_tiles() + 1;
        tiles.next_multiple_of(16) * 2 + tiles * self.tile.frequencies() * (self.input.pixel + self.bias.len())
    }

    fn name(&self) -> String {
        match self.tile {
            WinogradTile::Two => "winograd 2×2".to_string(),
            WinogradTile::Four => "winograd 4×4".to_string(),
        }
    }

    fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len()) * size_of::<f32>()
    }
}

/// One task's tiles and scratch.
struct Work<'a> {
    context: &'a Context,
    /// First tile, number of tiles.
    tiles: (usize, usize),
    transformed: *mut f32,
    products: *mut f32,
    /// First output channel, number of output channels.
    columns: (usize, usize),
}

/// Transforms of whole tiles: `$n` = `$m` + 2 values per side in, `$m` out.
macro_rules! tile_transforms {
    ($m:literal, $n:literal, $input1d:ident, $output1d:ident, $inputs:ident, $outputs:ident) => {
        #[inline(always)]
        unsafe fn $inputs<V: Vector, E: Element>(this: &Winograd, work: &Work) {
            let (view, [rows, columns]) = (&this.input, this.tile.grid(this.output.size));
            let (first, count) = work.tiles;
            for t in 0..count {
                let (n, position) = ((first + t) / (rows * columns), (first + t) % (rows * columns));
                let y0 = (position / columns * $m).wrapping_sub(this.padding[0]);
                let x0 = (position % columns * $m).wrapping_sub(this.padding[1]);
                // SAFETY: only pixels inside the image are read; scratch holds every tile and frequency.
                unsafe {
                    let image = work.context.at::<E>(view, n).cast_const();
                    let mut c = 0;
                    while c < view.pixel {
                        let some = V::LANES.min(view.pixel - c);
                        let mut half = [[V::splat(0.0); $n]; $n];
                        for j in 0..$n {
                            let x = x0.wrapping_add(j);
                            if x >= view.size[1] {
                                continue;
                            }
                            let mut column = [V::splat(0.0); $n];
                            for i in 0..$n {
                                let y = y0.wrapping_add(i);
                                if y < view.size[0] {
                                    let from = image.add(y * view.row() + x * view.pixel + c);
                                    column[i] = E::load_first(from, some, view.quant);
                                }
                            }
                            let column = $input1d(column);
                            for i in 0..$n {
                                half[i][j] = column[i];
                            }
                        }
                        for i in 0..$n {
                            let row = $input1d(half[i]);
                            for j in 0..$n {
                                let to = work.transformed.add(((i * $n + j) * count + t) * view.pixel + c);
                                row[j].store_first(to, some);
                            }
                        }
                        c += V::LANES;
                    }
                }
            }
        }

        #[inline(always)]
        unsafe fn $outputs<V: Vector, E: Element>(this: &Winograd, work: &Work) {
            let (view, [rows, columns]) = (&this.output, this.tile.grid(this.output.size));
            let (first, count) = work.tiles;
            let (first_channel, channels) = work.columns;
            for t in 0..count {
                let (n, position) = ((first + t) / (rows * columns), (first + t) % (rows * columns));
                let (y0, x0) = (position / columns * $m, position % columns * $m);
                let mut c = 0;
                while c < channels {
                    let some = V::LANES.min(channels - c);
                    // SAFETY: only pixels inside the image are written; this task owns these tiles and channels.
                    unsafe {
                        let (low, high) = (V::splat(this.epilogue.low), V::splat(this.epilogue.high));
                        let bias = V::load_first(this.bias.as_ptr().add(first_channel + c), some);
                        let mut half = [[V::splat(0.0); $n]; $m];
                        for j in 0..$n {
                            let mut column = [V::splat(0.0); $n];
                            for i in 0..$n {
                                let from = work.products.add(((i * $n + j) * count + t) * channels + c);
                                column[i] = V::load_first(from, some);
                            }
                            let column = $output1d(column);
                            for i in 0..$m {
                                half[i][j] = column[i];
                            }
                        }
                        for i in 0..$m {
                            let row = $output1d(half[i]);
                            for j in 0..$m {
                                if y0 + i >= view.size[0] || x0 + j >= view.size[1] {
                                    continue;
                                }
                                let pixel = (y0 + i) * view.size[1] + x0 + j;
                                let mut y = row[j].add(bias);
                                if let Some(residual) = &this.residual {
                                    let from = work.context.at::<E>(residual, n).add(pixel * residual.pixel);
                                    y = y.add(E::load_first(from.add(first_channel + c), some, residual.quant));
                                }
                                y = clamp(y, low, high);
                                if let Some(function) = this.epilogue.smooth {
                                    y = smooth(y, function);
                                }
                                let to = work.context.at::<E>(view, n).add(pixel * view.pixel + first_channel + c);
                                E::store_first(to, y, some, view.quant);
                            }
                        }
                    }
                    c += V::LANES;
                }
            }
        }
    };
}

tile_transforms!(2, 4, input2, output2, input_tiles2, output_tiles2);
tile_transforms!(4, 6, input4, output4, input_tiles4, output_tiles4);
