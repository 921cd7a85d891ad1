//! Which products of a dense convolution in f32 have a faster way than gathering and the general matrix product.
//!
//! Each function gives `None` where there is none: other element types, groups, widths that are no multiple of a vector's.

use super::{Built, Geometry, panels, winograd};
use crate::nn::simd::Element;

/// The convolution.
pub(super) fn forward<T: Element>(
    g: &Geometry,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    for_norm: bool,
) -> Option<Built<T>> {
    let (x, weight, bias) = (T::singles(x)?, T::singles(weight)?, bias.map(T::singles));
    let bias = match bias {
        Some(bias) => Some(bias?),
        None => None,
    };
    let y = winograd::forward(g, x, weight, bias, for_norm);
    let Built { values, moments } = y.or_else(|| panels::forward(g, x, weight, bias, for_norm))?;
    Some(Built { values: T::from_singles(values)?, moments })
}

/// The gradient of its input.
pub(super) fn input_gradient<T: Element>(g: &Geometry, weight: &[T], dy: &[T]) -> Option<Vec<T>> {
    let (weight, dy) = (T::singles(weight)?, T::singles(dy)?);
    winograd::input_gradient(g, weight, dy).or_else(|| panels::input_gradient(g, weight, dy)).and_then(T::from_singles)
}

/// The gradient of its weight.
pub(super) fn weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T]) -> Option<Vec<T>> {
    winograd::weight_gradient(g, T::singles(x)?, T::singles(dy)?).and_then(T::from_singles)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Conv2d, Padding};
    use crate::nn::backend::Dims;
    use crate::nn::conv::dense;
    use crate::nn::testing::assert_near;
    use crate::rng::Rng;

    /// Of the largest value: Winograd's transforms cost two digits of f32's seven.
    const TOLERANCE: f64 = 2e-5;

    #[test]
    fn every_way_gives_what_double_precision_gives() {
        let mut shifted = Conv2d::new(16, 3);
        shifted.padding = Padding { top: 2, bottom: 0, left: 0, right: 1 };
        let cases = [
            (3, 16, [19, 20], Conv2d::new(24, 3).padding(1)),
            (2, 24, [25, 22], shifted),
            (4, 32, [7, 7], Conv2d::new(32, 3).padding(1)),
            (2, 3, [11, 9], Conv2d::new(8, 3).padding(1).stride(2)),
            (2, 16, [11, 9], Conv2d::new(40, 3).padding(1).stride(2)),
            (2, 24, [5, 6], Conv2d::new(16, 1)),
            (1, 40, [3, 2], Conv2d::new(8, 1).stride(2)),
            (40, 24, [5, 6], Conv2d::new(56, 1)),
        ];
        let mut by_winograd = 0;
        for (batch, channels, size, conv) in cases {
            let g = Geometry::new(Dims { batch, channels, size }, &conv).unwrap();
            let mut rng = Rng::new(7);
            let mut values = |len: usize| (0..len).map(|_| rng.normal()).collect::<Vec<f32>>();
            let x = values(batch * size[0] * size[1] * channels);
            let weight = values(g.out_channels * g.taps() * channels);
            let (bias, dy) = (values(g.out_channels), values(g.out_rows() * g.out_channels));
            let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
            let (wide_x, wide_weight, wide_dy) = (wide(&x), wide(&weight), wide(&dy));
            let name = format!("{batch} {channels} {size:?} {conv:?}");
            let y = dense::forward(&g, &wide_x, &wide_weight, Some(&wide(&bias)), false).values;
            assert_near(&name, &dense::forward(&g, &x, &weight, Some(&bias), false).values, &y, TOLERANCE);
            let dx = dense::input_gradient(&g, &wide_weight, &wide_dy);
            assert_near(&name, &dense::input_gradient(&g, &weight, &dy), &dx, TOLERANCE);
            let dweight = dense::weight_gradient(&g, &wide_x, &wide_dy);
            assert_near(&name, &dense::weight_gradient(&g, &x, &dy), &dweight, TOLERANCE);
            by_winograd += usize::from(winograd::forward(&g, &x, &weight, None, false).is_some());
        }
        assert!(by_winograd >= 2, "{by_winograd} cases took Winograd's way");
    }
}
