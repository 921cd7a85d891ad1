//! Which version of each model answers, and how another one takes its place.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use super::served::{Ended, ModelSettings, Served};
use crate::model::Teacher;
use crate::serve::metrics::Metrics;
use crate::store::{ModelName, Version};
use crate::{Error, Result};

/// How long a retired version may take to answer what waits for it.
const DRAIN: Duration = Duration::from_secs(30);
/// How much less a thread that reads a new version weighs than those that answer.
const BACKGROUND_NICENESS: i32 = 10;

type Models = BTreeMap<ModelName, Arc<Served>>;

/// The models that answer. Readers see the old version or the new one; both answer while one takes over.
#[derive(Debug)]
pub struct Registry {
    models: RwLock<Models>,
    settings: RwLock<ModelSettings>,
    /// The threads of the versions. Held while one is loaded: two engines in the making would need the memory of both.
    changing: Mutex<BTreeMap<ModelName, Ended>>,
    metrics: Arc<Metrics>,
    release_memory: fn(),
}

impl Registry {
    /// A registry without models. `release_memory` is called when an engine was freed, so that an allocator that
    /// keeps memory can let go of it.
    pub fn new(settings: ModelSettings, metrics: Arc<Metrics>, release_memory: fn()) -> Self {
        Self {
            models: RwLock::default(),
            settings: RwLock::new(settings),
            changing: Mutex::default(),
            metrics,
            release_memory,
        }
    }

    /// How models are run from the next [`Registry::deploy`] on.
    pub fn set_settings(&self, settings: ModelSettings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The version of a model that answers.
    pub fn get(&self, name: &str) -> Option<Arc<Served>> {
        let name: ModelName = name.parse().ok()?;
        self.read().get(&name).cloned()
    }

    /// All that answer, by name.
    pub fn all(&self) -> Vec<Arc<Served>> {
        self.read().values().cloned().collect()
    }

    /// Loads a version, tries it, and lets it take the place of the one that answers now. Requests that wait for the
    /// old one are still answered by it; then its memory is given back, and this returns. Blocks for all that time.
    ///
    /// `load` runs at low priority, so that reading and checking a file does not take the processor from requests.
    ///
    /// # Errors
    /// Those of `load`; [`Error::Numeric`] if the smoke inference fails. What answered before still does.
    pub fn deploy(
        &self,
        name: &ModelName,
        version: Version,
        load: impl FnOnce() -> Result<Teacher> + Send,
    ) -> Result<()> {
        let mut threads = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = self.metrics.model(name);
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner).clone();
        let started = in_background(load)
            .and_then(|model| Served::start((name, version), model, &settings, metrics.clone(), self.release_memory));
        let (served, ended) = started.inspect_err(|_| metrics.refused.increment())?;
        metrics.version.set(version.0);
        metrics.loaded.increment();
        let old = self.models.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), Arc::new(served));
        log::info!("version serves model={name} version={version}");
        if let (Some(served), Some(ended)) = (old, threads.insert(name.clone(), ended)) {
            drain(&served, &ended);
        }
        Ok(())
    }

    /// Stops answering for a model; what waits is answered. `false` if there is none of this name.
    pub fn withdraw(&self, name: &ModelName) -> bool {
        let mut threads = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.models.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        let (Some(served), Some(ended)) = (old, threads.remove(name)) else { return false };
        self.metrics.model(name).version.set(0);
        drain(&served, &ended);
        log::info!("model withdrawn model={name} version={}", served.version);
        true
    }

    /// Withdraws every model.
    pub fn clear(&self) {
        let names: Vec<ModelName> = self.read().keys().cloned().collect();
        for name in &names {
            self.withdraw(name);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Models> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drain(served: &Served, ended: &Ended) {
    served.retire();
    if !ended.wait(DRAIN) {
        log::warn!(
            "retired version is still busy after {} s model={} version={}",
            DRAIN.as_secs(),
            served.name,
            served.version
        );
    }
}

/// Runs `load` on a thread of low priority; a panic in it is an error.
fn in_background<T: Send>(load: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let panicked = || Error::Numeric("loading the model panicked".to_string());
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("load".into()).spawn_scoped(scope, || {
            // SAFETY: no memory is involved. On Linux the call concerns this thread alone; elsewhere or on failure it
            // changes nothing that matters.
            #[cfg(target_os = "linux")]
            unsafe {
                libc::setpriority(libc::PRIO_PROCESS, 0, BACKGROUND_NICENESS);
            }
            catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| Err(panicked()))
        });
        let thread = thread.map_err(|e| Error::Config(format!("cannot start a thread to load a model: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(panicked()))
    })
}

#[cfg(test)]
mod tests;
