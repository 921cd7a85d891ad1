//! The images that are kept to learn from.
//!
//! The folder is its own index: a file's name says when it came, what it looks like and which class was seen in it,
//! `NUMBER-HASH-CLASS.EXTENSION`. So there is nothing beside the images that a crash could leave in disagreement with
//! them; foreign files are left alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::daemon::folders::plain_files;
use crate::{Error, Result};

/// How large the reservoir may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Images.
    pub images: usize,
    /// Bytes of their files together.
    pub bytes: u64,
}

/// An image of the reservoir.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The how manieth image it was, counted from 1; numbers are not given twice while an image after it is kept.
    pub number: u64,
    /// Its difference hash.
    pub hash: u64,
    /// The class that was seen in it.
    pub class: usize,
    /// Length of its file.
    pub bytes: u64,
    /// Ending of its file.
    pub extension: String,
}

impl Kept {
    /// The name of its file.
    pub fn name(&self) -> String {
        format!("{:010}-{:016x}-{:05}.{}", self.number, self.hash, self.class, self.extension)
    }

    fn parse(name: &str, bytes: u64) -> Option<Self> {
        let (stem, extension) = name.rsplit_once('.')?;
        let mut parts = stem.split('-');
        let kept = Self {
            number: parts.next()?.parse().ok()?,
            hash: u64::from_str_radix(parts.next()?, 16).ok()?,
            class: parts.next()?.parse().ok()?,
            bytes,
            extension: extension.to_string(),
        };
        // In the one spelling, so that a name found again is the one that was written.
        (kept.name() == name).then_some(kept)
    }
}

/// A bounded folder of images, balanced over the classes that were seen in them.
#[derive(Debug)]
pub struct Reservoir {
    folder: PathBuf,
    bounds: Bounds,
    kept: BTreeMap<u64, Kept>,
    bytes: u64,
    /// Images removed to make room.
    pub evicted: u64,
}

impl Reservoir {
    /// Takes up what is in `folder`, which becomes empty if it cannot be listed.
    pub fn open(folder: &Path, bounds: Bounds) -> Self {
        let files = plain_files(folder).unwrap_or_else(|error| {
            log::warn!("reservoir cannot be read: {error}");
            Vec::new()
        });
        let kept: BTreeMap<u64, Kept> = files
            .iter()
            .filter_map(|(name, file)| Kept::parse(name, file.len()))
            .map(|kept| (kept.number, kept))
            .collect();
        let bytes = kept.values().map(|kept| kept.bytes).sum();
        let mut reservoir = Self { folder: folder.to_path_buf(), bounds, kept, bytes, evicted: 0 };
        reservoir.make_room(0);
        reservoir
    }

    /// Other bounds, in force at once.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.make_room(0);
    }

    /// Images kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Bytes of their files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The images, the oldest first.
    pub fn images(&self) -> impl DoubleEndedIterator<Item = &Kept> {
        self.kept.values()
    }

    /// Where an image's file is.
    pub fn path(&self, kept: &Kept) -> PathBuf {
        self.folder.join(kept.name())
    }

    /// The number of the latest image; 0 without any.
    pub fn latest(&self) -> u64 {
        self.kept.last_key_value().map_or(0, |(number, _)| *number)
    }

    /// Images after `number`.
    pub fn newer_than(&self, number: u64) -> usize {
        self.kept.range(number.saturating_add(1)..).count()
    }

    /// Images of each class that occurs.
    pub fn classes(&self) -> BTreeMap<usize, usize> {
        let mut counts = BTreeMap::new();
        self.kept.values().for_each(|kept| *counts.entry(kept.class).or_insert(0) += 1);
        counts
    }

    /// An image that differs from `hash` in at most `bits` bits.
    pub fn similar(&self, hash: u64, bits: u32) -> Option<&Kept> {
        self.kept.values().find(|kept| (kept.hash ^ hash).count_ones() <= bits)
    }

    /// Keeps an image after numbers up to `after`. `put` brings its file to the path it is given; afterwards the class
    /// with most images loses its oldest until the bounds are kept.
    ///
    /// # Errors
    /// Those of `put`; nothing is kept then.
    pub fn keep(
        &mut self,
        (hash, class, extension): (u64, usize, &str),
        bytes: u64,
        after: u64,
        put: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<u64> {
        let number = self.latest().max(after) + 1;
        let kept = Kept { number, hash, class, bytes, extension: extension.to_string() };
        put(&self.path(&kept))?;
        self.bytes += bytes;
        self.kept.insert(number, kept);
        self.make_room(number);
        Ok(number)
    }

    /// Another class was seen in an image.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be renamed; it keeps its class.
    pub fn relabel(&mut self, number: u64, class: usize) -> Result<()> {
        let Some(old) = self.kept.get(&number).filter(|kept| kept.class != class) else { return Ok(()) };
        let new = Kept { class, ..old.clone() };
        let (from, to) = (self.path(old), self.path(&new));
        fs::rename(&from, to).map_err(|e| Error::io("rename", from, e))?;
        self.kept.insert(number, new);
        Ok(())
    }

    /// Hard links to all images in a new folder, copies where there are no links. So a run's images stay what they are
    /// while the reservoir changes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn link_into(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(|e| Error::io("create folder", folder, e))?;
        for kept in self.kept.values() {
            let (from, to) = (self.path(kept), folder.join(kept.name()));
            match fs::hard_link(&from, &to) {
                // Somebody cleaned up by hand.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(_) => drop(fs::copy(&from, &to).map_err(|e| Error::io("copy to", &to, e))?),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Removes images until the bounds are kept, but never `spared`.
    fn make_room(&mut self, spared: u64) {
        while self.kept.len() > self.bounds.images || self.bytes > self.bounds.bytes {
            let classes = self.classes();
            let most = classes.values().max().copied();
            let first = |kept: &&Kept| classes.get(&kept.class).copied() == most && kept.number != spared;
            // A class may consist of the spared one alone; then any other goes.
            let oldest = self.kept.values().find(first).or_else(|| self.kept.values().find(|k| k.number != spared));
            let Some(oldest) = oldest.cloned() else { return };
            if let Err(error) = fs::remove_file(self.path(&oldest))
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::debug!("image cannot be removed path={}: {error}", self.path(&oldest).display());
                return;
            }
            self.kept.remove(&oldest.number);
            self.bytes -= oldest.bytes;
            self.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { images: 6, bytes: 1000 };

    fn add(reservoir: &mut Reservoir, class: usize, bytes: usize) {
        let hash = reservoir.latest().wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let put = |path: &Path| fs::write(path, vec![0; bytes]).map_err(|e| Error::io("write", path, e));
        reservoir.keep((hash, class, "jpg"), bytes as u64, 0, put).unwrap();
    }

    fn numbers(reservoir: &Reservoir) -> Vec<u64> {
        reservoir.images().map(|kept| kept.number).collect()
    }

    #[test]
    fn the_largest_class_loses_its_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let mut reservoir = Reservoir::open(folder.path(), BOUNDS);
        [0, 0, 0, 0, 1, 2].into_iter().for_each(|class| add(&mut reservoir, class, 10));
        add(&mut reservoir, 1, 10);
        add(&mut reservoir, 1, 10);
        assert_eq!(numbers(&reservoir), [3, 4, 5, 6, 7, 8]);
        assert_eq!(reservoir.classes(), BTreeMap::from([(0, 2), (1, 3), (2, 1)]));
        assert_eq!((reservoir.evicted, reservoir.newer_than(6), reservoir.bytes()), (2, 2, 60));
        add(&mut reservoir, 3, 950);
        assert_eq!(numbers(&reservoir).last(), Some(&9), "the newest stays");
        assert!(reservoir.bytes() <= 1000);
    }

    #[test]
    fn what_is_in_the_folder_is_taken_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut reservoir = Reservoir::open(folder.path(), BOUNDS);
        (0..5).for_each(|class| add(&mut reservoir, class, 10));
        reservoir.relabel(2, 7).unwrap();
        fs::write(folder.path().join("note.txt"), "foreign").unwrap();
        fs::write(folder.path().join("3-ff-1.jpg"), "another spelling").unwrap();
        let again = Reservoir::open(folder.path(), BOUNDS);
        assert_eq!(again.images().collect::<Vec<_>>(), reservoir.images().collect::<Vec<_>>());
        assert_eq!((again.bytes(), again.latest()), (50, 5));
        let smaller = Reservoir::open(folder.path(), Bounds { images: 2, ..BOUNDS });
        assert_eq!(smaller.len(), 2);
        assert!(folder.path().join("note.txt").exists());
    }

    #[test]
    fn similar_images_are_found_and_a_failed_one_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut reservoir = Reservoir::open(folder.path(), BOUNDS);
        let put = |path: &Path| fs::write(path, "x").map_err(|e| Error::io("write", path, e));
        reservoir.keep((0b1011, 0, "png"), 1, 4, put).unwrap();
        assert_eq!(reservoir.similar(0b1000, 2).map(|kept| kept.number), Some(5));
        assert_eq!(reservoir.similar(0b1000, 1), None);
        reservoir.keep((7, 0, "png"), 1, 0, |_| Err(Error::Overloaded("no".into()))).unwrap_err();
        assert_eq!((reservoir.len(), reservoir.bytes()), (1, 1));
    }

    #[test]
    fn links_outlast_the_reservoir() {
        let folder = tempfile::tempdir().unwrap();
        let mut reservoir = Reservoir::open(folder.path(), BOUNDS);
        (0..3).for_each(|class| add(&mut reservoir, class, 10));
        let links = folder.path().join("run/images");
        reservoir.link_into(&links).unwrap();
        reservoir.set_bounds(Bounds { images: 1, ..BOUNDS });
        assert_eq!((reservoir.len(), plain_files(&links).unwrap().len()), (1, 3));
    }
}
