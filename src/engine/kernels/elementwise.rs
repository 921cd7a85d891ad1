//! Elementwise steps that no other step could absorb.

use super::{Context, Kernel, View, part, task_count};
use crate::engine::dispatch::dispatch;
use crate::engine::element::Element;
use crate::simd::Vector;
use crate::simd::epilogue::{Epilogue, clamp, smooth};

const VALUES_PER_TASK: usize = 1 << 16;

fn pixel_tasks(view: &View, batch: usize, threads: usize) -> usize {
    let pixels = batch * view.pixels();
    task_count(pixels * view.pixel, VALUES_PER_TASK, threads, pixels)
}

#[inline(always)]
unsafe fn finish<V: Vector>(x: V, epilogue: &Epilogue) -> V {
    // SAFETY: the caller's.
    unsafe {
        let y = clamp(x, V::splat(epilogue.low), V::splat(epilogue.high));
        match epilogue.smooth {
            Some(function) => smooth(y, function),
            None => y,
        }
    }
}

/// The sum of maps of one shape, with its activation.
pub(in crate::engine) struct Sum {
    pub inputs: Vec<View>,
    pub output: View,
    pub epilogue: Epilogue,
}

impl Kernel for Sum {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        pixel_tasks(&self.output, batch, threads)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe { dispatch!(context, sum(this: &Sum = self, context: &Context = context, task: usize = task)) }
    }

    fn name(&self) -> String {
        "add".to_string()
    }
}

#[inline(always)]
unsafe fn sum<V: Vector, E: Element>(this: &Sum, context: &Context, task: usize) {
    let pixels = part(context.batch * this.output.pixels(), task, this.tasks(context.batch, context.threads));
    // All views have the same pixels, without margin: each is one run of values.
    let mut i = pixels.start * this.output.pixel;
    // SAFETY: the views lie in the arena.
    unsafe {
        while i < pixels.end * this.output.pixel {
            let mut acc = V::splat(0.0);
            for input in &this.inputs {
                acc = acc.add(E::load(context.at::<E>(input, 0).add(i), input.quant));
            }
            E::store(context.at::<E>(&this.output, 0).add(i), finish::<V>(acc, &this.epilogue), this.output.quant);
            i += V::LANES;
        }
    }
}

/// One scale and one shift per channel (a batch normalisation with nothing in front to fold into), with its activation.
pub(in crate::engine) struct Affine {
    pub input: View,
    pub output: View,
    /// One value per padded channel.
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub epilogue: Epilogue,
}

impl Kernel for Affine {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        pixel_tasks(&self.output, batch, threads)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe { dispatch!(context, affine(this: &Affine = self, context: &Context = context, task: usize = task)) }
    }

    fn name(&self) -> String {
        "affine".to_string()
    }

    fn weight_bytes(&self) -> usize {
        (self.scale.len() + self.shift.len()) * size_of::<f32>()
    }
}

#[inline(always)]
unsafe fn affine<V: Vector, E: Element>(this: &Affine, context: &Context, task: usize) {
    for pixel in part(context.batch * this.output.pixels(), task, this.tasks(context.batch, context.threads)) {
        // SAFETY: the views lie in the arena; scale and shift are as long as a pixel.
        unsafe {
            let from = context.at::<E>(&this.input, 0).add(pixel * this.input.pixel);
            let to = context.at::<E>(&this.output, 0).add(pixel * this.output.pixel);
            let mut c = 0;
            while c < this.output.pixel {
                let (scale, shift) = (V::load(this.scale.as_ptr().add(c)), V::load(this.shift.as_ptr().add(c)));
                let y = finish::<V>(shift.fma(E::load(from.add(c), this.input.quant), scale), &this.epilogue);
                E::store(to.add(c), y, this.output.quant);
                c += V::LANES;
            }
        }
    }
}

/// An activation on its own.
pub(in crate::engine) struct Activate {
    pub input: View,
    pub output: View,
    pub epilogue: Epilogue,
}

impl Kernel for Activate {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        pixel_tasks(&self.output, batch, threads)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe { dispatch!(context, activate(this: &Activate = self, context: &Context = context, task: usize = task)) }
    }

    fn name(&self) -> String {
        "activation".to_string()
    }
}

#[inline(always)]
unsafe fn activate<V: Vector, E: Element>(this: &Activate, context: &Context, task: usize) {
    let pixels = part(context.batch * this.output.pixels(), task, this.tasks(context.batch, context.threads));
    let mut i = pixels.start * this.output.pixel;
    // SAFETY: the views lie in the arena and have the same pixels.
    unsafe {
        while i < pixels.end * this.output.pixel {
            let x = E::load(context.at::<E>(&this.input, 0).add(i), this.input.quant);
            E::store(context.at::<E>(&this.output, 0).add(i), finish::<V>(x, &this.epilogue), this.output.quant);
            i += V::LANES;
        }
    }
}

/// A map times a gate per image and channel (squeeze and excitation).
pub(in crate::engine) struct Scale {
    pub input: View,
    pub gate: View,
    pub output: View,
    pub epilogue: Epilogue,
}

impl Kernel for Scale {
    fn tasks(&self, batch: usize, threads: usize) -> usize {
        pixel_tasks(&self.output, batch, threads)
    }

    unsafe fn run(&self, task: usize, context: &Context) {
        // SAFETY: the caller's.
        unsafe { dispatch!(context, scale(this: &Scale = self, context: &Context = context, task: usize = task)) }
    }

    fn name(&self) -> String {
        "scale".to_string()
    }
}

#[inline(always)]
unsafe fn scale<V: Vector, E: Element>(this: &Scale, context: &Context, task: usize) {
    for pixel in part(context.batch * this.output.pixels(), task, this.tasks(context.batch, context.threads)) {
        // SAFETY: the views lie in the arena.
        unsafe {
            let gate = context.at::<E>(&this.gate, pixel / this.output.pixels());
            let from = context.at::<E>(&this.input, 0).add(pixel * this.input.pixel);
            let to = context.at::<E>(&this.output, 0).add(pixel * this.output.pixel);
            let mut c = 0;
            while c < this.output.pixel {
                let y: V = E::load(from.add(c), this.input.quant);
                let y = finish(y.mul(E::load(gate.add(c), this.gate.quant)), &this.epilogue);
                E::store(to.add(c), y, this.output.quant);
                c += V::LANES;
            }
        }
    }
}
