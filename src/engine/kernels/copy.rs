//! Steps that move values without arithmetic: image in, concatenation, channel padding, subsampling, flattening.

use super::{Context, Kernel, View, part, task_count};
use crate::engine::dispatch::dispatch;
use crate::engine::element::{Element, Quant};
use crate::simd::Vector;

const VALUES_PER_TASK: usize = 1 << 16;

/// Copies `count` values; what stands for one real value in the source stands for the nearest in the target.
#[inline(always)]
unsafe fn copy<V: Vector, E: Element>(from: *const E, to: *mut E, count: usize, quants: [Quant; 2]) {
    // SAFETY: the caller's: `count` values on both sides.
    unsafe {
        if quants[0] == quants[1] {
            std::ptr::copy_nonoverlapping(from, to, count);
            return;
        }
        let mut i = 0;
        while i + V::LANES <= count {
            let x: V = E::load(from.add(i), quants[0]);
            E::store(to.add(i), x, quants[1]);
            i += V::LANES;
        }
        while i < count {
            *to.add(i) = (*from.add(i)).convert(quants[0], quants[1]);
            i += 1;
        }
    }
}

/// The caller's images, channels first, into the arena, channels last; writes the margin's zeros too.
pub(in crate::engine) struct ImageIn {
    pub output: View,
}

impl Kernel for ImageIn {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        let rows = batch * (self.output.size[0] + self.output.margin[0] + self.output.margin[1]);
        task_count(batch * self.output.image(), VALUES_PER_TASK, threads, rows)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe { dispatch!(context, image_in(this: &ImageIn = self, context: &Context = context, task: usize = task)) }
    }

    fn name(&self) -> String {
        "layout".to_string()
    }
}

#[inline(always)]
unsafe fn image_in<V: Vector, E: Element>(this: &ImageIn, context: &Context, task: usize) {
    let (view, [height, width], quant) = (&this.output, this.output.size, this.output.quant);
    let rows = height + view.margin[0] + view.margin[1];
    let zero = E::from_real(0.0, quant);
    for index in part(context.batch * rows, task, this.tasks(context.batch, context.threads)) {
        let (n, y) = (index / rows, index % rows);
        // SAFETY: rows of the view, and of the caller's images.
        unsafe {
            let row = std::slice::from_raw_parts_mut(context.at::<E>(view, n).add(y * view.row()), view.row());
            let Some(y) = y.checked_sub(view.margin[0]).filter(|&y| y < height) else {
                row.fill(zero);
                continue;
            };
            let (left, rest) = row.split_at_mut(view.margin[2] * view.pixel);
            let (middle, right) = rest.split_at_mut(width * view.pixel);
            left.fill(zero);
            right.fill(zero);
            let source = context.images.add((n * view.channels * height + y) * width);
            let plane = |c: usize| std::slice::from_raw_parts(source.add(c * height * width), width);
            let stored = |x: &f32| E::from_real(*x, quant);
            if view.pixel == 3 {
                let planes = [plane(0), plane(1), plane(2)];
                for (x, pixel) in middle.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                    *pixel = [stored(&planes[0][x]), stored(&planes[1][x]), stored(&planes[2][x])];
                }
            } else {
                for c in 0..view.channels {
                    let values = plane(c);
                    middle[c..].iter_mut().step_by(view.pixel).zip(values).for_each(|(to, from)| *to = stored(from));
                }
            }
        }
    }
}

/// Maps joined along channels.
pub(in crate::engine) struct Concat {
    pub inputs: Vec<View>,
    pub output: View,
}

impl Kernel for Concat {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        let pixels = batch * self.output.pixels();
        task_count(pixels * self.output.pixel, VALUES_PER_TASK, threads, pixels)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe { dispatch!(context, concat(this: &Concat = self, context: &Context = context, task: usize = task)) }
    }

    fn name(&self) -> String {
        "concat".to_string()
    }
}

#[inline(always)]
unsafe fn concat<V: Vector, E: Element>(this: &Concat, context: &Context, task: usize) {
    let output = &this.output;
    for pixel in part(context.batch * output.pixels(), task, this.tasks(context.batch, context.threads)) {
        // SAFETY: the views lie in the arena; channels add up to the output's.
        unsafe {
            let mut to = context.at::<E>(output, 0).add(pixel * output.pixel);
            for input in &this.inputs {
                let from = context.at::<E>(input, 0).add(pixel * input.pixel).cast_const();
                copy::<V, E>(from, to, input.channels, [input.quant, output.quant]);
                to = to.add(input.channels);
            }
        }
    }
}

/// Channels of zeros in front and behind.
pub(in crate::engine) struct PadChannels {
    pub input: View,
    pub output: View,
    pub before: usize,
}

impl Kernel for PadChannels {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        let pixels = batch * self.output.pixels();
        task_count(pixels * self.output.pixel, VALUES_PER_TASK, threads, pixels)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe {
            dispatch!(context, pad_channels(this: &PadChannels = self, context: &Context = context, task: usize = task))
        }
    }

    fn name(&self) -> String {
        "pad channels".to_string()
    }
}

#[inline(always)]
unsafe fn pad_channels<V: Vector, E: Element>(this: &PadChannels, context: &Context, task: usize) {
    let (input, output) = (&this.input, &this.output);
    for pixel in part(context.batch * output.pixels(), task, this.tasks(context.batch, context.threads)) {
        // SAFETY: the views lie in the arena.
        unsafe {
            let to = context.at::<E>(output, 0).add(pixel * output.pixel);
            std::slice::from_raw_parts_mut(to, output.pixel).fill(E::from_real(0.0, output.quant));
            let from = context.at::<E>(input, 0).add(pixel * input.pixel).cast_const();
            copy::<V, E>(from, to.add(this.before), input.channels, [input.quant, output.quant]);
        }
    }
}

/// Every `stride`-th row and column.
pub(in crate::engine) struct Subsample {
    pub input: View,
    pub output: View,
    pub stride: [usize; 2],
}

impl Kernel for Subsample {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        let rows = batch * self.output.size[0];
        task_count(rows * self.output.row(), VALUES_PER_TASK, threads, rows)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe {
            dispatch!(context, subsample(this: &Subsample = self, context: &Context = context, task: usize = task))
        }
    }

    fn name(&self) -> String {
        "subsample".to_string()
    }
}

#[inline(always)]
unsafe fn subsample<V: Vector, E: Element>(this: &Subsample, context: &Context, task: usize) {
    let (input, output, [height, width]) = (&this.input, &this.output, this.output.size);
    for row in part(context.batch * height, task, this.tasks(context.batch, context.threads)) {
        let (n, y) = (row / height, row % height);
        for x in 0..width {
            // SAFETY: the views lie in the arena; strided positions are inside the input.
            unsafe {
                let from = (y * this.stride[0] * input.size[1] + x * this.stride[1]) * input.pixel;
                let from = context.at::<E>(input, n).add(from).cast_const();
                let to = context.at::<E>(output, n).add((y * width + x) * output.pixel);
                copy::<V, E>(from, to, output.pixel, [input.quant, output.quant]);
            }
        }
    }
}

/// A map as one vector, channel by channel, as PyTorch has it.
pub(in crate::engine) struct Flatten {
    pub input: View,
    pub output: View,
}

impl Kernel for Flatten {
    fn tasks(&self, batch: usize, _threads: usize) -> usize {
        batch
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe { dispatch!(context, flatten(this: &Flatten = self, context: &Context = context, task: usize = task)) }
    }

    fn name(&self) -> String {
        "flatten".to_string()
    }
}

#[inline(always)]
unsafe fn flatten<V: Vector, E: Element>(this: &Flatten, context: &Context, task: usize) {
    let (input, output, pixels) = (&this.input, &this.output, this.input.pixels());
    // SAFETY: the views lie in the arena; the output has `pixels · channels` values.
    unsafe {
        let (from, to) = (context.at::<E>(input, task), context.at::<E>(output, task));
        for c in 0..input.channels {
            for pixel in 0..pixels {
                *to.add(c * pixels + pixel) = (*from.add(pixel * input.pixel + c)).convert(input.quant, output.quant);
            }
        }
    }
}
