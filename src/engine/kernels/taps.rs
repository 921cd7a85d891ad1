//! Which runs of input values a convolution reads for an output pixel.

use super::{Context, View};
use crate::engine::element::Element;
use crate::graph::Conv2d;

/// The runs of a convolution: `count` per output pixel, `inner` values each, in the order of the packed weights.
pub(in crate::engine) struct Taps {
    conv: Conv2d,
    pub count: usize,
    pub inner: usize,
    /// A row of the kernel is one run: pixels without channel padding, and the image's padding is in the margin.
    merged: bool,
    /// Output pixels read input pixels one by one in order.
    pub pointwise: bool,
}

impl Taps {
    /// The runs of `conv` over `input`. If the input has a margin, it must be the convolution's padding, its pixels as
    /// wide as the channels, and the dilation 1.
    pub fn new(conv: Conv2d, input: View) -> Self {
        let ([kh, kw], p, channels) = (conv.kernel, conv.padding, input.channels);
        let merged =
            input.pixel == channels && conv.dilation == [1, 1] && input.margin == [p.top, p.bottom, p.left, p.right];
        let (count, inner) = if merged { (kh, kw * channels) } else { (kh * kw, channels) };
        let no_padding = [p.top, p.bottom, p.left, p.right] == [0; 4];
        let pointwise = conv.kernel == [1, 1] && conv.stride == [1, 1] && no_padding && input.margin == [0; 4];
        Self { conv, count, inner, merged, pointwise }
    }

    /// Input values that one output pixel takes the place of.
    pub fn reach(&self, input: &View) -> usize {
        self.conv.stride[0] * self.conv.stride[1] * input.pixel
    }

    /// Calls `tap` with the start of each run of output pixel `pixel`, counted over the batch; null stands for a run of
    /// zeros.
    ///
    /// # Safety
    /// The views lie in the arena; the pixel is in the output.
    #[inline(always)]
    pub unsafe fn each<E: Element>(
        &self,
        context: &Context,
        (input, output): (&View, &View),
        pixel: usize,
        mut tap: impl FnMut(*const E),
    ) {
        if self.pointwise {
            // SAFETY: in the image.
            return unsafe { tap(context.at::<E>(input, 0).cast_const().add(pixel * input.pixel)) };
        }
        let (conv, width) = (&self.conv, output.size[1]);
        let (n, rest) = (pixel / output.pixels(), pixel % output.pixels());
        let (oy, ox) = (rest / width, rest % width);
        // SAFETY: in the image.
        unsafe {
            let image = context.at::<E>(input, n).cast_const();
            if self.merged {
                let start = image.add(ox * conv.stride[1] * input.pixel);
                for ky in 0..conv.kernel[0] {
                    tap(start.add((oy * conv.stride[0] + ky) * input.row()));
                }
                return;
            }
            for ky in 0..conv.kernel[0] {
                let y = (oy * conv.stride[0] + ky * conv.dilation[0]).wrapping_sub(conv.padding.top);
                for kx in 0..conv.kernel[1] {
                    let x = (ox * conv.stride[1] + kx * conv.dilation[1]).wrapping_sub(conv.padding.left);
                    let inside = y < input.size[0] && x < input.size[1];
                    let at = y.wrapping_mul(input.row()).wrapping_add(x.wrapping_mul(input.pixel));
                    tap(if inside { image.wrapping_add(at) } else { std::ptr::null() });
                }
            }
        }
    }
}
