//! Files that arrive in a folder, and when they are whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use inotify::{EventMask, Inotify, WatchMask};

use crate::Result;
use crate::daemon::folders::entries;

/// Room for this many bytes of events at a time.
const EVENTS: usize = 16 << 10;
/// Names that programs give to files they have not finished.
const UNFINISHED: [&str; 4] = [".part", ".tmp", ".crdownload", ".filepart"];

/// Length and time of change: what stands still once a file is whole.
type Stamp = (u64, Option<SystemTime>);

/// Watches the inbox. A file is whole when its writer has closed it or moved it here, which the system tells; or, if
/// nobody was watching then, when it has stood still for a while.
#[derive(Debug)]
pub(super) struct InboxWatch {
    folder: PathBuf,
    events: Option<Inotify>,
    whole: BTreeSet<OsString>,
    looked: BTreeMap<OsString, (Stamp, Instant)>,
    /// Links, folders and the like, which are not for the daemon.
    pub foreign: BTreeSet<OsString>,
}

impl InboxWatch {
    pub fn new(folder: &Path) -> Self {
        // SAFETY: no memory is involved. A lease that is broken while it is held, see `is_being_written`, raises this
        // signal, which would end the process.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        let events = Inotify::init().map_err(|error| {
            log::warn!("new files are not told by the system, the inbox is only listed: {error}");
        });
        Self {
            folder: folder.to_path_buf(),
            events: events.ok(),
            whole: BTreeSet::new(),
            looked: BTreeMap::new(),
            foreign: BTreeSet::new(),
        }
    }

    /// Files that are whole and not taken yet.
    pub fn waiting(&self) -> usize {
        self.whole.len()
    }

    /// The next whole file, in the order of names.
    pub fn next(&mut self) -> Option<PathBuf> {
        self.whole.pop_first().map(|name| self.folder.join(name))
    }

    /// Gives a file back that could not be dealt with for now.
    pub fn put_back(&mut self, path: &Path) {
        self.whole.extend(path.file_name().map(OsStr::to_os_string));
    }

    /// Waits for news, at most `patience`; `false` if some were lost and the folder must be listed.
    pub fn wait(&mut self, patience: Duration) -> bool {
        let Some(events) = &mut self.events else {
            std::thread::sleep(patience);
            return true;
        };
        let mut poll = libc::pollfd { fd: events.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one struct of ours that lives through the call.
        if unsafe { libc::poll(&raw mut poll, 1, milliseconds) } <= 0 {
            return true;
        }
        let mut buffer = [0; EVENTS];
        let Ok(arrived) = events.read_events(&mut buffer) else { return true };
        let mut complete = true;
        for event in arrived {
            complete &= !event.mask.contains(EventMask::Q_OVERFLOW);
            self.whole.extend(event.name.filter(|name| is_meant(name)).map(OsStr::to_os_string));
        }
        complete
    }

    /// Lists the folder. Returns how many files are not whole yet.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if it cannot be listed.
    pub fn scan(&mut self, settle: Duration) -> Result<usize> {
        if let Some(events) = &mut self.events {
            // Watching what is watched already changes nothing; another folder of this name is another one.
            let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
            if let Err(error) = events.watches().add(&self.folder, mask) {
                log::debug!("inbox cannot be watched: {error}");
            }
        }
        let found = entries(&self.folder)?;
        let (files, foreign): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, file)| file.is_file());
        self.foreign = foreign.into_iter().map(|(name, _)| name).collect();
        let mut looked = BTreeMap::new();
        for (name, file) in files.into_iter().filter(|(name, _)| is_meant(name)) {
            let stamp = (file.len(), file.modified().ok());
            let since = self.looked.get(&name).filter(|(before, _)| *before == stamp).map(|(_, since)| *since);
            let age = stamp.1.and_then(|changed| SystemTime::now().duration_since(changed).ok());
            // Its time of change may lie; what was seen does not.
            let still = since.is_some_and(|since| since.elapsed() >= settle) || age.is_some_and(|age| age >= settle);
            if still && !is_being_written(&self.folder.join(&name)) {
                self.whole.insert(name);
            } else {
                looked.insert(name, (stamp, since.unwrap_or_else(Instant::now)));
            }
        }
        self.looked = looked;
        Ok(self.looked.len())
    }
}

/// Whether a name is that of a finished, visible file.
fn is_meant(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    !name.starts_with(b".") && !UNFINISHED.iter().any(|ending| name.ends_with(ending.as_bytes()))
}

/// Whether some process has the file open for writing, as far as the system tells: a lease for reading is only given if
/// none has.
pub(super) fn is_being_written(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    // SAFETY: no memory is involved, and the descriptor is open.
    let leased = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
    if leased == 0 {
        // SAFETY: as above.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
        return false;
    }
    std::io::Error::last_os_error().kind() == ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    const LONG: Duration = Duration::from_secs(1000);

    fn names(watch: &mut InboxWatch) -> Vec<String> {
        std::iter::from_fn(|| watch.next()).map(|p| p.file_name().unwrap().to_str().unwrap().to_string()).collect()
    }

    #[test]
    fn a_file_is_whole_when_it_is_closed_or_moved_here() {
        let place = tempfile::tempdir().unwrap();
        let inbox = place.path().join("inbox");
        fs::create_dir(&inbox).unwrap();
        let mut watch = InboxWatch::new(&inbox);
        assert_eq!(watch.scan(LONG).unwrap(), 0);
        let mut half = File::create(inbox.join("half.jpg")).unwrap();
        half.write_all(b"x").unwrap();
        fs::write(inbox.join("closed.jpg"), "x").unwrap();
        fs::write(inbox.join("upload.jpg.part"), "x").unwrap();
        fs::write(inbox.join(".hidden.jpg"), "x").unwrap();
        fs::write(place.path().join("elsewhere"), "x").unwrap();
        fs::rename(place.path().join("elsewhere"), inbox.join("moved.jpg")).unwrap();
        assert!(watch.wait(Duration::from_millis(200)));
        assert_eq!(names(&mut watch), ["closed.jpg", "moved.jpg"]);
        assert!(is_being_written(&inbox.join("half.jpg")));
        drop(half);
        watch.wait(Duration::from_millis(200));
        assert_eq!(names(&mut watch), ["half.jpg"]);
    }

    #[test]
    fn what_was_there_before_is_whole_once_it_stands_still_and_nobody_writes() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("old.jpg");
        let mut writer = File::create(&path).unwrap();
        let mut watch = InboxWatch::new(place.path());
        assert_eq!((watch.scan(LONG).unwrap(), watch.waiting()), (1, 0));
        assert_eq!((watch.scan(Duration::ZERO).unwrap(), watch.waiting()), (1, 0), "it is open");
        writer.write_all(b"x").unwrap();
        drop(writer);
        assert_eq!((watch.scan(Duration::ZERO).unwrap(), watch.waiting()), (0, 1));
    }
}
