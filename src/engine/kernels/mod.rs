//! The steps a plan is made of. Each cuts its work into tasks that write to disjoint places.
//!
//! Activations are channels-last, every pixel padded to whole blocks of channels. What lies in the padding is never
//! read as a value: a kernel may leave anything there.

mod band;
mod conv;
mod conv_int8;
mod copy;
mod depthwise;
mod elementwise;
pub(super) mod epilogue;
pub(super) mod gemm;
mod gemm_int8;
mod pool;
mod taps;
mod winograd;

pub(super) use band::OVERRUN;
pub(super) use conv::{Conv, ConvWeights};
pub(super) use conv_int8::ConvInt8;
pub(super) use copy::{Concat, Flatten, ImageIn, PadChannels, Subsample};
pub(super) use depthwise::Depthwise;
pub(super) use elementwise::{Activate, Affine, Scale, Sum};
pub(super) use pool::{GlobalAvgPool, PoolKind, Pooling};
pub(super) use winograd::{Winograd, WinogradTile};

use super::Precision;
use super::element::{Element, Quant};
use super::simd::Isa;

/// Where an activation lies in the arena: one image after the other, row by row, pixel by pixel. Places and distances
/// count stored values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct View {
    /// First value of the first image, margin included.
    pub offset: usize,
    /// Rows and columns, without the margin.
    pub size: [usize; 2],
    /// Channels that mean something.
    pub channels: usize,
    /// Values from pixel to pixel.
    pub pixel: usize,
    /// Zero rows and columns around: top, bottom, left, right.
    pub margin: [usize; 4],
    /// What stored values stand for.
    pub quant: Quant,
}

impl View {
    /// Pixels per image, without the margin.
    pub const fn pixels(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Values from row to row.
    pub const fn row(&self) -> usize {
        (self.size[1] + self.margin[2] + self.margin[3]) * self.pixel
    }

    /// Values from image to image.
    pub const fn image(&self) -> usize {
        (self.size[0] + self.margin[0] + self.margin[1]) * self.row()
    }
}

/// What a task works with.
#[derive(Clone, Copy)]
pub(super) struct Context {
    pub isa: Isa,
    /// What the arena holds: f32 or u8.
    pub precision: Precision,
    /// Images in this run.
    pub batch: usize,
    pub threads: usize,
    /// The arena.
    pub arena: *mut f32,
    /// This worker's scratch.
    pub scratch: *mut f32,
    /// The caller's images, NCHW.
    pub images: *const f32,
}

impl Context {
    /// First value of image `n` in a view without margin.
    ///
    /// # Safety
    /// The view lies in the arena.
    unsafe fn at<E: Element>(&self, view: &View, n: usize) -> *mut E {
        // SAFETY: the caller's.
        unsafe { self.arena.cast::<E>().add(view.offset + n * view.image()) }
    }
}

/// One step of a plan.
pub(super) trait Kernel: Send + Sync {
    /// How many tasks the step has for so many images; the tasks may run at the same time.
    fn tasks(&self, batch: usize, threads: usize) -> usize;

    /// Runs task `task`.
    ///
    /// # Safety
    /// The arena and scratch are as large as the plan says, all earlier steps are done, the processor has the instruction
    /// set, and no other call has the same task.
    unsafe fn run(&self, task: usize, context: &Context);

    /// f32 values of scratch a worker needs.
    fn scratch(&self) -> usize {
        0
    }

    /// The algorithm's name, for profiles.
    fn name(&self) -> String;

    /// Bytes of packed weights.
    fn weight_bytes(&self) -> usize {
        0
    }
}

/// Part `task` of `0..count` cut into `tasks` parts whose sizes differ by at most one.
fn part(count: usize, task: usize, tasks: usize) -> std::ops::Range<usize> {
    let (size, rest) = (count / tasks, count % tasks);
    let start = task * size + task.min(rest);
    start..start + size + usize::from(task < rest)
}

/// A number of tasks for `work` units of some nanoseconds each: enough to balance the threads, not so many that
/// handing them out costs anything.
fn task_count(work: usize, per_task: usize, threads: usize, most: usize) -> usize {
    if threads == 1 {
        return 1;
    }
    (work / per_task.max(1)).clamp(1, 8 * threads).next_multiple_of(threads).min(most.max(1))
}
