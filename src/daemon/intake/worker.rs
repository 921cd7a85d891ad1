//! What is done with each image.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::hash::dhash;
use super::quarantine::Quarantine;
use super::watch::{InboxWatch, is_being_written};
use super::{MOST_WAITING, Shared};
use crate::daemon::ask::Asker;
use crate::daemon::config::DaemonConfig;
use crate::daemon::folders::{Folders, move_file};
use crate::daemon::notice::Notices;
use crate::daemon::state::ImageTotals;
use crate::data::{Image, ImageLimits};
use crate::{Error, Result};

/// How long the thread waits for news before it looks whether it shall end.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often the log sums up what arrived.
const SUM_EVERY: Duration = Duration::from_secs(60);
/// Things that are no files of which the log tells each time.
const MOST_TOLD: usize = 20;

/// What became of a file.
enum Taken {
    /// It has left the inbox.
    Gone,
    /// It stays until the inbox is listed again.
    Stays,
    /// No version answers: the same file is next.
    NotNow,
}

/// Takes in one image after the other.
pub(super) struct Worker {
    shared: Arc<Shared>,
    folders: Folders,
    asker: Asker,
    notices: Notices,
    watch: InboxWatch,
}

impl Worker {
    pub fn new(shared: &Arc<Shared>, folders: &Folders, asker: Asker) -> Self {
        Self {
            shared: shared.clone(),
            folders: folders.clone(),
            asker,
            notices: Notices::default(),
            watch: InboxWatch::new(&folders.inbox),
        }
    }

    /// Works until the intake ends.
    pub fn work(&mut self, uploads: &Receiver<(Bytes, usize)>) {
        let (mut scan_at, mut sum_at, mut summed) = (Instant::now(), Instant::now() + SUM_EVERY, self.shared.counts());
        while !self.shared.stop.load(Ordering::Relaxed) {
            if Instant::now() >= scan_at {
                scan_at = Instant::now() + self.scan();
            }
            let busy = self.watch.waiting() > 0;
            if !self.watch.wait(if busy { Duration::ZERO } else { PATIENCE }) {
                scan_at = Instant::now();
            }
            for (bytes, class) in uploads.try_iter().take(MOST_WAITING) {
                self.take_upload(&bytes, class);
            }
            if let Some(path) = self.watch.next() {
                match self.take(&path) {
                    Taken::Gone => {}
                    Taken::Stays => scan_at = scan_at.min(Instant::now() + self.rescan()),
                    Taken::NotNow => {
                        self.watch.put_back(&path);
                        std::thread::sleep(PATIENCE);
                    }
                }
            }
            self.shared.waiting.store(self.watch.waiting(), Ordering::Relaxed);
            if Instant::now() >= sum_at {
                (sum_at, summed) = (Instant::now() + SUM_EVERY, self.sum_up(summed));
            }
        }
    }

    /// Lists the inbox; returns when to do so again.
    fn scan(&mut self) -> Duration {
        let config = self.shared.config();
        let settle = Duration::from_secs_f64(config.intake.settle_s);
        // Somebody may have cleaned up too well. What cannot be made is told when it is needed.
        let _ = self.folders.create();
        let known = std::mem::take(&mut self.watch.foreign);
        match self.watch.scan(settle) {
            Ok(unfinished) => {
                self.leave_alone(&known);
                self.notices.well("inbox", "inbox can be listed again");
                if unfinished > 0 { settle.max(PATIENCE).min(self.rescan()) } else { self.rescan() }
            }
            Err(error) => {
                self.watch.foreign = known;
                self.notices.warn("inbox", &error.to_string());
                self.rescan()
            }
        }
    }

    /// Tells of each thing in the inbox that is no file, once while it is there.
    fn leave_alone(&self, known: &BTreeSet<OsString>) {
        for name in self.watch.foreign.difference(known).take(MOST_TOLD) {
            log::warn!("left alone in the inbox, expected a file and got a link, folder or the like name={name:?}");
        }
        self.shared.left_alone.store(self.watch.foreign.len(), Ordering::Relaxed);
    }

    fn rescan(&self) -> Duration {
        Duration::from_secs_f64(self.shared.config().intake.rescan_s)
    }

    /// Tells what came since it was told last.
    fn sum_up(&self, before: ImageTotals) -> ImageTotals {
        let now = self.shared.counts();
        if now != before {
            let reservoir = self.shared.reservoir();
            log::info!(
                "images came in kept={} duplicates={} quarantined={} reservoir={} bytes={}",
                now.kept - before.kept,
                now.duplicates - before.duplicates,
                now.quarantined - before.quarantined,
                reservoir.len(),
                reservoir.bytes()
            );
        }
        now
    }

    fn take(&mut self, path: &Path) -> Taken {
        match self.dealt_with(path) {
            Ok(taken) => {
                self.notices.well("intake", "images can be taken in again");
                taken
            }
            Err(Error::Overloaded(why)) => {
                log::debug!("image waits path={}: {why}", path.display());
                Taken::NotNow
            }
            Err(error) => {
                self.notices.warn("intake", &format!("image stays in the inbox path={}: {error}", path.display()));
                Taken::Stays
            }
        }
    }

    fn dealt_with(&mut self, path: &Path) -> Result<Taken> {
        let config = self.shared.config();
        let file = match fs::symlink_metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Taken::Gone),
            file => file.map_err(|e| Error::io("read", path, e))?,
        };
        if !file.is_file() {
            return Ok(Taken::Gone);
        }
        if is_being_written(path) {
            return Ok(Taken::Stays);
        }
        let image = if file.len() > config.intake.max_file_bytes {
            let most = config.intake.max_file_bytes;
            Err(Error::data(path, format!("expected a file of at most {most} bytes, got {}", file.len())))
        } else {
            let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
            Image::decode(path, &bytes, &limits(&config)).map(|image| (image, extension(&bytes)))
        };
        match image {
            Err(Error::Data { reason, .. }) => self.quarantine(path, &reason, &config),
            Err(error) => Err(error),
            Ok((image, extension)) => self.consider(path, &image, extension, &config),
        }
    }

    fn quarantine(&self, path: &Path, reason: &str, config: &DaemonConfig) -> Result<Taken> {
        let quarantine = Quarantine {
            folder: self.folders.quarantine.clone(),
            most_files: config.intake.quarantine_files,
            most_bytes: config.intake.quarantine_bytes,
        };
        let to = quarantine.put(path)?;
        // Names are whatever the inbox is given, line breaks too.
        let shown = |path: &Path| path.display().to_string().escape_debug().to_string();
        log::warn!("image quarantined path={} to={} reason={reason}", shown(path), shown(&to));
        self.shared.quarantined.fetch_add(1, Ordering::Relaxed);
        Ok(Taken::Gone)
    }

    /// A readable image is a duplicate, or it is classified and kept.
    fn consider(&self, path: &Path, image: &Image, extension: &str, config: &DaemonConfig) -> Result<Taken> {
        let hash = dhash(image);
        if self.is_known(hash, config) {
            fs::remove_file(path).map_err(|e| Error::io("remove", path, e))?;
            self.shared.duplicates.fetch_add(1, Ordering::Relaxed);
            return Ok(Taken::Gone);
        }
        let served = self.asker.served().ok_or_else(|| Error::Overloaded("no version serves".into()))?;
        let logits = self.asker.logits(&served, image).inspect_err(|error| {
            if matches!(error, Error::Numeric(_)) {
                self.shared.recent.failed(served.version);
            }
        })?;
        let window = config.trigger.drift_window;
        let class = self.shared.recent.arrived(served.version, logits, window).unwrap_or_default();
        let bytes = fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
        self.keep((hash, class, extension), bytes, |to| {
            let file = fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
            file.sync_data().map_err(|e| Error::io("sync", path, e))?;
            move_file(path, to)
        })?;
        Ok(Taken::Gone)
    }

    /// An image that was sent to be classified.
    fn take_upload(&mut self, bytes: &[u8], class: usize) {
        let config = self.shared.config();
        let Ok(image) = Image::decode("image", bytes, &limits(&config)) else { return };
        let hash = dhash(&image);
        if self.is_known(hash, &config) {
            self.shared.duplicates.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let put = |to: &Path| crate::weights::write_bytes_atomic(to, bytes);
        match self.keep((hash, class, extension(bytes)), bytes.len() as u64, put) {
            Ok(()) => self.notices.well("upload", "images of requests can be kept again"),
            Err(error) => self.notices.warn("upload", &format!("image of a request is not kept: {error}")),
        }
    }

    fn is_known(&self, hash: u64, config: &DaemonConfig) -> bool {
        self.shared.reservoir().similar(hash, config.intake.duplicate_bits).is_some()
    }

    fn keep(&self, image: (u64, usize, &str), bytes: u64, put: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let given = self.shared.given.load(Ordering::Relaxed);
        self.shared.reservoir().keep(image, bytes, given, put)?;
        self.shared.kept.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn limits(config: &DaemonConfig) -> ImageLimits {
    let max_pixels = config.intake.max_image_pixels;
    // Decoders may need a few bytes for each pixel besides the pixels themselves.
    ImageLimits { max_pixels, max_bytes: max_pixels.saturating_mul(8).max(config.intake.max_file_bytes) }
}

/// The ending that belongs to the content, whatever the file was called: `adapt` lists images by their endings.
fn extension(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', ..] => "png",
        [b'R', b'I', b'F', b'F', ..] => "webp",
        [b'B', b'M', ..] => "bmp",
        _ => "jpg",
    }
}
