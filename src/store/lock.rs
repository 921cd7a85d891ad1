//! One change at a time: a lock that dies with its process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How often a waiting process asks again.
const POLL: Duration = Duration::from_millis(10);

/// The right to change a folder, for as long as it lives. The system takes it back from a process that is killed.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held open for its lock")] File);

impl Lock {
    /// Waits at most `patience` for the lock on the file at `path`, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if somebody else kept it all the time; [`Error::Io`] if the file cannot be opened, for
    /// instance on a read-only disk.
    pub fn take(path: &Path, patience: Duration) -> Result<Self> {
        let fail = |e| Error::io("lock", path, e);
        let start = Instant::now();
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(fail)?;
            match file.try_lock() {
                // Unless somebody removed the file in the meantime, and others lock a new one.
                Ok(()) if file.metadata().map_err(fail)?.nlink() > 0 => return Ok(Self(file)),
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {
                    log::warn!("no locks on this file system: let one process at a time change the folder");
                    return Ok(Self(file));
                }
                Err(TryLockError::Error(e)) => return Err(fail(e)),
            }
            if start.elapsed() >= patience {
                return Err(Error::Overloaded(format!(
                    "{}: another process is at work there and did not finish within {} s; try again later",
                    path.display(),
                    patience.as_secs_f32()
                )));
            }
            std::thread::sleep(POLL);
        }
    }
}
