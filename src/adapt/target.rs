//! The device's own images: screened, split, labelled where a final score is wanted.

use std::path::Path;
use std::sync::Arc;

use crate::data::{CachedSource, LoaderConfig, ScreenConfig, Screened, Source, Subset, screen};
use crate::model::ModelInfo;
use crate::rng::Rng;
use crate::{Error, Result};

/// Fewest images a run starts with: fewer give no usable batch statistics.
const FEWEST_IMAGES: usize = 8;
/// Most images kept out of training for the gate.
const MOST_HELD_OUT: usize = 256;
const HOLDOUT_STREAM: u64 = 0x484F_4C44;

/// Images of one domain.
#[derive(Debug)]
pub struct ImageSet {
    images: Arc<CachedSource>,
    good: Vec<usize>,
    broken: Vec<(String, String)>,
    /// For each image of the source, its class in the model's numbering, if its label is known to the model.
    labels: Vec<Option<usize>>,
}

impl ImageSet {
    /// Decodes every image once and sets the broken ones aside.
    ///
    /// # Errors
    /// [`Error::Data`] if too many are broken or too few are left.
    pub fn open(source: Source, info: &ModelInfo, cache_bytes: usize) -> Result<Self> {
        let labels = model_labels(&source, info);
        let images = Arc::new(CachedSource::new(source, cache_bytes));
        let Screened { good, broken } = screen(&images, &ScreenConfig::default())?;
        let set = Self { images, good, broken, labels };
        set.enough()?;
        Ok(set)
    }

    /// Leaves the readable images after the first `count` out.
    ///
    /// # Errors
    /// [`Error::Data`] if too few are left.
    pub fn keep_first(&mut self, count: usize) -> Result<()> {
        self.good.truncate(count);
        self.enough()
    }

    fn enough(&self) -> Result<()> {
        if self.good.len() < FEWEST_IMAGES {
            let reason = format!("expected at least {FEWEST_IMAGES} readable images, got {}", self.good.len());
            return Err(Error::data(self.path(), reason));
        }
        Ok(())
    }

    /// Indices of the readable images, ascending.
    pub fn good(&self) -> &[usize] {
        &self.good
    }

    /// Name and reason of each broken image.
    pub fn broken(&self) -> &[(String, String)] {
        &self.broken
    }

    /// Where the images lie.
    pub fn path(&self) -> &Path {
        self.images.source().path()
    }

    /// Digest of the images.
    pub fn digest(&self) -> String {
        self.images.source().digest()
    }

    /// The images at `indices`.
    pub fn subset(&self, indices: Vec<usize>) -> Result<Subset> {
        Subset::new(Arc::clone(&self.images), indices)
    }

    /// The class of image `index`, if known.
    pub fn label(&self, index: usize) -> Option<usize> {
        self.labels.get(index).copied().flatten()
    }

    /// Splits the readable images into training and held-out ones, by seed.
    pub fn split(&self, holdout: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
        let mut order = self.good.clone();
        Rng::stream(seed, HOLDOUT_STREAM).shuffle(&mut order);
        let held = ((order.len() as f64 * holdout).round() as usize).min(MOST_HELD_OUT);
        let train = order.split_off(held);
        (train, order)
    }
}

/// Matches the source's labels to the model's classes: by name where both have names, else by number.
fn model_labels(source: &Source, info: &ModelInfo) -> Vec<Option<usize>> {
    let classes = &info.class_names;
    let of_source: Option<Vec<Option<usize>>> =
        source.class_names().map(|names| names.iter().map(|name| classes.iter().position(|c| c == name)).collect());
    (0..source.len())
        .map(|index| {
            let label = source.label(index)?;
            match &of_source {
                Some(map) => map.get(label).copied().flatten(),
                None => (label < classes.len()).then_some(label),
            }
        })
        .collect()
}

/// Loader settings for passes over all images.
pub(super) fn pass_config(batch_size: usize) -> LoaderConfig {
    LoaderConfig { batch_size, ..LoaderConfig::default() }
}
