//! Reverse-mode differentiation over this module's kernels.
//!
//! candle's own tape clears a buffer for the gradient of every value and adds to it, which costs more passes through
//! memory than the kernels themselves, and it keeps every activation until the end. Here a value's first gradient is
//! taken as it is, later ones are added in place, what no gradient depends on is not recorded (a frozen prefix costs its
//! forward pass only), and an activation is freed as soon as it has been used for the last time.

mod gradient;

use std::sync::{Arc, OnceLock};

use candle_core::{Result as CandleResult, Shape, Tensor};

pub use self::gradient::add_to;
use self::gradient::{Gradient, add};
use super::norm::{LateGradient, Moments};
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

    /// As [`Kernel::backward`], but the gradient of argument 0 is left to be computed by the kernel it reaches; the other
    /// entries are those of the other arguments. `None` if it cannot be left.
    ///
    /// # Errors
    /// As [`Kernel::forward`].
    fn backward_late(&self, _call: &Call) -> CandleResult<Option<(LateGradient, Vec<Option<Tensor>>)>> {
        Ok(None)
    }

    /// Whether [`Kernel::backward`] may be called with a gradient that is not computed yet.
    fn takes_late(&self) -> bool {
        false
    }

    /// Whether argument `index` is read by [`Kernel::backward`], if the gradients `wanted` are.
    fn reads(&self, _index: usize, _wanted: &[bool]) -> bool {
        true
    }

    /// Whether the result is read by [`Kernel::backward`].
    fn reads_output(&self) -> bool {
        false
    }

    /// Whether the result is as well computed again as kept.
    fn is_cheap(&self) -> bool {
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
    gradient: Upstream<'a>,
    /// For each argument, whether its gradient is wanted.
    pub wanted: &'a [bool],
}

#[derive(Debug, Clone, Copy)]
enum Upstream<'a> {
    Whole(&'a Tensor),
    Late(&'a LateGradient),
}

impl<'a> Call<'a> {
    /// Gradient of the result.
    ///
    /// # Errors
    /// If it is still to be computed: only for a kernel that takes such ones.
    pub fn gradient(&self) -> CandleResult<&'a Tensor> {
        match self.gradient {
            Upstream::Whole(gradient) => Ok(gradient),
            Upstream::Late(_) => {
                Err(candle_core::Error::Msg("a kernel reads a gradient that is still to be computed".into()).bt())
            }
        }
    }

    /// Gradient of the result, if it is still to be computed.
    pub const fn late_gradient(&self) -> Option<&'a LateGradient> {
        match self.gradient {
            Upstream::Whole(_) => None,
            Upstream::Late(late) => Some(late),
        }
    }

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
    /// Of the tensor's channels, where its kernel took them on the way.
    moments: Option<Arc<OnceLock<Moments>>>,
}

impl Value {
    /// A value without gradient.
    pub fn constant(tensor: &Tensor) -> Self {
        Self { tensor: tensor.detach(), place: None, moments: None }
    }

    /// The tensor, detached.
    pub const fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Where the moments of its channels are, or will be once somebody takes them.
    pub(super) fn moments(&self) -> Arc<OnceLock<Moments>> {
        self.moments.clone().unwrap_or_default()
    }

    /// With `moments` of its channels.
    pub(super) fn with_moments(self, moments: Option<Arc<OnceLock<Moments>>>) -> Self {
        Self { moments, ..self }
    }
}

/// A sum of batch normalisations is computed again, a sum of such a sum is kept.
pub const MOST_DEPTH: usize = 2;

/// What happened, in order.
#[derive(Default)]
pub struct Tape {
    entries: Vec<Entry>,
    /// Nothing gets a gradient.
    idle: bool,
    /// Cheap results are not kept.
    recomputes: bool,
}

enum Entry {
    /// A tensor of the caller's that gets a gradient.
    Leaf(Tensor),
    Call {
        kernel: Box<dyn Kernel>,
        places: Vec<Option<usize>>,
        args: Vec<Kept>,
        shapes: Vec<Shape>,
        output: Option<Tensor>,
        /// If the result is not kept: on how many results, one on the other, that are not kept either it rests, itself
        /// counted.
        depth: Option<usize>,
    },
}

/// An argument of a call, as its backward pass will find it.
enum Kept {
    /// It is not read again.
    No,
    Tensor(Tensor),
    /// The result of the call at this place, to be computed again.
    Of(usize),
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tape({} entries)", self.entries.len())
    }
}

impl Tape {
    /// A tape with nothing on it.
    pub const fn new() -> Self {
        Self { entries: Vec::new(), idle: false, recomputes: false }
    }

    /// A tape that does not keep what is cheap to compute again, batch normalisations and sums that is, and computes it
    /// when it is read. Of sums that rest on each other every second one is kept. Gradients are the same to the bit.
    ///
    /// # Source
    /// Chen, Xu, Zhang, Guestrin 2016, arXiv:1604.06174, section 4.1.
    pub fn recomputing(mut self) -> Self {
        self.recomputes = true;
        self
    }

    /// A tape that records nothing.
    pub const fn without_gradients() -> Self {
        Self { entries: Vec::new(), idle: true, recomputes: false }
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
        Ok(Value { tensor: tensor.detach().contiguous()?, place, moments: None })
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
            return Ok(Value { tensor, place: None, moments: None });
        }
        let depth = args.iter().filter_map(|arg| self.entries[arg.place?].depth()).max().unwrap_or(0) + 1;
        let depth = Some(depth).filter(|depth| self.recomputes && kernel.is_cheap() && *depth <= MOST_DEPTH);
        let keep = |(index, arg): (usize, &&Value)| match arg.place {
            _ if !kernel.reads(index, &wanted) && depth.is_none() => Kept::No,
            Some(place) if self.entries[place].depth().is_some() => Kept::Of(place),
            _ => Kept::Tensor(arg.tensor.clone()),
        };
        let args = args.iter().enumerate().map(keep).collect();
        let shapes = tensors.iter().map(|t| t.shape().clone()).collect();
        let output = (kernel.reads_output() && depth.is_none()).then(|| tensor.clone());
        self.entries.push(Entry::Call { kernel: Box::new(kernel), places, args, shapes, output, depth });
        Ok(Value { tensor, place: Some(self.entries.len() - 1), moments: None })
    }

    /// Each parameter with the gradient of ⟨`of`, `gradient`⟩, the latest first; parameters without influence are left out.
    ///
    /// # Errors
    /// As the kernels.
    pub fn backward(mut self, of: &Value, gradient: &Tensor) -> Result<Vec<(Tensor, Tensor)>> {
        let mut gradients: Vec<Option<Gradient>> = Vec::new();
        gradients.resize_with(self.entries.len(), || None);
        if let Some(place) = of.place {
            gradients[place] = Some(Gradient::Whole { tensor: gradient.detach().contiguous()?, shared: true });
        }
        let mut found = Vec::new();
        while let Some(entry) = self.entries.pop() {
            let Some(gradient) = gradients.pop().flatten() else { continue };
            match entry {
                Entry::Leaf(leaf) => found.push((leaf, gradient.whole()?.0)),
                Entry::Call { kernel, places, args, shapes, output, depth } => {
                    let gradient = if kernel.takes_late() { gradient } else { gradient.computed()? };
                    let wanted: Vec<bool> = places.iter().map(Option::is_some).collect();
                    let args: Vec<Option<Tensor>> =
                        args.iter().map(|kept| self.read(kept)).collect::<CandleResult<_>>()?;
                    let output = match depth.is_some() && kernel.reads_output() {
                        true => Some(again(&*kernel, &args)?),
                        false => output,
                    };
                    let (upstream, is_shared) = match &gradient {
                        Gradient::Whole { tensor, shared } => (Upstream::Whole(tensor), *shared),
                        Gradient::Late(late) => (Upstream::Late(late), false),
                    };
                    let call = Call {
                        args: &args,
                        output: output.as_ref(),
                        shapes: &shapes,
                        gradient: upstream,
                        wanted: &wanted,
                    };
                    if let Some(place) = places.first().copied().flatten()
                        && gradients[place].is_none()
                        && self.entries[place].takes_late()
                        && let Some((late, others)) = kernel.backward_late(&call)?
                    {
                        gradients[place] = Some(Gradient::Late(late));
                        add(&mut gradients, places[1..].iter().zip(others), false)?;
                        continue;
                    }
                    let several = wanted.iter().filter(|w| **w).count() > 1;
                    let shared = kernel.passes_on() && (is_shared || several);
                    add(&mut gradients, places.iter().zip(kernel.backward(&call)?), shared)?;
                }
            }
        }
        Ok(found)
    }

    fn read(&self, kept: &Kept) -> CandleResult<Option<Tensor>> {
        match kept {
            Kept::No => Ok(None),
            Kept::Tensor(tensor) => Ok(Some(tensor.clone())),
            Kept::Of(place) => {
                let Entry::Call { kernel, args, .. } = &self.entries[*place] else { return Err(not_kept()) };
                let args: Vec<Option<Tensor>> = args.iter().map(|kept| self.read(kept)).collect::<CandleResult<_>>()?;
                again(&**kernel, &args).map(Some)
            }
        }
    }
}

/// The result of a call whose arguments are all there.
fn again(kernel: &dyn Kernel, args: &[Option<Tensor>]) -> CandleResult<Tensor> {
    let args: Vec<&Tensor> = args.iter().map(|arg| arg.as_ref().ok_or_else(not_kept)).collect::<CandleResult<_>>()?;
    kernel.forward(&args)
}

impl Entry {
    const fn depth(&self) -> Option<usize> {
        match self {
            Self::Leaf(_) => None,
            Self::Call { depth, .. } => *depth,
        }
    }

    fn takes_late(&self) -> bool {
        matches!(self, Self::Call { kernel, .. } if kernel.takes_late())
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
        let y = tape.conv2d(&x, &weight, None, &Conv2d::new(3, 3).padding(1), false).unwrap();
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
        tape.conv2d(&x, &weight, None, &Conv2d::new(3, 1), false).unwrap();
        let Some(Entry::Call { args, .. }) = tape.entries.last() else { panic!("no call recorded") };
        assert!(matches!(args[..], [Kept::No, Kept::Tensor(_)]));
    }

    /// conv → batch norm with ReLU → conv twice over, all weights trained.
    fn normalised(tape: &mut Tape, tensors: &[Tensor; 4]) -> Value {
        let [x, weight, scale, shift] = tensors.each_ref().map(|tensor| tape.parameter(tensor).unwrap());
        let conv = Conv2d::new(3, 3).padding(1);
        let y = tape.conv2d(&x, &weight, None, &conv, true).unwrap();
        let activation = Some(Activation::Relu);
        let norm = nn::NormValues { weight: &scale, bias: &shift, eps: 1e-5, activation };
        let (y, _) = tape.batch_norm_train(&y, norm).unwrap();
        let z = tape.conv2d(&y, &weight, None, &conv, false).unwrap();
        let (z, _) = tape.batch_norm_train(&z, norm).unwrap();
        let first = tape.add(&[&y, &z], activation).unwrap();
        let second = tape.add(&[&first, &z], activation).unwrap();
        let sums = [first, second].map(|sum| tape.conv2d(&sum, &weight, None, &conv, false).unwrap());
        tape.add(&[&sums[0], &sums[1]], None).unwrap()
    }

    /// conv → batch norm → depthwise conv → batch norm → conv → batch norm; the first map is read twice.
    fn separable(tape: &mut Tape, tensors: &[Tensor], first_is_frozen: bool) -> Value {
        let mut all: Vec<Value> = tensors.iter().map(|tensor| tape.parameter(tensor).unwrap()).collect();
        if first_is_frozen {
            all[1] = Value::constant(&tensors[1]);
        }
        let [x, first, depthwise, last, scale, shift] = &all[..] else { panic!("six tensors") };
        let norm = |tape: &mut Tape, y: &Value, activation| {
            tape.batch_norm_train(y, nn::NormValues { weight: scale, bias: shift, eps: 1e-5, activation }).unwrap().0
        };
        let pointwise = Conv2d::new(16, 1);
        let y = tape.conv2d(x, first, None, &pointwise, true).unwrap();
        let a = norm(tape, &y, Some(Activation::Sigmoid));
        let b = tape.conv2d(&a, depthwise, None, &Conv2d::new(16, 3).padding(1).groups(16).stride(2), true).unwrap();
        let b = norm(tape, &b, Some(Activation::Silu));
        let c = tape.conv2d(&b, last, None, &pointwise, true).unwrap();
        let c = norm(tape, &c, None);
        let again =
            tape.conv2d(&y, depthwise, None, &Conv2d::new(16, 3).padding(1).groups(16).stride(2), false).unwrap();
        tape.add(&[&c, &again], None).unwrap()
    }

    /// Single precision leaves gradients of batch norms to the convolutions before them, double precision does not.
    #[test]
    fn gradients_that_come_late_are_the_same() {
        // With many threads each would get too little.
        rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(compare_late_gradients);
    }

    fn compare_late_gradients() {
        let shapes: [&[usize]; 6] = [&[8, 29, 30, 24], &[16, 24, 1, 1], &[16, 1, 3, 3], &[16, 16, 1, 1], &[16], &[16]];
        let wide: Vec<Tensor> = shapes.iter().zip(1..).map(|(shape, seed)| var(shape, seed).into_inner()).collect();
        let singles = wide.iter().map(|t| Var::from_tensor(&t.to_dtype(DType::F32).unwrap()).unwrap().into_inner());
        let singles: Vec<Tensor> = singles.collect();
        for first_is_frozen in [false, true] {
            let [want, got] = [&wide, &singles].map(|tensors| {
                let mut tape = Tape::new();
                let y = separable(&mut tape, tensors, first_is_frozen);
                let taken = tape.entries.iter().filter(|entry| entry.takes_late()).count();
                assert_eq!(taken, 4);
                let direction = random(y.tensor().dims(), 9).to_dtype(y.tensor().dtype()).unwrap();
                tape.backward(&y, &direction).unwrap()
            });
            assert_eq!(want.len(), if first_is_frozen { 5 } else { 6 });
            for ((_, want), (_, got)) in want.iter().zip(&got) {
                assert_close("gradient", got, want, 1e-4);
            }
        }
    }

    #[test]
    fn what_is_computed_again_gives_the_same_gradients() {
        let shapes: [&[usize]; 4] = [&[2, 5, 4, 3], &[3, 3, 3, 3], &[3], &[3]];
        let tensors = [0, 1, 2, 3].map(|i| var(shapes[i], i as u64).into_inner());
        let [kept, again] = [Tape::new(), Tape::new().recomputing()].map(|mut tape| {
            let y = normalised(&mut tape, &tensors);
            let held = tape.entries.iter().filter(|entry| {
                matches!(entry, Entry::Call { args, .. } if args.iter().any(|kept| matches!(kept, Kept::Of(_))))
            });
            (held.count(), tape.backward(&y, &random(y.tensor().dims(), 9)).unwrap())
        });
        // The second convolution's and the third's argument, and the sums' own; of the second sum only itself is kept.
        assert_eq!((kept.0, again.0), (0, 3));
        assert_eq!(kept.1.len(), 4);
        for ((_, kept), (_, again)) in kept.1.iter().zip(&again.1) {
            assert_close("gradient", again, kept, 0.0);
        }
    }
}
