//! What tests of networks need: random parameters, images, and comparisons that name the worst element.

use candle_core::{Device, Tensor};

use super::Params;
use crate::graph::{Graph, ParamKind};
use crate::rng::Rng;

/// Random parameters: fan-in-scaled weights, shifts and running means well away from zero.
pub(crate) fn random_params(graph: &Graph, rng: &mut Rng) -> Params {
    let mut params = Params::new();
    for spec in graph.params() {
        let fan_in = spec.shape.iter().skip(1).product::<usize>().max(1) as f32;
        let mut draw = || match spec.kind {
            ParamKind::Weight => rng.range(-1.0, 1.0) * (6.0 / fan_in).sqrt(),
            ParamKind::Bias | ParamKind::NormBias | ParamKind::RunningMean => rng.range(-0.5, 0.5),
            ParamKind::NormWeight | ParamKind::RunningVar => rng.range(0.5, 1.5),
        };
        let values = (0..spec.shape.iter().product()).map(|_| draw()).collect();
        params.insert(spec.name, Tensor::from_vec::<_, f32>(values, spec.shape, &Device::Cpu).unwrap());
    }
    params
}

/// `batch` images of standard normal noise in the graph's input size.
pub(crate) fn random_images(graph: &Graph, batch: usize, rng: &mut Rng) -> Tensor {
    let [c, h, w] = graph.input_shape();
    let values: Vec<f32> = (0..batch * c * h * w).map(|_| rng.normal()).collect();
    Tensor::from_vec(values, (batch, c, h, w), &Device::Cpu).unwrap()
}

/// All values, row-major.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Fails unless the largest difference is at most `tolerance` of the largest expected value.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f32) {
    assert_close_beside(what, got, want, tolerance, 1e-6);
}

/// The same, or of `terms` if that is larger: the size of what was summed, where sums may cancel out.
#[track_caller]
pub(crate) fn assert_close_beside(what: &str, got: &Tensor, want: &Tensor, tolerance: f32, terms: f32) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(got), values(want));
    let scale = want.iter().fold(terms, |m: f32, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        // A NaN on either side fails.
        assert!((g - w).abs() <= tolerance * scale, "{what}: index {i}: expected {w}, got {g} (largest {scale})");
    }
}
