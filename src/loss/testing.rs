//! Comparison, gradient check and fixture reading for tests of this and other modules.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::error::Result;

/// What f64 arithmetic in another order may differ by.
pub(crate) const F64_TOLERANCE: f64 = 1e-12;
/// What f32 arithmetic may differ from an f64 reference by.
pub(crate) const F32_TOLERANCE: f64 = 2e-6;
/// What a central difference in f64 with [`DIFFERENCE_STEP`] may differ from the gradient by.
pub(crate) const DIFFERENCE_TOLERANCE: f64 = 1e-8;
/// Half the distance of the two points of a central difference.
const DIFFERENCE_STEP: f64 = 1e-5;

/// All elements as f64, in row-major order.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The one element as f64.
pub(crate) fn value(tensor: &Tensor) -> f64 {
    let all = values(tensor);
    assert_eq!(all.len(), 1, "expected one element, got shape {:?}", tensor.dims());
    all[0]
}

/// An f64 matrix from its rows.
pub(crate) fn matrix(rows: &[&[f64]]) -> Result<Tensor> {
    let columns = rows.first().map_or(0, |row| row.len());
    Ok(Tensor::from_vec(rows.concat(), (rows.len(), columns), &Device::Cpu)?)
}

/// Asserts equal shapes and `|got − want| ≤ tolerance·(1 + |want|)` everywhere; a failure names the worst element.
#[track_caller]
pub(crate) fn assert_close(name: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{name}: shape");
    let excess = |(g, w): (f64, f64)| {
        let excess = (g - w).abs() / (1.0 + w.abs());
        if excess.is_nan() && !(g.is_nan() && w.is_nan()) { f64::INFINITY } else { excess }
    };
    let (got, want) = (values(got), values(want));
    let worst = (0..got.len()).max_by(|&a, &b| excess((got[a], want[a])).total_cmp(&excess((got[b], want[b]))));
    if let Some(i) = worst {
        let (g, w) = (got[i], want[i]);
        assert!(
            excess((g, w)) <= tolerance,
            "{name}: worst element {i} of {}: got {g:e}, want {w:e}, relative difference {:e} above {tolerance:e}",
            got.len(),
            excess((g, w)),
        );
    }
}

/// Asserts that the gradient of `Σ f(input)` agrees with central differences; `input` must be f64.
#[track_caller]
pub(crate) fn check_gradient(name: &str, input: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    check_gradient_of(name, input, &f, &f);
}

/// Asserts that the gradient of `Σ f(input)` agrees with central differences of `frozen`: the same loss with the
/// factors that `f` detaches held at their values for `input`.
#[track_caller]
pub(crate) fn check_gradient_of(
    name: &str,
    input: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor>,
    frozen: impl Fn(&Tensor) -> Result<Tensor>,
) {
    assert_close(name, &gradient(input, &f), &numeric_gradient(input, &frozen), DIFFERENCE_TOLERANCE);
}

/// The gradient of `Σ f(input)` by backpropagation.
pub(crate) fn gradient(input: &Tensor, f: &impl Fn(&Tensor) -> Result<Tensor>) -> Tensor {
    let var = Var::from_tensor(input).unwrap();
    let loss = f(var.as_tensor()).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    grads.get(var.as_tensor()).expect("the loss does not depend on its input").clone()
}

/// The gradient of `Σ f(input)` by central differences; `input` must be f64.
fn numeric_gradient(input: &Tensor, f: &impl Fn(&Tensor) -> Result<Tensor>) -> Tensor {
    assert_eq!(input.dtype(), DType::F64, "central differences need f64");
    let point = values(input);
    let at = |index: usize, shift: f64| {
        let mut moved = point.clone();
        moved[index] += shift;
        let moved = Tensor::from_vec(moved, input.shape(), &Device::Cpu).unwrap();
        value(&f(&moved).unwrap().sum_all().unwrap())
    };
    let slopes: Vec<f64> = (0..point.len())
        .map(|i| (at(i, DIFFERENCE_STEP) - at(i, -DIFFERENCE_STEP)) / (2.0 * DIFFERENCE_STEP))
        .collect();
    Tensor::from_vec(slopes, input.shape(), &Device::Cpu).unwrap()
}

/// Reads `tests/fixtures/{name}.safetensors`.
pub(crate) fn fixture(name: &str) -> HashMap<String, Tensor> {
    let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Holds a loss of the fixture's logits to PyTorch's value and gradient, in f64 and in f32.
///
/// `name` is the entry of the fixture; `f` gets the fixture and the logits, in the dtype under test.
#[track_caller]
pub(crate) fn check_against_fixture(name: &str, f: impl Fn(&HashMap<String, Tensor>, &Tensor) -> Result<Tensor>) {
    let expected = fixture("loss/loss");
    for (dtype, tolerance) in [(DType::F64, F64_TOLERANCE), (DType::F32, F32_TOLERANCE)] {
        let inputs: HashMap<String, Tensor> = expected
            .iter()
            .map(|(key, tensor)| {
                let wanted = if key == "labels" { DType::U32 } else { dtype };
                (key.clone(), tensor.to_dtype(wanted).unwrap())
            })
            .collect();
        let loss = |logits: &Tensor| f(&inputs, logits);
        let logits = &inputs["logits"];
        let got = loss(logits).unwrap();
        assert_eq!(got.dtype(), dtype);
        assert_close(name, &got, &expected[name], tolerance);
        assert_close(name, &gradient(logits, &loss), &expected[&format!("{name}.grad")], tolerance);
    }
}

/// The fixture's f64 logits: a point away from every kink.
pub(crate) fn sample_logits() -> Tensor {
    fixture("loss/loss").remove("logits").unwrap()
}

/// Asserts that one NaN logit makes the loss NaN, and its backward pass does not fail.
#[track_caller]
pub(crate) fn check_nan(f: impl Fn(&Tensor) -> Result<Tensor>) {
    let logits = matrix(&[&[0.1, f64::NAN, 0.3], &[0.4, 0.5, -0.6]]).unwrap();
    assert!(values(&f(&logits).unwrap()).iter().any(|v| v.is_nan()), "a NaN logit was hidden");
    assert!(values(&gradient(&logits, &f)).iter().any(|v| v.is_nan()), "a NaN logit was hidden from the gradient");
}

mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "worst element 2 of 3: got 3e0, want 3.5e0")]
    fn the_worst_element_is_named() {
        let got = Tensor::new(&[1f64, 2.1, 3.0], &Device::Cpu).unwrap();
        assert_close("x", &got, &Tensor::new(&[1f64, 2.0, 3.5], &Device::Cpu).unwrap(), 1e-3);
    }

    #[test]
    #[should_panic(expected = "worst element 1 of 2: got NaN")]
    fn nan_is_never_close_to_a_number() {
        let got = Tensor::new(&[9f64, f64::NAN], &Device::Cpu).unwrap();
        assert_close("x", &got, &Tensor::new(&[1f64, 2.0], &Device::Cpu).unwrap(), 1e3);
    }

    #[test]
    #[should_panic(expected = "cube: worst element")]
    fn a_detached_factor_fails_the_gradient_check() {
        let x = Tensor::new(&[1f64, -2.0], &Device::Cpu).unwrap();
        check_gradient("cube", &x, |x| Ok((x.sqr()?.detach() * x)?));
    }
}
