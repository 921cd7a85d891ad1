//! Files that are replaced whole or not at all: a temporary file in the same folder, fsync, rename, fsync of the
//! folder.
//!
//! A board loses power without warning. A reader sees the old file or the new one, never a part; a temporary file
//! that a power cut left behind is removed by the next write of the same target.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Writes `bytes` to `path`, atomically and durably: after a crash the file is the old one or the new one.
///
/// A symbolic link at `path` is replaced, not followed.
///
/// # Errors
/// [`Error::Io`] with `path`; nothing new is left in the folder and the old file stays as it was.
pub fn write_bytes_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let mut pending = PendingFile::create(path.as_ref())?;
    pending.write_all(bytes)?;
    pending.commit()
}

/// Makes what was created, renamed or removed in `folder` durable.
///
/// # Errors
/// [`Error::Io`] with `folder`.
pub fn sync_folder(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    flush_folder(folder).map_err(|e| Error::io("sync", folder, e))
}

fn flush_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network and FUSE file systems have no fsync for folders.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

/// A file being written under a temporary name; dropped without [`PendingFile::commit`], it is removed.
///
/// The writer holds a lock on it, which tells a file in use from one that a crash left behind.
#[derive(Debug)]
pub(super) struct PendingFile {
    target: PathBuf,
    folder: PathBuf,
    temporary: PathBuf,
    /// Taken away by a commit, so that nothing is removed afterwards.
    writer: Option<BufWriter<File>>,
}

impl PendingFile {
    /// Starts the replacement of `target`.
    ///
    /// # Errors
    /// [`Error::Io`] with `target`: it is a folder, or its folder is missing or read-only.
    pub fn create(target: &Path) -> Result<Self> {
        let fail = |source| Error::io("write", target, source);
        if target.is_dir() {
            return Err(fail(ErrorKind::IsADirectory.into()));
        }
        let name = target.file_name().ok_or_else(|| fail(ErrorKind::InvalidInput.into()))?;
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        remove_leftovers(&folder, name);
        let (temporary, file) = create_locked(&folder, name).map_err(fail)?;
        Ok(Self { target: target.to_path_buf(), folder, temporary, writer: Some(BufWriter::new(file)) })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`Error::Io`] with the target's path, for instance when the disk is full.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.write_all(bytes).map_err(|e| Error::io("write", &self.target, e))
    }

    /// Makes the content durable and puts it in the target's place.
    ///
    /// # Errors
    /// [`Error::Io`] with the target's path. Should only the last step fail, fsync of the folder, the new file is
    /// in place but might not survive a power cut.
    pub fn commit(mut self) -> Result<()> {
        self.publish().map_err(|e| Error::io("write", &self.target, e))
    }

    fn publish(&mut self) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.flush()?;
        writer.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.writer = None;
        flush_folder(&self.folder)
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // Closing must not write the rest: on a full disk that would only fail again.
            drop(writer.into_parts());
            // Nobody can be told here; a leftover is removed by the next write.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn temporary_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    prefix
}

/// A new, locked file beside the target. Tried again when [`remove_leftovers`] of another writer took it for a
/// leftover in the moment between creating and locking.
fn create_locked(folder: &Path, name: &OsStr) -> io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut unique = temporary_prefix(name);
        unique.push(format!("{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let path = folder.join(unique);
        let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            opened => opened?,
        };
        // Where the file system has no locks, leftovers stay and nothing is taken for one.
        let _ = file.lock();
        if file.metadata()?.nlink() > 0 {
            return Ok((path, file));
        }
    }
}

/// Removes temporary files of target `name` whose writer is gone. Best effort: what cannot be removed does no harm.
fn remove_leftovers(folder: &Path, name: &OsStr) {
    let prefix = temporary_prefix(name);
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let found = entry.file_name();
        let found = found.as_encoded_bytes();
        let ours = found.starts_with(prefix.as_encoded_bytes()) && found.ends_with(b".tmp");
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        match file.try_lock() {
            Ok(()) => {
                let _ = fs::remove_file(entry.path());
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::weights::test_support::ignores_permissions;

    fn listing(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn the_new_file_replaces_the_old_one_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        for content in ["old", "new and longer", ""] {
            write_bytes_atomic(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(listing(folder.path()), ["report.json"]);
    }

    #[test]
    fn an_abandoned_write_leaves_the_old_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let mut pending = PendingFile::create(&path).unwrap();
        pending.write_all(&[1; 100_000]).unwrap();
        assert_eq!(listing(folder.path()).len(), 2);
        drop(pending);
        assert_eq!(listing(folder.path()), ["a"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn the_leftover_of_a_crash_is_removed_by_the_next_write_and_a_live_writer_is_not_disturbed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        // A process that died holds no lock.
        fs::write(folder.path().join(".a.1-0.tmp"), "half").unwrap();
        fs::write(folder.path().join(".b.1-0.tmp"), "of another target").unwrap();
        let mut live = PendingFile::create(&path).unwrap();
        live.write_all(b"live").unwrap();
        write_bytes_atomic(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        live.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"live");
        assert_eq!(listing(folder.path()), [".b.1-0.tmp", "a"]);
    }

    #[test]
    fn concurrent_writers_of_one_target_all_succeed_and_one_wins_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::thread::scope(|scope| {
            for writer in 0..8_u8 {
                let path = &path;
                scope.spawn(move || (0..20).for_each(|_| write_bytes_atomic(path, &[writer; 20_000]).unwrap()));
            }
        });
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 20_000);
        assert!(bytes.iter().all(|&b| b == bytes[0]));
        assert_eq!(listing(folder.path()), ["a"]);
    }

    #[test]
    fn impossible_targets_are_io_errors_with_their_path() {
        let folder = tempfile::tempdir().unwrap();
        let sub = folder.path().join("sub");
        fs::create_dir(&sub).unwrap();
        for (path, kind) in [
            (sub.clone(), ErrorKind::IsADirectory),
            (folder.path().join("none/a"), ErrorKind::NotFound),
            (PathBuf::new(), ErrorKind::InvalidInput),
        ] {
            match write_bytes_atomic(&path, b"x").unwrap_err() {
                Error::Io { path: named, source, .. } => assert_eq!((named, source.kind()), (path, kind)),
                other => panic!("expected an io error, got {other}"),
            }
        }
        assert_eq!(listing(folder.path()), ["sub"]);
    }

    #[test]
    fn a_read_only_folder_is_an_io_error() {
        if ignores_permissions() {
            println!("skipped: this user may write everywhere");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
        let got = write_bytes_atomic(&path, b"new").unwrap_err();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(got, Error::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied));
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_full_disk_is_an_io_error() {
        // The device refuses every write with "no space left"; it stands in for the temporary file.
        let Ok(full) = OpenOptions::new().write(true).open("/dev/full") else {
            println!("skipped: no /dev/full here");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let mut pending = PendingFile::create(&path).unwrap();
        pending.writer = Some(BufWriter::new(full));
        let got = pending.write_all(b"new").and_then(|()| pending.commit()).unwrap_err();
        assert!(matches!(&got, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull), "{got}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(listing(folder.path()), ["a"]);
    }
}
