//! Convolution from candle operations whose gradients are right on every device.

use candle_core::Tensor;

use super::Geometry;
use crate::error::Result;
use crate::nn::reshape::{Slide, shifted};

/// The same function as the kernels, on `[N, C, H, W]`.
pub(super) fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Tensor> {
    let uniform = g.conv.stride[0] == g.conv.stride[1] && g.conv.dilation[0] == g.conv.dilation[1];
    let y = if g.is_depthwise() {
        depthwise(x, weight, g)?
    } else if uniform && g.taps() > 1 {
        candle(x, weight, g)?
    } else {
        by_taps(x, weight, g)?
    };
    match bias {
        Some(bias) => Ok(y.broadcast_add(&bias.reshape((1, g.out_channels, 1, 1))?)?),
        None => Ok(y),
    }
}

/// Padded and cropped to what the windows read: then candle's backward has no output padding, which it gets
/// wrong when height and width differ in parity.
fn candle(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let (c, p) = (&g.conv, &g.conv.padding);
    let read = |axis: usize| (g.output[axis] - 1) * c.stride[axis] + (c.kernel[axis] - 1) * c.dilation[axis] + 1;
    let x = x.pad_with_zeros(2, p.top, p.bottom)?.pad_with_zeros(3, p.left, p.right)?;
    let x = x.narrow(2, 0, read(0))?.narrow(3, 0, read(1))?.contiguous()?;
    Ok(x.conv2d(weight, 0, c.stride[0], c.dilation[0], c.groups)?)
}

/// One shifted, strided view of the padded input per kernel element.
fn views(x: &Tensor, g: &Geometry) -> Result<Vec<Tensor>> {
    let (c, p) = (&g.conv, &g.conv.padding);
    let x = x.pad_with_zeros(2, p.top, p.bottom)?.pad_with_zeros(3, p.left, p.right)?;
    let starts =
        (0..c.kernel[0]).flat_map(|ky| (0..c.kernel[1]).map(move |kx| [ky * c.dilation[0], kx * c.dilation[1]]));
    let slide = Slide { first_dim: 2, stride: c.stride, len: g.output };
    shifted(&x, slide, starts)
}

fn depthwise(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let weight = weight.reshape((1, g.in_channels, g.taps()))?;
    sum(views(x, g)?
        .iter()
        .enumerate()
        .map(|(tap, view)| Ok(view.broadcast_mul(&weight.narrow(2, tap, 1)?.reshape((1, g.in_channels, 1, 1))?)?)))
}

/// One matrix product per kernel element and group.
fn by_taps(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let [height, width] = g.output;
    let (inputs, outputs) = (g.group_in(), g.group_out());
    let weight = weight.reshape((g.out_channels, inputs, g.taps()))?;
    let views = views(x, g)?;
    let groups = (0..g.conv.groups).map(|group| {
        sum(views.iter().enumerate().map(|(tap, view)| {
            let view = view.narrow(1, group * inputs, inputs)?.reshape((g.batch, inputs, height * width))?;
            let weight = weight.narrow(0, group * outputs, outputs)?.narrow(2, tap, 1)?;
            Ok(weight.reshape((1, outputs, inputs))?.broadcast_matmul(&view)?)
        }))
    });
    let groups = groups.collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&groups, 1)?.reshape((g.batch, g.out_channels, height, width))?)
}

fn sum(mut terms: impl Iterator<Item = Result<Tensor>>) -> Result<Tensor> {
    let first = terms.next().unwrap_or_else(|| Err(crate::Error::Shape("conv2d: the kernel is empty".into())))?;
    terms.try_fold(first, |total, term| Ok((total + term?)?))
}
