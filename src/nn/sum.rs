//! Sums of activations, with the activation behind them.

use std::mem::MaybeUninit;

use candle_core::{Result as CandleResult, Tensor};

use super::activation::with_function;
use super::host::{self, build_whole_rows, with_float};
use super::simd::{Element, simd_fn};
use super::tape::{Call, Kernel, Tape, Value, wrong_arity};
use crate::error::{Error, Result};
use crate::graph::Activation;
use crate::nn::activation::Function;

/// Elements per task.
const BLOCK: usize = 1 << 15;

impl Tape {
    /// The sum of `inputs`, of one shape; `activation`, applied to it, must be one whose slope can be told from its value
    /// (ReLU, ReLU6).
    ///
    /// # Errors
    /// [`Error::Shape`] if there are none, shapes differ, or the activation is another.
    pub fn add(&mut self, inputs: &[&Value], activation: Option<Activation>) -> Result<Value> {
        let Some(first) = inputs.first() else {
            return Err(Error::Shape("add: expected at least one input, got none".into()));
        };
        if !matches!(activation, None | Some(Activation::Relu | Activation::Relu6)) {
            return Err(Error::Shape(format!("add: expected relu or relu6 behind it, got {activation:?}")));
        }
        for input in inputs {
            super::backend::expect_shape("add", "input", input.tensor(), first.tensor().dims())?;
        }
        self.apply(SumOp(activation), inputs)
    }
}

/// Arguments: tensors of one shape.
struct SumOp(Option<Activation>);

impl SumOp {
    fn forward<T: Element>(&self, args: &[&Tensor]) -> CandleResult<Vec<T>> {
        let (&[a, b], more) = args.split_first_chunk::<2>().ok_or_else(|| wrong_arity("add", args))?;
        let (last, middle) = more.split_last().map_or((None, more), |(last, middle)| (Some(*last), middle));
        // The activation goes with the last addition.
        let function = |is_last: bool| if is_last { self.0 } else { None };
        let two = |a: &[T], b: &[T], function| {
            let fill = |at: usize, y: &mut [MaybeUninit<T>]| {
                let range = at..at + y.len();
                with_function!(function, F => plus::<T, F>(&a[range.clone()], &b[range], y));
            };
            // SAFETY: every two values give one; the shapes are the same.
            unsafe { build_whole_rows(a.len(), 1, BLOCK, fill) }
        };
        let mut sum: Vec<T> = host::read2(a, b, |a, b| two(a, b, function(last.is_none())))?;
        for (i, arg) in middle.iter().copied().chain(last).enumerate() {
            sum = host::read(arg, |arg| two(&sum, arg, function(i == middle.len())))?;
        }
        Ok(sum)
    }

    fn gradient<T: Element>(&self, y: &[T], dy: &[T]) -> Vec<T> {
        let fill = |at: usize, dx: &mut [MaybeUninit<T>]| {
            let range = at..at + dx.len();
            with_function!(self.0, F => through::<T, F>(&y[range.clone()], &dy[range], dx));
        };
        // SAFETY: as above.
        unsafe { build_whole_rows(y.len(), 1, BLOCK, fill) }
    }
}

impl Kernel for SumOp {
    fn is_cheap(&self) -> bool {
        true
    }

    fn forward(&self, args: &[&Tensor]) -> CandleResult<Tensor> {
        let Some(first) = args.first() else { return Err(wrong_arity("add", args)) };
        if args.len() == 1 {
            return Ok((*first).clone());
        }
        with_float!(first.dtype(), T => host::tensor(self.forward::<T>(args)?, first.shape()))
    }

    fn backward(&self, call: &Call) -> CandleResult<Vec<Option<Tensor>>> {
        let dy = call.gradient()?;
        let dx = match self.0 {
            None => dy.clone(),
            Some(_) => with_float!(dy.dtype(), T => {
                host::tensor(host::read2(call.output()?, dy, |y, dy| self.gradient::<T>(y, dy))?, dy.shape())
            })?,
        };
        Ok(vec![Some(dx); call.shapes.len()])
    }

    fn reads(&self, _: usize, _: &[bool]) -> bool {
        false
    }

    fn reads_output(&self) -> bool {
        self.0.is_some()
    }

    fn passes_on(&self) -> bool {
        true
    }
}

#[inline(always)]
fn plus_body<T: Element, F: Function, const FMA: bool>(a: &[T], b: &[T], y: &mut [MaybeUninit<T>]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        y.write(F::value(*a + *b));
    }
}

/// ReLU and ReLU6 have at their value the slope they have at their argument.
#[inline(always)]
fn through_body<T: Element, F: Function, const FMA: bool>(y: &[T], dy: &[T], dx: &mut [MaybeUninit<T>]) {
    for ((dx, dy), y) in dx.iter_mut().zip(dy).zip(y) {
        dx.write(*dy * F::slope(*y));
    }
}

simd_fn! { fn plus<T: Element, F: Function>(a: &[T], b: &[T], y: &mut [MaybeUninit<T>]) = plus_body }
simd_fn! { fn through<T: Element, F: Function>(y: &[T], dy: &[T], dx: &mut [MaybeUninit<T>]) = through_body }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::random;

    #[test]
    fn misfits_are_refused() {
        let (a, b) = (Value::constant(&random(&[2, 3], 1)), Value::constant(&random(&[3, 2], 1)));
        let mut tape = Tape::new();
        assert!(tape.add(&[], None).is_err());
        assert!(tape.add(&[&a, &b], None).is_err());
        assert!(tape.add(&[&a, &a], Some(Activation::Silu)).is_err());
        assert!(tape.add(&[&a], None).is_ok());
    }
}
