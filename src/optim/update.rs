//! One pass over a parameter, its gradient and its moments on the CPU.
//!
//! A step made of tensor operations reads and writes every array several times and allocates each result; a step is
//! bound by memory, so the CPU path does all the arithmetic of an element while it is in a register.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;

use crate::error::Result;

/// Elements per task: small tensors are not worth a thread's wake-up.
const CHUNK: usize = 1 << 15;

/// Whether `param` takes the fused path: f32, contiguous, on the CPU.
pub(super) fn is_fused(param: &Var) -> bool {
    param.dtype() == DType::F32 && param.is_contiguous() && param.device().is_cpu()
}

/// Runs `kernel` on matching pieces of `param`, `grad` and `moments`, in parallel if they are long. `param` must be
/// [`is_fused`] and the moments of its length. The pieces do not depend on the number of threads, nor does the result.
pub(super) fn fused<const M: usize>(
    param: &Var,
    grad: &Tensor,
    moments: [&mut [f32]; M],
    kernel: impl Fn(&mut [f32], &[f32], [&mut [f32]; M]) + Sync,
) -> Result<()> {
    let grad = grad.to_dtype(DType::F32)?.contiguous()?;
    let update = |param: &mut [f32], grad: &[f32]| {
        let mut moments = moments.map(|moment| moment.chunks_mut(CHUNK));
        let pieces = param.chunks_mut(CHUNK).zip(grad.chunks(CHUNK)).map(|(param, grad)| {
            let moments = moments.each_mut().map(|pieces| pieces.next().unwrap_or_default());
            (param, grad, moments)
        });
        if grad.len() <= CHUNK {
            return pieces.for_each(|(param, grad, moments)| kernel(param, grad, moments));
        }
        let pieces: Vec<_> = pieces.collect();
        pieces.into_par_iter().for_each(|(param, grad, moments)| kernel(param, grad, moments));
    };
    Ok(param.inplace_op2(&grad, &Update(Cell::new(Some(update))))?)
}

/// Hands two slices to a closure; candle runs an operation once and gives it `&self`, hence the cell.
struct Update<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32], &[f32])> InplaceOp2 for Update<F> {
    fn name(&self) -> &'static str {
        "optimizer_step"
    }

    fn cpu_fwd(
        &self,
        param: &mut CpuStorage,
        param_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(param), CpuStorage::F32(grad)) = (param, grad) else {
            candle_core::bail!("optimizer step: expected f32 parameters and gradients")
        };
        let slices = (param_layout.contiguous_offsets(), grad_layout.contiguous_offsets());
        let (Some((p0, p1)), Some((g0, g1))) = slices else {
            candle_core::bail!("optimizer step: expected contiguous parameters and gradients")
        };
        let (Some(param), Some(grad)) = (param.get_mut(p0..p1), grad.get(g0..g1)) else {
            candle_core::bail!("optimizer step: storage is shorter than its layout")
        };
        if let Some(update) = self.0.take() {
            update(param, grad);
        }
        Ok(())
    }
}
