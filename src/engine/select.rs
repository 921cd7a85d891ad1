//! Which algorithm a convolution gets.

use super::kernels::View;
use crate::graph::Conv2d;
use crate::simd::product::TileShape;
use crate::simd::winograd::WinogradTile;
use crate::simd::{CHANNEL_BLOCK, Isa};

/// The Winograd tile for a convolution, or `None` where the direct product is faster or the only way.
///
/// The estimate counts, per output: products of the register tiles, traffic of the transforms, and reading the transformed
/// weights, which are larger than the filters.
pub(super) fn winograd_tile(conv: &Conv2d, input: &View, output: &View) -> Option<WinogradTile> {
    let plain = conv.kernel == [3, 3] && conv.stride == [1, 1] && conv.dilation == [1, 1] && conv.groups == 1;
    let padding = conv.padding;
    if !plain || input.margin != [0; 4] || padding.top > 1 || padding.left > 1 {
        return None;
    }
    let (c, k) = (input.channels, output.channels);
    let direct = (9 * c * k * output.pixels()) as f64 + WEIGHT * (9 * c * k) as f64;
    let cost = |tile: WinogradTile| {
        let [rows, columns] = tile.grid(output.size);
        let (tiles, f) = (rows * columns, tile.frequencies());
        (tiles * f * c * k) as f64
            + TRANSFORM * (tiles * f * (input.pixel + output.pixel)) as f64
            + WEIGHT * (f * c * k) as f64
    };
    let best = [WinogradTile::Two, WinogradTile::Four].into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b)))?;
    (cost(best) < 0.95 * direct).then_some(best)
}

impl Isa {
    /// Channels that kernels take at a time: of inputs, and of the outputs of dense layers.
    pub const fn channel_blocks(self) -> [usize; 2] {
        [CHANNEL_BLOCK, TileShape::of(self).unit()]
    }
}

/// Multiply-accumulates in the time of moving one transformed value in and out.
const TRANSFORM: f64 = 10.0;
/// Multiply-accumulates in the time of reading one weight from beyond the second-level cache.
const WEIGHT: f64 = 24.0;
