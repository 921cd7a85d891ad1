//! Images that arrive: decoded, told from duplicates, classified, kept or quarantined, on a thread of its own.
//!
//! A file leaves the inbox in one step, by a rename into the reservoir or the quarantine or by being removed as a
//! duplicate. So a crash leaves it where it was or where it belongs, and the next start goes on.

mod hash;
mod quarantine;
mod reservoir;
mod watch;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{Builder, JoinHandle};

use bytes::Bytes;

pub use reservoir::{Bounds, Kept, Reservoir};
use worker::Worker;

use super::ask::Asker;
use super::clock;
use super::config::DaemonConfig;
use super::folders::Folders;
use super::recent::Recent;
use super::state::ImageTotals;
use crate::serve::SeenImage;
use crate::{Error, Result};

/// Images of requests that may wait to be looked at.
const MOST_WAITING: usize = 16;
/// How much less the thread weighs than those that answer.
const NICENESS: i32 = 10;

/// What the intake shares with the rest of the daemon.
#[derive(Debug)]
pub(super) struct Shared {
    reservoir: Mutex<Reservoir>,
    pub recent: Recent,
    config: RwLock<Arc<DaemonConfig>>,
    /// Numbers up to this one are given.
    pub given: AtomicU64,
    pub kept: AtomicU64,
    pub duplicates: AtomicU64,
    pub quarantined: AtomicU64,
    /// Things in the inbox that are no files.
    pub left_alone: AtomicUsize,
    /// Files that are whole and not taken yet; the largest number before the first look.
    pub waiting: AtomicUsize,
    stop: AtomicBool,
}

impl Shared {
    /// The state of an intake that has not begun.
    pub fn new(config: Arc<DaemonConfig>, folders: &Folders) -> Self {
        Self {
            reservoir: Mutex::new(Reservoir::open(&folders.reservoir, bounds(&config))),
            recent: Recent::default(),
            config: RwLock::new(config),
            given: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            quarantined: AtomicU64::new(0),
            left_alone: AtomicUsize::new(0),
            waiting: AtomicUsize::new(usize::MAX),
            stop: AtomicBool::new(false),
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> ImageTotals {
        let [kept, duplicates, quarantined] =
            [&self.kept, &self.duplicates, &self.quarantined].map(|count| count.load(Ordering::Relaxed));
        ImageTotals { kept, duplicates, quarantined, evicted: self.reservoir().evicted }
    }

    /// Goes on counting from what an earlier process had counted.
    pub fn count_from(&self, before: &ImageTotals) {
        let ImageTotals { kept, duplicates, quarantined, evicted } = *before;
        for (count, before) in [(&self.kept, kept), (&self.duplicates, duplicates), (&self.quarantined, quarantined)] {
            count.fetch_add(before, Ordering::Relaxed);
        }
        self.reservoir().evicted += evicted;
    }

    /// The images kept.
    pub fn reservoir(&self) -> MutexGuard<'_, Reservoir> {
        self.reservoir.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other settings from now on.
    pub fn set_config(&self, config: Arc<DaemonConfig>) {
        self.reservoir().set_bounds(bounds(&config));
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn config(&self) -> Arc<DaemonConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn bounds(config: &DaemonConfig) -> Bounds {
    Bounds { images: config.intake.max_images, bytes: config.intake.max_bytes }
}

/// Where images of requests come in; a call never waits.
#[derive(Debug, Clone)]
pub(super) struct Uploads {
    sender: SyncSender<(Bytes, usize)>,
    shared: Arc<Shared>,
    /// The minute, and how many came in it.
    minute: Arc<Mutex<(u64, u32)>>,
}

impl Uploads {
    /// An image was classified.
    pub fn seen(&self, image: SeenImage) {
        let Some(&(class, probability)) = image.ranked.first() else { return };
        self.shared.recent.answered(image.version, class, probability);
        let config = self.shared.config();
        if config.intake.classify && self.is_due(config.intake.classify_per_minute) {
            // Too many at once are as good as too many in a minute.
            let _ = self.sender.try_send((image.bytes, class));
        }
    }

    fn is_due(&self, most: u32) -> bool {
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::unix_s() / 60;
        if minute.0 != now {
            *minute = (now, 0);
        }
        minute.1 += 1;
        minute.1 <= most
    }
}

/// The running intake; dropped, it ends.
#[derive(Debug)]
pub(super) struct Intake {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A channel for images of requests.
pub(super) fn uploads(shared: &Arc<Shared>) -> (Uploads, Receiver<(Bytes, usize)>) {
    let (sender, receiver) = sync_channel(MOST_WAITING);
    (Uploads { sender, shared: shared.clone(), minute: Arc::default() }, receiver)
}

impl Intake {
    /// Begins to take images in.
    ///
    /// # Errors
    /// [`Error::Config`] if the system gives no thread.
    pub fn start(
        shared: &Arc<Shared>,
        folders: &Folders,
        asker: Asker,
        uploads: Receiver<(Bytes, usize)>,
    ) -> Result<Self> {
        let mut worker = Worker::new(shared, folders, asker);
        let thread = Builder::new().name("intake".into()).spawn(move || {
            // SAFETY: no memory is involved; on Linux the call concerns this thread alone.
            #[cfg(target_os = "linux")]
            unsafe {
                libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
            }
            worker.work(&uploads);
        });
        let thread = thread.map_err(|e| Error::Config(format!("daemon: cannot start a thread: {e}")))?;
        Ok(Self { shared: shared.clone(), thread: Some(thread) })
    }

    /// Whether its thread still runs, as it always should.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the intake panicked");
        }
    }
}
