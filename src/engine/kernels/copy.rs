//! Steps that move values without arithmetic: image in, concatenation, channel padding, subsampling, flattening.

use super::{Context, Kernel, View, part, task_count};

const VALUES_PER_TASK: usize = 1 << 16;

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
        let (view, [height, width]) = (&self.output, self.output.size);
        let rows = height + view.margin[0] + view.margin[1];
        for index in part(context.batch * rows, task, self.tasks(context.batch, context.threads)) {
            let (n, y) = (index / rows, index % rows);
            // SAFETY: rows of the view, and of the caller's images.
            unsafe {
                let row = std::slice::from_raw_parts_mut(context.at(view, n).add(y * view.row()), view.row());
                let Some(y) = y.checked_sub(view.margin[0]).filter(|&y| y < height) else {
                    row.fill(0.0);
                    continue;
                };
                let (left, rest) = row.split_at_mut(view.margin[2] * view.pixel);
                let (middle, right) = rest.split_at_mut(width * view.pixel);
                left.fill(0.0);
                right.fill(0.0);
                let source = context.images.add((n * view.channels * height + y) * width);
                let plane = |c: usize| std::slice::from_raw_parts(source.add(c * height * width), width);
                if view.pixel == 3 {
                    let planes = [plane(0), plane(1), plane(2)];
                    for (x, pixel) in middle.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                        *pixel = [planes[0][x], planes[1][x], planes[2][x]];
                    }
                } else {
                    for c in 0..view.channels {
                        let values = plane(c);
                        middle[c..].iter_mut().step_by(view.pixel).zip(values).for_each(|(to, from)| *to = *from);
                    }
                }
            }
        }
    }

    fn name(&self) -> String {
        "layout".to_string()
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
        let pixels = context.batch * self.output.pixels();
        for pixel in part(pixels, task, self.tasks(context.batch, context.threads)) {
            // SAFETY: the views lie in the arena; channels add up to the output's.
            unsafe {
                let mut to = context.arena.add(self.output.offset + pixel * self.output.pixel);
                for input in &self.inputs {
                    let from = context.arena.add(input.offset + pixel * input.pixel);
                    std::ptr::copy_nonoverlapping(from, to, input.channels);
                    to = to.add(input.channels);
                }
            }
        }
    }

    fn name(&self) -> String {
        "concat".to_string()
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
        let pixels = context.batch * self.output.pixels();
        for pixel in part(pixels, task, self.tasks(context.batch, context.threads)) {
            // SAFETY: the views lie in the arena.
            unsafe {
                let to = context.arena.add(self.output.offset + pixel * self.output.pixel);
                std::slice::from_raw_parts_mut(to, self.output.pixel).fill(0.0);
                let from = context.arena.add(self.input.offset + pixel * self.input.pixel);
                std::ptr::copy_nonoverlapping(from, to.add(self.before), self.input.channels);
            }
        }
    }

    fn name(&self) -> String {
        "pad channels".to_string()
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
        let [height, width] = self.output.size;
        for row in part(context.batch * height, task, self.tasks(context.batch, context.threads)) {
            let (n, y) = (row / height, row % height);
            for x in 0..width {
                // SAFETY: the views lie in the arena; strided positions are inside the input.
                unsafe {
                    let from = (y * self.stride[0] * self.input.size[1] + x * self.stride[1]) * self.input.pixel;
                    let to = (y * width + x) * self.output.pixel;
                    let (from, to) = (context.at(&self.input, n).add(from), context.at(&self.output, n).add(to));
                    std::ptr::copy_nonoverlapping(from, to, self.output.pixel);
                }
            }
        }
    }

    fn name(&self) -> String {
        "subsample".to_string()
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
        let pixels = self.input.pixels();
        // SAFETY: the views lie in the arena; the output has `pixels · channels` values.
        unsafe {
            let (from, to) = (context.at(&self.input, task), context.at(&self.output, task));
            for c in 0..self.input.channels {
                for pixel in 0..pixels {
                    *to.add(c * pixels + pixel) = *from.add(pixel * self.input.pixel + c);
                }
            }
        }
    }

    fn name(&self) -> String {
        "flatten".to_string()
    }
}
