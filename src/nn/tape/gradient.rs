//! Sums of gradients, in place where nobody else holds the memory.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result as CandleResult, Tensor};

use crate::error::Result;
use crate::nn::backend::expect_shape;
use crate::nn::host::{self, with_float};
use crate::nn::norm::LateGradient;
use crate::nn::threads::map;

/// A gradient so far.
pub(super) enum Gradient {
    Whole {
        tensor: Tensor,
        /// Whether others may hold the same memory, so that nothing may be added in place.
        shared: bool,
    },
    Late(LateGradient),
}

/// Adds each tensor to the gradient of its place.
pub(super) fn add<'p>(
    gradients: &mut [Option<Gradient>],
    found: impl Iterator<Item = (&'p Option<usize>, Option<Tensor>)>,
    shared: bool,
) -> CandleResult<()> {
    for (place, tensor) in found {
        if let (Some(place), Some(tensor)) = (*place, tensor) {
            let sum = Gradient::Whole { tensor, shared }.plus(gradients[place].take())?;
            gradients[place] = Some(sum);
        }
    }
    Ok(())
}

impl Gradient {
    /// The tensor, and whether others may hold its memory.
    pub fn whole(self) -> CandleResult<(Tensor, bool)> {
        match self {
            Self::Whole { tensor, shared } => Ok((tensor, shared)),
            Self::Late(late) => Ok((late.tensor()?, false)),
        }
    }

    /// The same, computed if it was not yet.
    pub fn computed(self) -> CandleResult<Self> {
        self.whole().map(|(tensor, shared)| Self::Whole { tensor, shared })
    }

    fn plus(self, other: Option<Self>) -> CandleResult<Self> {
        let Some(other) = other else { return Ok(self) };
        let ((mine, mine_shared), (other, other_shared)) = (self.whole()?, other.whole()?);
        let (tensor, more) = match (mine_shared, other_shared) {
            (_, false) => (other, mine),
            (false, true) => (mine, other),
            (true, true) => (other.copy()?, mine),
        };
        tensor.inplace_op2(&more, &AddTo)?;
        Ok(Self::Whole { tensor, shared: false })
    }
}

/// Adds `more` to `sum`, whose memory nobody else may hold.
///
/// # Errors
/// [`crate::Error::Tensor`] if they are not contiguous tensors of one shape in host memory.
pub fn add_to(sum: &Tensor, more: &Tensor) -> Result<()> {
    expect_shape("add_to", "the second", more, sum.dims())?;
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
            map(a.chunks_mut(BLOCK).zip(b.chunks(BLOCK)).collect(), |(a, b): (&mut [T], &[T])| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += *b);
            });
            Ok(())
        })
    }
}
