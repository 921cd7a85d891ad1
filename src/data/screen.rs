//! A first look at every image: broken ones are named and set aside before training starts.

use std::sync::atomic::{AtomicUsize, Ordering};

use log::warn;
use serde::{Deserialize, Serialize};

use super::cache::CachedSource;
use super::loader::default_workers;
use crate::error::{Error, Result};

/// How to screen a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScreenConfig {
    /// Decoding threads.
    pub workers: usize,
    /// The largest fraction of broken images that is put up with.
    pub max_broken_fraction: f32,
}

impl Default for ScreenConfig {
    /// Half of the cores, and half of the images.
    fn default() -> Self {
        Self { workers: default_workers(), max_broken_fraction: 0.5 }
    }
}

impl ScreenConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.workers == 0 {
            return Err(Error::Config("screening: expected at least 1 worker, got 0".into()));
        }
        if !(0.0..=1.0).contains(&self.max_broken_fraction) {
            let got = self.max_broken_fraction;
            return Err(Error::Config(format!("screening: expected max_broken_fraction within 0..=1, got {got}")));
        }
        Ok(())
    }
}

/// The images of a source, sorted into usable and broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screened {
    /// Indices of the images that decode, ascending.
    pub good: Vec<usize>,
    /// Name and reason of those that do not, in the order of the source.
    pub broken: Vec<(String, String)>,
}

/// Decodes every image of `images` once, in parallel, which also fills the cache, and warns of each broken one.
///
/// # Errors
/// [`Error::Data`] if no image is usable or more than the allowed fraction is broken, [`Error::Config`] if
/// `config` is out of range.
pub fn screen(images: &CachedSource, config: &ScreenConfig) -> Result<Screened> {
    config.validate()?;
    let count = images.source().len();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut broken = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return broken;
            }
            if let Err(error) = images.decode(index) {
                broken.push((index, reason_of(&error)));
            }
        }
    };
    let mut broken: Vec<(usize, String)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..config.workers.min(count)).map(|_| scope.spawn(work)).collect();
        let mut broken = work();
        for thread in threads {
            broken.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        broken
    });
    broken.sort_unstable();
    sort_out(images, config, broken)
}

fn sort_out(images: &CachedSource, config: &ScreenConfig, broken: Vec<(usize, String)>) -> Result<Screened> {
    let source = images.source();
    let count = source.len();
    let good: Vec<usize> =
        (0..count).filter(|i| broken.binary_search_by_key(i, |(index, _)| *index).is_err()).collect();
    let broken: Vec<_> = broken.into_iter().map(|(index, reason)| (source.name(index), reason)).collect();
    for (name, reason) in &broken {
        warn!("broken image is left out path={name} reason={reason}");
    }
    let too_many = broken.len() as f64 > f64::from(config.max_broken_fraction) * count as f64;
    match broken.first() {
        Some((name, reason)) if good.is_empty() || too_many => {
            let most = config.max_broken_fraction * 100.0;
            let reason = format!(
                "expected a usable image and at most {most} % broken, got {} of {count} broken (first: {name}: {reason})",
                broken.len()
            );
            Err(Error::data(source.path(), reason))
        }
        _ => Ok(Screened { good, broken }),
    }
}

/// What an error says besides the path, which is reported as the name.
fn reason_of(error: &Error) -> String {
    match error {
        Error::Data { reason, .. } => reason.clone(),
        Error::Io { action, source, .. } => format!("cannot {action}: {source}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::write_png;
    use super::super::{DEFAULT_CACHE_BYTES, Source, SourceConfig};
    use super::*;

    fn folder(good: usize, broken: usize) -> (tempfile::TempDir, CachedSource) {
        let dir = tempfile::tempdir().unwrap();
        (0..good).for_each(|i| write_png(&dir.path().join(format!("a{i}.png")), 6, 6));
        (0..broken).for_each(|i| std::fs::write(dir.path().join(format!("b{i}.png")), "").unwrap());
        let source = Source::open(dir.path(), &SourceConfig::default()).unwrap();
        (dir, CachedSource::new(source, DEFAULT_CACHE_BYTES))
    }

    #[test]
    fn broken_images_are_named_and_the_cache_is_filled() {
        for workers in [1, 3] {
            let (dir, images) = folder(5, 2);
            let screened = screen(&images, &ScreenConfig { workers, ..ScreenConfig::default() }).unwrap();
            assert_eq!(screened.good, [0, 1, 2, 3, 4]);
            let names: Vec<_> = ["b0.png", "b1.png"].map(|n| dir.path().join(n).display().to_string()).to_vec();
            assert_eq!(screened.broken.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), names);
            assert_eq!(screened.broken[0].1, "expected an image, got an empty file");
            assert_eq!(images.cached_bytes(), 5 * 6 * 6 * 3);
        }
    }

    #[test]
    fn too_many_broken_images_are_an_error() {
        let (_half, images) = folder(2, 2);
        assert!(screen(&images, &ScreenConfig::default()).is_ok());
        let (_most, images) = folder(2, 3);
        let error = screen(&images, &ScreenConfig::default()).unwrap_err();
        assert!(matches!(error, Error::Data { .. }) && error.to_string().contains("3 of 5 broken (first: "), "{error}");
        let (_all, images) = folder(0, 2);
        let lenient = ScreenConfig { max_broken_fraction: 1.0, ..ScreenConfig::default() };
        assert!(screen(&images, &lenient).is_err());
        assert!(ScreenConfig { max_broken_fraction: 1.5, ..lenient.clone() }.validate().is_err());
        assert!(ScreenConfig { workers: 0, ..lenient }.validate().is_err());
    }
}
