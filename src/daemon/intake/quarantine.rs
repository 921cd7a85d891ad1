//! Broken files, kept to look at.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::daemon::clock;
use crate::daemon::folders::{move_file, plain_files};

/// A folder of broken files, the oldest of which make room for new ones.
#[derive(Debug, Clone)]
pub(super) struct Quarantine {
    pub folder: PathBuf,
    pub most_files: usize,
    pub most_bytes: u64,
}

impl Quarantine {
    /// Moves a file here under a new name; returns where it went.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; the file stays where it was.
    pub fn put(&self, file: &Path) -> Result<PathBuf> {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // Long names would become too long by the date.
        let name: String = name.chars().rev().take(100).collect::<Vec<_>>().into_iter().rev().collect();
        let date = clock::compact(clock::unix_s());
        // Behind all of the same second, so that names stay in the order of their arrival.
        let names = plain_files(&self.folder).unwrap_or_default();
        let numbers = names.iter().filter_map(|(name, _)| name.strip_prefix(&date)?.get(1..5)?.parse::<u32>().ok());
        let number = numbers.max().map_or(0, |last| last + 1);
        let target = self.folder.join(format!("{date}-{number:04}-{name}"));
        move_file(file, &target)?;
        self.bound();
        Ok(target)
    }

    /// Removes the oldest files beyond the limits. Names begin with dates, so they are in order.
    pub fn bound(&self) {
        let Ok(files) = plain_files(&self.folder) else { return };
        let (mut count, mut bytes) = (files.len(), files.iter().map(|(_, file)| file.len()).sum::<u64>());
        for (name, file) in files {
            if count <= self.most_files && bytes <= self.most_bytes {
                return;
            }
            // One that cannot be removed is tried again with the next.
            let _ = fs::remove_file(self.folder.join(name));
            (count, bytes) = (count - 1, bytes - file.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("quarantine");
        fs::create_dir(&folder).unwrap();
        let quarantine = Quarantine { folder: folder.clone(), most_files: 3, most_bytes: 250 };
        for index in 0..5 {
            let file = place.path().join("broken.jpg");
            fs::write(&file, vec![index; 50]).unwrap();
            quarantine.put(&file).unwrap();
            assert!(!file.exists());
        }
        let kept: Vec<u8> =
            plain_files(&folder).unwrap().iter().map(|(name, _)| fs::read(folder.join(name)).unwrap()[0]).collect();
        assert_eq!(kept, [2, 3, 4]);
        let large = place.path().join("large");
        fs::write(&large, [9; 200]).unwrap();
        quarantine.put(&large).unwrap();
        assert_eq!(plain_files(&folder).unwrap().len(), 2);
    }
}
