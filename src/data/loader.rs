//! Loaders: background threads decode and transform the next batches while the current one is computed on.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::augment::Transform;
use super::batch::Batch;
use super::plan::{LoaderState, Plan, Slot, Subset};
use super::pool::OrderedPool;
use crate::error::{Error, Result};

/// How batches are made; none of it changes the images in them but the batch size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Images of a batch.
    pub batch_size: usize,
    /// Threads that decode and transform.
    pub workers: usize,
    /// Batches that are prepared ahead.
    pub prefetch: usize,
}

impl Default for LoaderConfig {
    /// Batches of 16, two ahead, half of the cores.
    fn default() -> Self {
        Self { batch_size: 16, workers: default_workers(), prefetch: 2 }
    }
}

impl LoaderConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is zero.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("batch_size", self.batch_size), ("workers", self.workers), ("prefetch", self.prefetch)] {
            if value == 0 {
                return Err(Error::Config(format!("loader: expected {name} of at least 1, got 0")));
            }
        }
        Ok(())
    }
}

/// Half of the cores, one to four: the other half computes.
pub(super) fn default_workers() -> usize {
    (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, 4)
}

/// What becomes of an image that breaks while a loader runs; either way it is warned of once.
#[derive(Debug, Clone, Copy)]
enum OnBroken {
    /// The next good image takes its place: a training batch keeps its size.
    Replace,
    /// It is left out: an evaluation counts no image twice.
    LeaveOut,
}

/// The work of a loader's thread: slots to a batch.
fn assemble(subset: &Subset, transform: &Transform, on_broken: OnBroken, slots: Vec<Slot>) -> Result<Batch> {
    let [channels, height, width] = transform.shape();
    let mut images = Vec::with_capacity(slots.len() * channels * height * width);
    let mut indices = Vec::with_capacity(slots.len());
    for mut slot in slots {
        let (index, image) = match on_broken {
            OnBroken::Replace => subset.decode_or_next(slot.place)?,
            OnBroken::LeaveOut => {
                let index = subset.indices()[slot.place];
                match subset.images().decode_or_warn(index) {
                    Some(image) => (index, image),
                    None => continue,
                }
            }
        };
        images.extend(transform.apply(&image, &mut slot.rng));
        indices.push(index);
    }
    Ok(Batch { images, shape: [indices.len(), channels, height, width], indices })
}

type BatchPool = OrderedPool<Vec<Slot>, Result<Batch>>;

fn start(subset: Subset, transform: Transform, config: &LoaderConfig, on_broken: OnBroken) -> Result<BatchPool> {
    config.validate()?;
    transform.validate()?;
    OrderedPool::start(config.workers, move |slots| assemble(&subset, &transform, on_broken, slots))
}

/// Endless shuffled batches for training.
///
/// Batch after batch is a function of the [`LoaderState`] alone, whatever the number of threads.
#[derive(Debug)]
pub struct TrainLoader {
    pool: BatchPool,
    plan: Plan,
    /// For each batch in flight, the state once it has been delivered.
    upcoming: VecDeque<LoaderState>,
    state: LoaderState,
    count: usize,
    config: LoaderConfig,
}

impl TrainLoader {
    /// Starts loading from `state` on: [`LoaderState::new`] for a fresh run, or one saved before.
    ///
    /// # Errors
    /// [`Error::Config`] if an argument is out of range or `state` does not fit the subset, [`Error::Io`] if
    /// threads cannot be started.
    pub fn new(subset: Subset, transform: Transform, config: LoaderConfig, state: LoaderState) -> Result<Self> {
        let count = subset.len();
        let pool = start(subset, transform, &config, OnBroken::Replace)?;
        let plan = Plan::new(count, config.batch_size, state)?;
        let mut loader = Self { pool, plan, upcoming: VecDeque::new(), state, count, config };
        loader.fill();
        Ok(loader)
    }

    /// The next batch; waits for it if it is not ready.
    ///
    /// # Errors
    /// [`Error::Data`] if no image of the subset can be decoded any more.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let batch = self.pool.next().ok_or_else(|| Error::Interrupted("the loader's threads have ended".into()))??;
        if let Some(state) = self.upcoming.pop_front() {
            self.state = state;
        }
        self.fill();
        Ok(batch)
    }

    /// Where the loader stands after the last batch it delivered, whatever is prepared ahead.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Batches of an epoch; at least one.
    pub fn batches_per_epoch(&self) -> usize {
        (self.count / self.config.batch_size).max(1)
    }

    /// Keeps the threads busy.
    fn fill(&mut self) {
        while self.upcoming.len() < self.config.prefetch {
            let (slots, after) = self.plan.next_batch();
            self.pool.submit(slots);
            self.upcoming.push_back(after);
        }
    }
}

/// One pass over a subset in its order, for evaluation; the last batch may be smaller.
///
/// Images that cannot be decoded any more are left out: [`Batch::indices`] says which are there.
#[derive(Debug)]
pub struct OrderedPass {
    pool: BatchPool,
    next_place: usize,
    count: usize,
    config: LoaderConfig,
}

impl OrderedPass {
    /// Starts loading.
    ///
    /// # Errors
    /// [`Error::Config`] if an argument is out of range, [`Error::Io`] if threads cannot be started.
    pub fn new(subset: Subset, transform: Transform, config: LoaderConfig) -> Result<Self> {
        let count = subset.len();
        let pool = start(subset, transform, &config, OnBroken::LeaveOut)?;
        let mut pass = Self { pool, next_place: 0, count, config };
        pass.fill();
        Ok(pass)
    }

    fn fill(&mut self) {
        while self.next_place < self.count && self.pool.in_flight() < self.config.prefetch as u64 {
            let places = self.next_place..self.count.min(self.next_place + self.config.batch_size);
            self.next_place = places.end;
            self.pool.submit(places.map(|place| Slot::new(place, &LoaderState::new(0), place)).collect());
        }
    }
}

impl Iterator for OrderedPass {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let batch = self.pool.next()?;
            self.fill();
            if !matches!(&batch, Ok(batch) if batch.indices.is_empty()) {
                return Some(batch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::preprocess::{Interpolation, Preprocess};
    use super::super::testing::{flat_source, write_png};
    use super::super::{Augment, CachedSource, Source, SourceConfig};
    use super::*;
    use std::sync::Arc;

    fn preprocess() -> Preprocess {
        let (mean, std) = (vec![0.0], vec![1.0]);
        Preprocess {
            channels: 1,
            height: 4,
            width: 4,
            mean,
            std,
            crop_pct: 1.0,
            interpolation: Interpolation::Bilinear,
        }
    }

    fn augmented() -> Transform {
        Transform::Train(preprocess(), Augment { jitter: 0.5, shift: 0.3, ..Augment::default() })
    }

    fn config(batch_size: usize, workers: usize) -> LoaderConfig {
        LoaderConfig { batch_size, workers, prefetch: 3 }
    }

    fn train(count: usize, config: LoaderConfig, state: LoaderState) -> TrainLoader {
        TrainLoader::new(Subset::all(flat_source(count)).unwrap(), augmented(), config, state).unwrap()
    }

    #[test]
    fn resumed_at_each_position_the_sequence_is_the_same_bit_for_bit() {
        for (count, batch) in [(10, 3), (2, 5)] {
            let mut whole = train(count, config(batch, 1), LoaderState::new(11));
            let mut expected = Vec::new();
            for _ in 0..9 {
                expected.push((whole.state(), whole.next_batch().unwrap()));
            }
            for workers in [1, 3] {
                for from in 0..expected.len() {
                    let mut resumed = train(count, config(batch, workers), expected[from].0);
                    for (state, batch) in &expected[from..] {
                        assert_eq!(resumed.state(), *state);
                        assert_eq!(resumed.next_batch().unwrap(), *batch, "from {from} with {workers} workers");
                    }
                }
            }
        }
    }

    #[test]
    fn batches_hold_what_their_indices_say() {
        let subset = Subset::new(flat_source(20), vec![3, 17, 5, 8]).unwrap();
        let mut loader =
            TrainLoader::new(subset, Transform::Eval(preprocess()), config(2, 2), LoaderState::new(1)).unwrap();
        assert_eq!(loader.batches_per_epoch(), 2);
        for _ in 0..5 {
            let batch = loader.next_batch().unwrap();
            assert_eq!(batch.shape, [2, 1, 4, 4]);
            for (pixels, &index) in batch.images.chunks(16).zip(&batch.indices) {
                assert!([3, 17, 5, 8].contains(&index));
                assert!(pixels.iter().all(|&v| v == index as f32 / 255.0));
            }
        }
    }

    #[test]
    fn an_ordered_pass_sees_each_image_once_and_keeps_the_rest() {
        for workers in [1, 3] {
            let subset = Subset::all(flat_source(10)).unwrap();
            let pass = OrderedPass::new(subset, Transform::Eval(preprocess()), config(4, workers)).unwrap();
            let batches: Vec<_> = pass.map(Result::unwrap).collect();
            assert_eq!(batches.iter().map(|b| b.shape[0]).collect::<Vec<_>>(), [4, 4, 2]);
            assert_eq!(batches.iter().flat_map(|b| b.indices.clone()).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        }
    }

    fn folder(count: usize) -> (tempfile::TempDir, Subset) {
        let dir = tempfile::tempdir().unwrap();
        (0..count).for_each(|i| write_png(&dir.path().join(format!("{i}.png")), 5, 5));
        let source = Source::open(dir.path(), &SourceConfig::default()).unwrap();
        (dir, Subset::all(Arc::new(CachedSource::new(source, 0))).unwrap())
    }

    #[test]
    fn images_that_vanish_are_replaced_in_training() {
        let (dir, subset) = folder(4);
        let mut loader = TrainLoader::new(subset, augmented(), config(4, 1), LoaderState::new(1)).unwrap();
        loader.next_batch().unwrap();
        std::fs::remove_file(dir.path().join("1.png")).unwrap();
        std::fs::write(dir.path().join("2.png"), "broken").unwrap();
        let mut last = Vec::new();
        for _ in 0..6 {
            let batch = loader.next_batch().unwrap();
            assert_eq!(batch.shape[0], 4);
            last = batch.indices;
        }
        last.sort_unstable();
        assert_eq!(last, [0, 3, 3, 3]);
        drop(dir);
        let outcome: Result<Vec<_>> = (0..6).map(|_| loader.next_batch()).collect();
        assert!(matches!(outcome, Err(Error::Data { .. })));
    }

    #[test]
    fn images_that_vanish_are_left_out_of_an_ordered_pass() {
        let (dir, subset) = folder(5);
        for i in [0, 1, 3] {
            std::fs::remove_file(dir.path().join(format!("{i}.png"))).unwrap();
        }
        let pass = OrderedPass::new(subset, Transform::Eval(preprocess()), config(2, 1)).unwrap();
        let indices: Vec<_> = pass.map(|batch| batch.unwrap().indices).collect();
        assert_eq!(indices, [vec![2], vec![4]]);
    }

    #[test]
    fn arguments_out_of_range_are_refused() {
        let subset = || Subset::all(flat_source(3)).unwrap();
        for wrong in [config(0, 1), config(1, 0), LoaderConfig { prefetch: 0, ..config(1, 1) }] {
            assert!(matches!(OrderedPass::new(subset(), augmented(), wrong), Err(Error::Config(_))));
        }
        let beyond = LoaderState { position: 4, ..LoaderState::new(1) };
        assert!(matches!(TrainLoader::new(subset(), augmented(), config(1, 1), beyond), Err(Error::Config(_))));
        let transform = Transform::Eval(Preprocess { std: vec![0.0], ..preprocess() });
        assert!(OrderedPass::new(subset(), transform, config(1, 1)).is_err());
    }
}
