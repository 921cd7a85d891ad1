//! Reverse-mode differentiation over this module's kernels.
//!
//! candle's own tape clears a buffer for the gradient of every value and adds to it, which costs more passes through
//! memory than the kernels themselves, and it keeps every activation until the end. Here a value's first gradient is
//! taken as it is, later ones are added in place, what no gradient depends on is not recorded (a frozen prefix costs its
//! forward pass only), and an activation is freed as soon as it has been used for the last time.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

use super::host::{self, with_float};
use crate::error::Result;

/// An operation with its own gradient, on contiguous tensors in host memory.
pub trait Kernel: Send + Sync {
    /// The result for `args`.
    ///
    /// # Errors
    /// candle's, for element types without kernels and layouts that are not contiguous.
    fn forward(&self, args: &[&Tensor]) -> CandleResult<Tensor>;

    /// Gradients of the arguments, one entry for each; those not wanted are ignored.
    ///
    /// # Errors
    /// As [`Kernel::forward`].
    fn backward(&self, call: &Call) -> CandleResult<Vec<Option<Tensor>>>;

    /// Whether argument `index` is read by [`Kernel::backward`], if the gradients `wanted` are.
    fn reads(&self, _index: usize, _wanted: &[bool]) -> bool {
        true
    }

    /// Whether the result is read by [`Kernel::backward`].
    fn reads_output(&self) -> bool {
        false
    }

    /// Whether all gradients are one tensor, the result's own gradient.
    fn passes_on(&self) -> bool {
        false
    }
}

/// What a kernel's backward pass works with.
#[derive(Debug)]
pub struct Call<'a> {
    args: &'a [Option<Tensor>],
    output: Option<&'a Tensor>,
    /// Shapes of the arguments.
    pub shapes: &'a [Shape],
    /// Gradient of the result.
    pub gradient: &'a Tensor,
    /// For each argument, whether its gradient is wanted.
    pub wanted: &'a [bool],
}

impl Call<'_> {
    /// Argument `index`.
    ///
    /// # Errors
    /// If the kernel said that it would not read it.
    pub fn arg(&self, index: usize) -> CandleResult<&Tensor> {
        self.args.get(index).and_then(Option::as_ref).ok_or_else(not_kept)
    }

    /// The result.
    ///
    /// # Errors
    /// As [`Call::arg`].
    pub fn output(&self) -> CandleResult<&Tensor> {
        self.output.ok_or_else(not_kept)
    }
}

fn not_kept() -> candle_core::Error {
    candle_core::Error::Msg("a kernel reads what it did not ask to keep".into()).bt()
}

/// The error of a kernel called with a wrong number of arguments.
pub(super) fn wrong_arity(op: &str, args: &[&Tensor]) -> candle_core::Error {
    candle_core::Error::Msg(format!("{op}: got {} arguments", args.len())).bt()
}

/// A tensor, and its place on a [`Tape`] if gradients flow into it. Holds no candle tape.
#[derive(Debug, Clone)]
pub struct Value {
    tensor: Tensor,
    place: Option<usize>,
}

impl Value {
    /// A value without gradient.
    pub fn constant(tensor: &Tensor) -> Self {
        Self { tensor: tensor.detach(), place: None }
    }

    /// The tensor, detached.
    pub const fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}

/// What happened, in order.
#[derive(Default)]
pub struct Tape {
    entries: Vec<Entry>,
    /// Nothing gets a gradient.
    idle: bool,
}

enum Entry {
    /// A tensor of the caller's that gets a gradient.
    Leaf(Tensor),
    Call {
        kernel: Box<dyn Kernel>,
        places: Vec<Option<usize>>,
        args: Vec<Option<Tensor>>,
        shapes: Vec<Shape>,
        output: Option<Tensor>,
    },
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tape({} entries)", self.entries.len())
    }
}

/// A gradient so far.
struct Gradient {
    tensor: Tensor,
    /// Whether others may hold the same memory, so that nothing may be added in place.
    shared: bool,
}

impl Tape {
    /// A tape with nothing on it.
    pub const fn new() -> Self {
        Self { entries: Vec::new(), idle: false }
    }

    /// A tape that records nothing.
    pub const fn without_gradients() -> Self {
        Self { entries: Vec::new(), idle: true }
    }

    /// Whether nothing was recorded: no gradient was asked for.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A parameter; it gets a gradient if candle tracks it.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] if it cannot be made contiguous.
    pub fn parameter(&mut self, tensor: &Tensor) -> Result<Value> {
        let place = (tensor.track_op() && !self.idle).then(|| {
            self.entries.push(Entry::Leaf(tensor.clone()));
            self.entries.len() - 1
        });
        Ok(Value { tensor: tensor.detach().contiguous()?, place })
    }

    /// Runs `kernel` on `args` and records it if one of them gets a gradient.
    ///
    /// # Errors
    /// As the kernel.
    pub fn apply(&mut self, kernel: impl Kernel + 'static, args: &[&Value]) -> Result<Value> {
        let tensors: Vec<&Tensor> = args.iter().map(|arg| &arg.tensor).collect();
        let tensor = kernel.forward(&tensors)?;
        let places: Vec<Option<usize>> = args.iter().map(|arg| arg.place).collect();
        let wanted: Vec<bool> = places.iter().map(Option::is_some).collect();
        if !wanted.contains(&true) {
            return Ok(Value { tensor, place: None });
        }
        let keep = |(index, tensor): (usize, &&Tensor)| kernel.reads(index, &wanted).then(|| (*tensor).clone());
        let args = tensors.iter().enumerate().map(keep).collect();
        let shapes = tensors.iter().map(|t| t.shape().clone()).collect();
        let output = kernel.reads_output().then(|| tensor.clone());
        self.entries.push(Entry::Call { kernel: Box::new(kernel), places, args, shapes, output });
        Ok(Value { tensor, place: Some(self.entries.len() - 1) })
    }

    /// Each parameter with the gradient of ⟨`of`, `gradient`⟩, the latest first; parameters without influence are left out.
    ///
    /// # Errors
    /// As the kernels.
    pub fn backward(mut self, of: &Value, gradient: &Tensor) -> Result<Vec<(Tensor, Tensor)>> {
        let mut gradients: Vec<Option<Gradient>> = Vec::new();
        gradients.resize_with(self.entries.len(), || None);
        if let Some(place) = of.place {
            gradients[place] = Some(Gradient { tensor: gradient.detach().contiguous()?, shared: true });
        }
        let mut found = Vec::new();
        while let Some(entry) = self.entries.pop() {
            let Some(gradient) = gradients.pop().flatten() else { continue };
            match entry {
                Entry::Leaf(leaf) => found.push((leaf, gradient.tensor)),
                Entry::Call { kernel, places, args, shapes, output } => {
                    let wanted: Vec<bool> = places.iter().map(Option::is_some).collect();
                    let call = Call {
                        args: &args,
                        output: output.as_ref(),
                        shapes: &shapes,
                        gradient: &gradient.tensor,
                        wanted: &wanted,
                    };
                    let several = wanted.iter().filter(|w| **w).count() > 1;
                    let shared = kernel.passes_on() && (gradient.shared || several);
                    for (place, tensor) in places.into_iter().zip(kernel.backward(&call)?) {
                        if let (Some(place), Some(tensor)) = (place, tensor) {
                            let sum = Gradient { tensor, shared }.plus(gradients[place].take())?;
                            gradients[place] = Some(sum);
                        }
                    }
                }
            }
        }
        Ok(found)
    }
}

impl Gradient {
    fn plus(self, other: Option<Self>) -> CandleResult<Self> {
        let Some(other) = other else { return Ok(self) };
        let (sum, more) = match (self.shared, other.shared) {
            (_, false) => (other, self),
            (false, true) => (self, other),
            (true, true) => (Self { tensor: other.tensor.copy()?, shared: false }, self),
        };
        sum.tensor.inplace_op2(&more.tensor, &AddTo)?;
        Ok(sum)
    }
}

/// Adds `more` to `sum`, whose memory nobody else may hold.
///
/// # Errors
/// [`crate::Error::Tensor`] if they are not contiguous tensors of one shape in host memory.
pub fn add_to(sum: &Tensor, more: &Tensor) -> Result<()> {
    super::backend::expect_shape("add_to", "the second", more, sum.dims())?;
    Ok(sum.inplace_op2(more, &AddTo)?)
}

/// Elements per task.
const BLOCK: usize = 1 << 15;

/// a ← a + b.
struct AddTo;

impl InplaceOp2 for AddTo {
    fn name(&self) -> &'static str {
        "add_to"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> CandleResult<()> {
        with_float!(host::dtype(a), T => {
            let b = host::slice::<T>(b, lb)?;
            let a = host::slice_mut::<T>(a, la)?;
            a.par_chunks_mut(BLOCK).zip(b.par_chunks(BLOCK)).for_each(|(a, b)| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += *b);
            });
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::graph::{Activation, Conv2d};
    use crate::nn::testing::{EXACT, assert_close, random};
    use crate::nn::{self, Backend};

    fn var(shape: &[usize], seed: u64) -> Var {
        Var::from_tensor(&random(shape, seed)).unwrap()
    }

    /// x → conv → act, added to itself twice over, so that gradients meet in every way they can.
    fn on_tape(tape: &mut Tape, x: &Tensor, weight: &Tensor) -> Value {
        let (x, weight) = (tape.parameter(x).unwrap(), tape.parameter(weight).unwrap());
        let y = tape.conv2d(&x, &weight, None, &Conv2d::new(3, 3).padding(1)).unwrap();
        let z = tape.activation(&y, Activation::Silu).unwrap();
        let sum = tape.add(&[&y, &z], Some(Activation::Relu)).unwrap();
        let more = tape.add(&[&sum, &y, &sum, &x], None).unwrap();
        tape.add(&[&more, &more], None).unwrap()
    }

    fn by_candle(x: &Tensor, weight: &Tensor) -> Tensor {
        let backend = Backend::Kernels;
        let y = nn::conv2d(backend, x, weight, None, &Conv2d::new(3, 3).padding(1)).unwrap();
        let z = nn::activation(backend, &y, Activation::Silu).unwrap();
        let sum = nn::activation(backend, &(&y + &z).unwrap(), Activation::Relu).unwrap();
        let more = (((&sum + &y).unwrap() + &sum).unwrap() + x).unwrap();
        (&more + &more).unwrap()
    }

    #[test]
    fn gradients_that_meet_are_added_as_candle_adds_them() {
        let (x, weight) = (var(&[2, 5, 4, 3], 1), var(&[3, 3, 3, 3], 2));
        let mut tape = Tape::new();
        let y = on_tape(&mut tape, x.as_tensor(), weight.as_tensor());
        let expected = by_candle(x.as_tensor(), weight.as_tensor());
        assert_close("output", y.tensor(), &expected, 1e-12);
        let direction = random(expected.dims(), 3);
        let want = (expected * &direction).unwrap().sum_all().unwrap().backward().unwrap();
        let got = tape.backward(&y, &direction).unwrap();
        assert_eq!(got.len(), 2);
        for (leaf, gradient) in got {
            assert_close("gradient", &gradient, want.get(&leaf).unwrap(), 1e-12);
        }
        assert_close("the seed", &direction, &random(direction.dims(), 3), EXACT);
    }

    #[test]
    fn what_no_gradient_depends_on_is_not_recorded() {
        let (x, weight) = (var(&[1, 4, 4, 3], 1), var(&[3, 3, 3, 3], 2));
        let mut tape = Tape::new();
        on_tape(&mut tape, &x.as_tensor().detach(), &weight.as_tensor().detach());
        assert!(tape.is_empty());
        let plain = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(tape.backward(&Value::constant(&plain), &plain).unwrap().is_empty());
    }

    #[test]
    fn a_frozen_weight_does_not_keep_its_input() {
        let (x, weight) = (var(&[1, 4, 4, 3], 1), random(&[3, 3, 1, 1], 2));
        let mut tape = Tape::new();
        let (x, weight) = (tape.parameter(x.as_tensor()).unwrap(), Value::constant(&weight));
        tape.conv2d(&x, &weight, None, &Conv2d::new(3, 1)).unwrap();
        let Some(Entry::Call { args, .. }) = tape.entries.last() else { panic!("no call recorded") };
        assert!(args[0].is_none() && args[1].is_some());
    }
}
