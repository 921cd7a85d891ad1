//! Sliding windows: which input positions one output position reads.
//!
//! Forward convolution and its input gradient are both "gather, then multiply". For the gradient of a
//! convolution with stride s the input positions fall into s·s classes by their remainder; inside a class every
//! position reads the output gradient at the same fixed offsets with stride 1, so no product with a zero that
//! the stride inserted is ever computed.

use std::ops::Range;

use super::Geometry;

/// One kernel element: where it reads, and which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tap {
    /// Vertical and horizontal offset of the position read.
    pub offset: [isize; 2],
    /// Index in the kernel, row-major.
    pub index: usize,
}

/// A window over a source map `source`, for each position of a target map `target`.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub taps: Vec<Tap>,
    pub stride: [usize; 2],
    pub source: [usize; 2],
    pub target: [usize; 2],
}

/// Channels `first..first + count` of positions with `total` channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channels {
    pub total: usize,
    pub first: usize,
    pub count: usize,
}

impl Window {
    /// Reads the input for each output position.
    pub fn forward(g: &Geometry) -> Self {
        let c = &g.conv;
        let offset = |k: usize, dilation: usize, padding: usize| (k * dilation) as isize - padding as isize;
        let taps = (0..g.taps())
            .map(|index| {
                let [ky, kx] = [index / c.kernel[1], index % c.kernel[1]];
                let offset = [offset(ky, c.dilation[0], c.padding.top), offset(kx, c.dilation[1], c.padding.left)];
                Tap { offset, index }
            })
            .collect();
        Self { taps, stride: c.stride, source: g.input, target: g.output }
    }

    /// Reads the output gradient for the input positions `class + stride · target position`.
    pub fn backward(g: &Geometry, class: [usize; 2]) -> Self {
        let c = &g.conv;
        let mut taps: Vec<Tap> = Self::forward(g)
            .taps
            .into_iter()
            .filter_map(|tap| {
                let distance = |axis: usize| {
                    let d = class[axis] as isize - tap.offset[axis];
                    let stride = c.stride[axis] as isize;
                    (d.rem_euclid(stride) == 0).then_some(d.div_euclid(stride))
                };
                Some(Tap { offset: [distance(0)?, distance(1)?], index: tap.index })
            })
            .collect();
        taps.sort_by_key(|tap| tap.offset);
        let target = [0, 1].map(|axis| g.input[axis].saturating_sub(class[axis]).div_ceil(c.stride[axis]));
        Self { taps, stride: [1, 1], source: g.output, target }
    }

    /// All classes of input positions that read anything, and what they read.
    pub fn classes(g: &Geometry) -> impl Iterator<Item = ([usize; 2], Self)> {
        let [down, across] = g.conv.stride;
        (0..down * across)
            .map(move |i| [i / across, i % across])
            .map(|class| (class, Self::backward(g, class)))
            .filter(|(_, window)| window.rows() > 0 && !window.taps.is_empty())
    }

    /// Copies `rows` of `channels` values, of target positions from `first_row` on, to their places in one image of the input
    /// that [`Window::backward`] numbered for `class`.
    pub fn scatter<T: Copy>(&self, (g, class): (&Geometry, [usize; 2]), first_row: usize, rows: &[T], image: &mut [T]) {
        let (width, channels) = (self.target[1], g.in_channels);
        for (i, row) in rows.chunks_exact(channels).enumerate() {
            let (y, x) = ((first_row + i) / width, (first_row + i) % width);
            let [y, x] = [class[0] + y * g.conv.stride[0], class[1] + x * g.conv.stride[1]];
            let at = (y * g.input[1] + x) * channels;
            image[at..at + channels].copy_from_slice(row);
        }
    }

    /// Whether each position reads exactly itself.
    pub fn is_identity(&self) -> bool {
        self.stride == [1, 1]
            && self.source == self.target
            && matches!(self.taps.as_slice(), [tap] if tap.offset == [0, 0])
    }

    /// Target positions of one image.
    pub fn rows(&self) -> usize {
        self.target[0] * self.target[1]
    }

    /// Target coordinates along `axis` at which a tap with `offset` stays inside the source.
    pub fn inside(&self, axis: usize, offset: isize) -> Range<usize> {
        let (stride, source) = (self.stride[axis] as isize, self.source[axis] as isize);
        let start = (-offset).max(0).div_euclid(stride) + isize::from((-offset).max(0).rem_euclid(stride) != 0);
        let end = if source > offset { (source - offset - 1).div_euclid(stride) + 1 } else { 0 };
        let end = end.clamp(0, self.target[axis] as isize);
        (start.min(end)) as usize..end as usize
    }

    /// Writes `taps · count` values per target position in `rows` (numbered through the batch), to rows of `pitch`.
    pub fn gather<T: Copy + Default>(
        &self,
        x: &[T],
        channels: Channels,
        rows: Range<usize>,
        (columns, pitch): (&mut [T], usize),
    ) {
        let Channels { total, first, count } = channels;
        let ([height, width], [_, target_width]) = (self.source, self.target);
        let runs = self.runs(count == total);
        for (row, columns) in rows.zip(columns.chunks_exact_mut(pitch)) {
            let (image, position) = (row / self.rows(), row % self.rows());
            let origin = [position / target_width * self.stride[0], position % target_width * self.stride[1]];
            let mut rest = columns;
            for run in &runs {
                let (part, tail) = rest.split_at_mut(run.len * count);
                rest = tail;
                let y = origin[0] as isize + run.offset[0];
                let left = origin[1] as isize + run.offset[1];
                if y < 0 || y >= height as isize {
                    part.fill(T::default());
                    continue;
                }
                let line = (image * height + y as usize) * width;
                if left >= 0 && left as usize + run.len <= width {
                    let at = (line + left as usize) * total + first;
                    copy(&x[at..at + part.len()], part);
                    continue;
                }
                for (i, part) in part.chunks_exact_mut(count).enumerate() {
                    let column = left + i as isize;
                    if column < 0 || column >= width as isize {
                        part.fill(T::default());
                    } else {
                        let at = (line + column as usize) * total + first;
                        copy(&x[at..at + count], part);
                    }
                }
            }
        }
    }

    /// Taps side by side in memory, merged if `merge` allows.
    fn runs(&self, merge: bool) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for tap in &self.taps {
            match runs.last_mut() {
                Some(run) if merge && run.offset[0] == tap.offset[0] && run.end() == tap.offset[1] => run.len += 1,
                _ => runs.push(Run { offset: tap.offset, len: 1 }),
            }
        }
        runs
    }
}

/// Copies a run. Short ones in place: there a call costs more than the copy.
fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    const STEP: usize = 8;
    if from.len() > 4 * STEP {
        return to.copy_from_slice(from);
    }
    let ((from, last), (to, last_to)) = (from.as_chunks::<STEP>(), to.as_chunks_mut::<STEP>());
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    for (to, from) in last_to.iter_mut().zip(last) {
        *to = *from;
    }
}

/// Horizontally adjacent taps.
struct Run {
    offset: [isize; 2],
    len: usize,
}

impl Run {
    fn end(&self) -> isize {
        self.offset[1] + self.len as isize
    }
}
