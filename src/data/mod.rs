//! Images from folders, IDX files and tensors: decoding, transforms and a seeded, resumable loader.
//!
//! The way of an image: a [`Source`] names and decodes it to an [`Image`] of 8-bit pixels, [`CachedSource`]
//! keeps the decoded pixels, [`screen`] sets broken files aside, a [`Transform`] turns pixels into the
//! normalised floats a model wants, and [`TrainLoader`] or [`OrderedPass`] deliver them as a [`Batch`] while
//! background threads prepare the next ones. Nothing here knows what a model is: the sizes and statistics
//! arrive as a [`Preprocess`].
//!
//! Every result depends on the files, the seed and the position alone, never on the number of threads, and
//! resampling is integer arithmetic, random affine maps the four basic operations, so that a resumed or repeated run sees the
//! same bits.

mod affine;
mod augment;
mod batch;
mod cache;
mod decode;
mod file;
mod image;
mod jpeg;
mod loader;
mod plan;
mod pool;
mod preprocess;
mod resample;
mod screen;
mod source;
#[cfg(test)]
mod testing;

pub use augment::{Augment, Transform};
pub use batch::Batch;
pub use cache::{CachedSource, DEFAULT_CACHE_BYTES};
pub use decode::ImageLimits;
pub use file::read_image;
pub use image::Image;
pub use loader::{LoaderConfig, OrderedPass, TrainLoader};
pub use plan::{LoaderState, Subset};
pub use preprocess::{Interpolation, Preprocess};
pub use screen::{ScreenConfig, Screened, screen};
pub use source::{Source, SourceConfig, images_below};
