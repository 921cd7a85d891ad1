//! Decoded pixels kept in memory, so that later epochs do not decode again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::warn;

use super::image::Image;
use super::source::Source;
use crate::error::Result;

/// The usual cap of decoded pixels: 64 MiB. Decoding is a small part of a training step, and a board has little memory.
pub const DEFAULT_CACHE_BYTES: usize = 64 << 20;

/// A [`Source`] that remembers decoded images up to a number of bytes; shared between threads.
///
/// Nothing is ever evicted: over shuffled epochs each image is wanted equally often, so the ones that fit stay
/// and the rest is decoded each time. Sources that are not compressed are never kept twice.
#[derive(Debug)]
pub struct CachedSource {
    source: Source,
    max_bytes: usize,
    kept: Mutex<Kept>,
    /// Images that were reported as broken, so that each is reported once.
    reported: Mutex<HashSet<usize>>,
}

#[derive(Debug, Default)]
struct Kept {
    images: HashMap<usize, Arc<Image>>,
    bytes: usize,
}

impl CachedSource {
    /// Wraps `source`, keeping at most `max_bytes` of pixels; 0 keeps none.
    pub fn new(source: Source, max_bytes: usize) -> Self {
        let max_bytes = if source.is_compressed() { max_bytes } else { 0 };
        Self { source, max_bytes, kept: Mutex::default(), reported: Mutex::default() }
    }

    /// The source itself, for names and labels.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Bytes of pixels that are kept now.
    pub fn cached_bytes(&self) -> usize {
        lock(&self.kept).bytes
    }

    /// Image `index`, decoded now or before.
    ///
    /// # Errors
    /// As [`Source::decode`].
    pub fn decode(&self, index: usize) -> Result<Arc<Image>> {
        if let Some(image) = lock(&self.kept).images.get(&index) {
            return Ok(Arc::clone(image));
        }
        // Not under the lock: decoding is what the threads are for.
        let image = Arc::new(self.source.decode(index)?);
        let mut kept = lock(&self.kept);
        let bytes = kept.bytes + image.pixels().len();
        if bytes <= self.max_bytes && kept.images.insert(index, Arc::clone(&image)).is_none() {
            kept.bytes = bytes;
        }
        Ok(image)
    }

    /// Image `index`, or `None` and one warning for the life of this source.
    pub(super) fn decode_or_warn(&self, index: usize) -> Option<Arc<Image>> {
        self.decode(index)
            .inspect_err(|error| {
                if lock(&self.reported).insert(index) {
                    warn!("image cannot be used and is left out reason={error}");
                }
            })
            .ok()
    }
}

/// The content of `mutex`, also after a thread that held it panicked: every update here is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::SourceConfig;
    use super::super::testing::{flat_source, write_png};
    use super::*;

    #[test]
    fn what_fits_is_kept_and_the_rest_decoded_again() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..4 {
            write_png(&dir.path().join(format!("{i}.png")), 8, 8);
        }
        let source = Source::open(dir.path(), &SourceConfig::default()).unwrap();
        let cached = CachedSource::new(source, 2 * 8 * 8 * 3);
        for _ in 0..2 {
            (0..4).for_each(|i| assert_eq!(cached.decode(i).unwrap().width(), 8));
            assert_eq!(cached.cached_bytes(), 2 * 8 * 8 * 3);
        }
        std::fs::remove_dir_all(dir.path().join("")).unwrap();
        assert!(cached.decode(0).is_ok() && cached.decode(1).is_ok());
        assert!(cached.decode(2).is_err() && cached.decode_or_warn(3).is_none());
    }

    #[test]
    fn uncompressed_sources_are_not_kept_twice() {
        let source = Arc::into_inner(flat_source(3)).unwrap().source;
        let cached = CachedSource::new(source, DEFAULT_CACHE_BYTES);
        assert_eq!(cached.decode(2).unwrap().pixels(), [2; 16]);
        assert_eq!(cached.cached_bytes(), 0);
    }
}
