//! Which image comes when: a pure function of seed, epoch and position.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cache::CachedSource;
use super::image::Image;
use crate::error::{Error, Result};
use crate::rng::{Rng, mix};

/// Sets the shuffles apart from the augmentations under one seed.
const SHUFFLE: u64 = 0x5348_5546_464C_4521;

/// A list of indices into a shared source: the images a loader goes over.
#[derive(Debug, Clone)]
pub struct Subset {
    images: Arc<CachedSource>,
    indices: Arc<[usize]>,
}

impl Subset {
    /// The images at `indices` of `images`, in that order.
    ///
    /// # Errors
    /// [`Error::Data`] if there are none, or one is beyond the source.
    pub fn new(images: Arc<CachedSource>, indices: Vec<usize>) -> Result<Self> {
        let (path, len) = (images.source().path(), images.source().len());
        if indices.is_empty() {
            return Err(Error::data(path, "expected at least one image to load, got none"));
        }
        if let Some(index) = indices.iter().find(|&&index| index >= len) {
            return Err(Error::data(path, format!("expected indices below {len}, got {index}")));
        }
        Ok(Self { images, indices: indices.into() })
    }

    /// All images of `images`.
    ///
    /// # Errors
    /// [`Error::Data`] if there are none.
    pub fn all(images: Arc<CachedSource>) -> Result<Self> {
        let indices = (0..images.source().len()).collect();
        Self::new(images, indices)
    }

    /// The source the indices point into.
    pub fn images(&self) -> &CachedSource {
        &self.images
    }

    /// The indices, in order.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// The number of images; at least one.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are no images: never.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The image at `place` of the list with its index, or the next one that decodes.
    pub(super) fn decode_or_next(&self, place: usize) -> Result<(usize, Arc<Image>)> {
        let (before, after) = self.indices.split_at(place);
        let mut candidates = after.iter().chain(before).copied();
        candidates.find_map(|index| Some((index, self.images.decode_or_warn(index)?))).ok_or_else(|| {
            let reason = format!("none of {} images can be decoded any more", self.len());
            Error::data(self.images.source().path(), reason)
        })
    }
}

/// Where a training loader stands: what a checkpoint keeps to continue with the same images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Seed of the shuffles and augmentations.
    pub seed: u64,
    /// Epochs begun before the current one.
    pub epoch: u64,
    /// Images delivered in the current epoch.
    pub position: usize,
}

impl LoaderState {
    /// The beginning of a run.
    pub fn new(seed: u64) -> Self {
        Self { seed, epoch: 0, position: 0 }
    }
}

/// One image of a planned batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    /// Place in the subset's list.
    pub(super) place: usize,
    /// Generator of its augmentation.
    pub(super) rng: Rng,
}

impl Slot {
    /// The `position`-th image of an epoch.
    pub(super) fn new(place: usize, state: &LoaderState, position: usize) -> Self {
        let stream = mix(mix(state.epoch).wrapping_add(position as u64));
        Self { place, rng: Rng::stream(state.seed, stream) }
    }
}

/// The endless sequence of training batches.
#[derive(Debug)]
pub(super) struct Plan {
    state: LoaderState,
    batch_size: usize,
    /// The current epoch's order of places.
    order: Vec<usize>,
}

impl Plan {
    /// The sequence over `count` images from `state` on.
    pub(super) fn new(count: usize, batch_size: usize, state: LoaderState) -> Result<Self> {
        if state.position > count {
            let reason = format!("loader state: expected a position up to {count} images, got {}", state.position);
            return Err(Error::Config(reason));
        }
        let mut plan = Self { state, batch_size, order: (0..count).collect() };
        plan.shuffle();
        Ok(plan)
    }

    /// The next batch, and the state once it has been delivered.
    ///
    /// An epoch drops the images that do not fill a last batch; if there are fewer images than a batch, each
    /// epoch is one batch that goes over them repeatedly, each time augmented anew.
    pub(super) fn next_batch(&mut self) -> (Vec<Slot>, LoaderState) {
        let count = self.order.len();
        if self.state.position > 0 && self.state.position + self.batch_size > count {
            self.state = LoaderState { epoch: self.state.epoch + 1, position: 0, ..self.state };
            self.shuffle();
        }
        let positions = self.state.position..self.state.position + self.batch_size;
        let slots = positions.map(|at| Slot::new(self.order[at % count], &self.state, at)).collect();
        self.state.position = (self.state.position + self.batch_size).min(count);
        (slots, self.state)
    }

    fn shuffle(&mut self) {
        self.order.sort_unstable();
        Rng::stream(self.state.seed ^ SHUFFLE, self.state.epoch).shuffle(&mut self.order);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::flat_source;
    use super::*;

    fn places(slots: &[Slot]) -> Vec<usize> {
        slots.iter().map(|slot| slot.place).collect()
    }

    #[test]
    fn each_epoch_is_a_fresh_permutation_without_its_partial_batch() {
        let mut plan = Plan::new(10, 3, LoaderState::new(1)).unwrap();
        let mut epochs = Vec::new();
        for epoch in 0..3 {
            let batches: Vec<_> = (0..3).map(|_| plan.next_batch()).collect();
            assert!(batches.iter().all(|(_, after)| after.epoch == epoch));
            let mut seen: Vec<_> = batches.iter().flat_map(|(slots, _)| places(slots)).collect();
            epochs.push(seen.clone());
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 9);
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    }

    #[test]
    fn fewer_images_than_a_batch_wrap_around_with_fresh_augmentations() {
        let mut plan = Plan::new(2, 5, LoaderState::new(1)).unwrap();
        let (first, after) = plan.next_batch();
        assert_eq!((after.epoch, after.position), (0, 2));
        let order = places(&first);
        assert_eq!((order[0], order[1]), (order[2], order[3]));
        assert_ne!(first[0].rng, first[2].rng);
        let (second, after) = plan.next_batch();
        assert_eq!(after.epoch, 1);
        assert_ne!(first[0].rng, second[0].rng);
    }

    #[test]
    fn every_state_continues_the_sequence() {
        for (count, batch) in [(10, 3), (9, 3), (2, 5), (1, 1)] {
            let mut plan = Plan::new(count, batch, LoaderState::new(7)).unwrap();
            for _ in 0..8 {
                let (_, after) = plan.next_batch();
                let text = serde_json::to_string(&after).unwrap();
                let mut resumed = Plan::new(count, batch, serde_json::from_str(&text).unwrap()).unwrap();
                let mut whole = Plan::new(count, batch, after).unwrap();
                assert_eq!(resumed.next_batch(), whole.next_batch());
                let mut ahead = Plan { state: plan.state, batch_size: batch, order: plan.order.clone() };
                assert_eq!(Plan::new(count, batch, after).unwrap().next_batch(), ahead.next_batch());
            }
        }
        assert!(Plan::new(3, 2, LoaderState { position: 4, ..LoaderState::new(1) }).is_err());
    }

    #[test]
    fn subsets_are_checked() {
        assert!(Subset::new(flat_source(3), vec![]).is_err());
        assert!(Subset::new(flat_source(3), vec![0, 3]).is_err());
        assert_eq!(Subset::all(flat_source(3)).unwrap().indices(), [0, 1, 2]);
    }
}
