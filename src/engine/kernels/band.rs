//! The part of an image that a convolution of 8-bit values reads, as the instruction set wants it.
//!
//! Any run of values that an output pixel needs starts at the pixel's place plus the tap's, so products name rows by
//! one pointer each, and every value is stored (and padded, and converted) once and not once per kernel position.

use super::{Context, View};
use crate::engine::element::Element;
use crate::engine::simd::{DotLayout, Vector, dispatch};
use crate::graph::Conv2d;

/// Bytes that a product may read past the end of a run: less than a group.
pub(in crate::engine) const OVERRUN: usize = 4;

/// How a convolution finds its input.
pub(in crate::engine) struct Band {
    conv: Conv2d,
    input: View,
    /// Columns of the output.
    columns: usize,
    layout: DotLayout,
    /// Padding that the image does not have as its margin: top and left.
    padding: [usize; 2],
    /// Values per line: a row of the image with its padding.
    line: usize,
    /// Kernel rows are one run each, channel padding included; otherwise every kernel position is a run.
    merged: bool,
    /// Bytes from an output pixel's place to each of its runs.
    pub taps: Vec<usize>,
    /// Groups per run.
    pub groups: usize,
    /// Output pixels read input pixels one by one in order, over the whole batch.
    pub pointwise: bool,
    /// The image is read where it lies.
    in_place: bool,
}

impl Band {
    /// The band of `conv` over `input`, whose margin is nothing or the convolution's padding.
    pub fn new(conv: Conv2d, [input, output]: [View; 2], layout: DotLayout) -> Self {
        let ([kh, kw], p) = (conv.kernel, conv.padding);
        let [top, bottom, left, right] = match input.margin {
            [0, 0, 0, 0] => [p.top, p.bottom, p.left, p.right],
            _ => [0; 4],
        };
        let line = left * input.pixel + input.row() + right * input.pixel;
        let groups_of = |run: usize| run.div_ceil(layout.group());
        // What channel padding costs within a run against what each run wastes in its last group.
        let (row, position) = (groups_of((kw - 1) * input.pixel + input.channels), groups_of(input.channels));
        let merged = conv.dilation[1] == 1 && row <= kw * position;
        let (groups, positions) = if merged { (row, 1) } else { (position, kw) };
        let tap = |ky: usize, kx: usize| ky * conv.dilation[0] * line + kx * conv.dilation[1] * input.pixel;
        let taps = (0..kh).flat_map(|ky| (0..positions).map(move |kx| tap(ky, kx) * layout.bytes())).collect();
        let unpadded = [top, bottom, left, right] == [0; 4];
        Self {
            columns: output.size[1],
            padding: [top, left],
            pointwise: conv.kernel == [1, 1] && conv.stride == [1, 1] && unpadded && input.margin == [0; 4],
            in_place: unpadded && layout == DotLayout::U8x4,
            conv,
            input,
            layout,
            line,
            merged,
            taps,
            groups,
        }
    }

    /// Values of a packed row of weights: all runs, each as whole groups.
    pub fn inner(&self) -> usize {
        self.taps.len() * self.groups * self.layout.group()
    }

    /// Where value `k` of the runs comes from, as position in the kernel × channels; `None` if it only fills up.
    pub fn source(&self, k: usize) -> Option<usize> {
        let run = self.groups * self.layout.group();
        let (tap, at) = (k / run, k % run);
        let (first, kx, c) = match self.merged {
            true => (tap * self.conv.kernel[1], at / self.input.pixel, at % self.input.pixel),
            false => (tap, 0, at),
        };
        let there = c < self.input.channels && (!self.merged || kx < self.conv.kernel[1]);
        there.then_some((first + kx) * self.input.channels + c)
    }

    /// Input values that one output pixel takes the place of.
    pub fn reach(&self) -> usize {
        self.conv.stride[0] * self.conv.stride[1] * self.input.pixel
    }

    /// The first and the number of lines for output pixels `first..end` of an image.
    fn lines(&self, (first, end): (usize, usize)) -> (usize, usize) {
        let (from, to) = (first / self.columns, (end - 1) / self.columns);
        let kernel = (self.conv.kernel[0] - 1) * self.conv.dilation[0] + 1;
        (from * self.conv.stride[0], (to - from) * self.conv.stride[0] + kernel)
    }

    /// Bytes that `pixels` output pixels in a row may need.
    pub fn bytes(&self, pixels: usize) -> usize {
        let values = match () {
            () if self.in_place => return 0,
            () if self.pointwise => pixels * self.input.pixel,
            // However they lie, they touch one row more than they fill.
            () => self.lines((self.columns - 1, self.columns - 1 + pixels)).1 * self.line,
        };
        values * self.layout.bytes() + OVERRUN
    }

    /// Readies the input of output pixels `first..end` of image `n` (of the whole batch if pointwise): writes their
    /// places, in bytes, to `places` and returns where they count from, the image or `to`.
    ///
    /// # Safety
    /// The views lie in the arena, the pixels are the output's, and `to` takes [`Band::bytes`].
    pub unsafe fn ready(
        &self,
        context: &Context,
        (n, first, end): (usize, usize, usize),
        places: &mut [usize],
        to: *mut u8,
    ) -> *const u8 {
        let (pixel, bytes) = (self.input.pixel, self.layout.bytes());
        // SAFETY: the caller's: sources are in the image, targets in `to`.
        unsafe {
            let image = context.at::<u8>(&self.input, n).cast_const();
            if self.pointwise {
                places.iter_mut().enumerate().for_each(|(i, place)| *place = i * pixel * bytes);
                let source = image.add(first * pixel);
                if self.in_place {
                    return source;
                }
                let run = (source, (end - first) * pixel);
                dispatch!(context, store(layout: DotLayout = self.layout, run: (*const u8, usize) = run, to: *mut u8 = to));
                return to;
            }
            let (line, count) = self.lines((first, end));
            let start = if self.in_place { 0 } else { line };
            for (place, at) in places.iter_mut().zip(first..end) {
                let (y, x) = (at / self.columns * self.conv.stride[0], at % self.columns * self.conv.stride[1]);
                *place = ((y - start) * self.line + x * pixel) * bytes;
            }
            if self.in_place {
                return image;
            }
            let lines = (line, line + count);
            dispatch!(context, copy(band: &Band = self, image: *const u8 = image, lines: (usize, usize) = lines, to: *mut u8 = to));
            to
        }
    }
}

/// Writes lines `first..end` of an image.
#[inline(always)]
unsafe fn copy<V: Vector, E: Element>(band: &Band, image: *const u8, (first, end): (usize, usize), mut to: *mut u8) {
    let (row, bytes, zero) = (band.input.row(), band.layout.bytes(), band.input.quant.zero);
    let rows = band.input.image() / row;
    let left = band.padding[1] * band.input.pixel;
    for line in first..end {
        let y = line.wrapping_sub(band.padding[0]);
        // SAFETY: the caller's; rows outside the image are not read.
        unsafe {
            if y < rows {
                fill(band.layout, zero, (to, left));
                store::<V, E>(band.layout, (image.add(y * row), row), to.add(left * bytes));
                fill(band.layout, zero, (to.add((left + row) * bytes), band.line - left - row));
            } else {
                fill(band.layout, zero, (to, band.line));
            }
            to = to.add(band.line * bytes);
        }
    }
}

/// Writes a run of stored values as the instruction set wants them.
///
/// # Safety
/// `to` takes as many values.
#[inline(always)]
unsafe fn store<V: Vector, E: Element>(layout: DotLayout, (from, count): (*const u8, usize), to: *mut u8) {
    // SAFETY: the caller's.
    unsafe {
        let values = std::slice::from_raw_parts(from, count);
        match layout {
            DotLayout::U8x4 => to.copy_from_nonoverlapping(from, count),
            DotLayout::I8x4 => write(values.iter().map(|q| q ^ 0x80), to),
            DotLayout::I16x2 | DotLayout::I16x2Split => write(values.iter().map(|&q| u16::from(q)), to.cast()),
        }
    }
}

/// Writes `count` times the value that stands for 0.
///
/// # Safety
/// `to` takes as many values.
#[inline(always)]
unsafe fn fill(layout: DotLayout, zero: u8, (to, count): (*mut u8, usize)) {
    // SAFETY: the caller's.
    unsafe {
        match layout {
            DotLayout::U8x4 => to.write_bytes(zero, count),
            DotLayout::I8x4 => to.write_bytes(zero ^ 0x80, count),
            DotLayout::I16x2 | DotLayout::I16x2Split => {
                write(std::iter::repeat_n(u16::from(zero), count), to.cast());
            }
        }
    }
}

/// # Safety
/// `to` takes all values.
#[inline(always)]
unsafe fn write<T>(values: impl Iterator<Item = T>, to: *mut T) {
    for (i, value) in values.enumerate() {
        // SAFETY: the caller's.
        unsafe { to.add(i).write(value) }
    }
}
