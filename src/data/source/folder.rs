//! Image folders: one sub-folder per class, or a flat heap without labels.

use std::path::{Path, PathBuf};

use log::warn;
use sha2::Sha256;

use super::{SourceConfig, digest_field, has_extension};
use crate::data::decode::ImageLimits;
use crate::data::file::read_image;
use crate::data::image::Image;
use crate::error::{Error, Result};

/// Which files of a folder are taken for images; what they hold is told by their content.
const EXTENSIONS: [&str; 7] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp"];

/// An image folder, listed once when it is opened.
#[derive(Debug)]
pub(super) struct FolderSource {
    root: PathBuf,
    /// Sorted within a class, classes in label order.
    files: Vec<ImageFile>,
    class_names: Option<Vec<String>>,
    limits: ImageLimits,
}

#[derive(Debug)]
struct ImageFile {
    path: PathBuf,
    label: Option<usize>,
    bytes: u64,
}

impl FolderSource {
    pub(super) fn open(root: &Path, config: &SourceConfig) -> Result<Self> {
        let top = list(root)?;
        let mut class_names = Vec::new();
        let mut files = Vec::new();
        for folder in top.iter().filter(|entry| entry.is_dir) {
            let name = folder.path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::data(&folder.path, "expected a class folder named in UTF-8"))?;
            walk(&folder.path, Some(class_names.len()), &mut files)?;
            class_names.push(name.to_owned());
        }
        let loose = top.iter().filter(|entry| entry.is_image());
        let class_names = if files.is_empty() {
            files.extend(loose.map(|entry| ImageFile { path: entry.path.clone(), label: None, bytes: entry.bytes }));
            None
        } else {
            let loose = loose.count();
            if loose > 0 {
                warn!("images beside the class folders are left out path={} images={loose}", root.display());
            }
            Some(class_names)
        };
        if files.is_empty() {
            let reason = format!("expected images ({}) or class folders of images, got none", EXTENSIONS.join(", "));
            return Err(Error::data(root, reason));
        }
        Ok(Self { root: root.to_path_buf(), files, class_names, limits: config.limits.clone() })
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn path_of(&self, index: usize) -> &Path {
        &self.files[index].path
    }

    pub(super) fn label(&self, index: usize) -> Option<usize> {
        self.files.get(index)?.label
    }

    pub(super) fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    pub(super) fn decode(&self, index: usize) -> Result<Image> {
        read_image(self.path_of(index), &self.limits)
    }

    pub(super) fn update_digest(&self, hash: &mut Sha256) {
        for file in &self.files {
            let relative = file.path.strip_prefix(&self.root).unwrap_or(&file.path);
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            digest_field(hash, parts.join("/").as_bytes());
            digest_field(hash, &file.bytes.to_le_bytes());
        }
    }
}

/// One visible entry of a folder.
struct Entry {
    path: PathBuf,
    is_dir: bool,
    is_file: bool,
    is_link: bool,
    bytes: u64,
}

impl Entry {
    fn is_image(&self) -> bool {
        self.is_file && has_extension(&self.path, &EXTENSIONS)
    }
}

/// The entries of `folder` that are not hidden, sorted by name; links are followed.
fn list(folder: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let is_link = entry.file_type().map_err(|e| Error::io("inspect", &path, e))?.is_symlink();
        match std::fs::metadata(&path) {
            Ok(found) => {
                let (is_dir, is_file) = (found.is_dir(), found.is_file());
                if !is_dir && !is_file {
                    warn!("entry is left out path={} reason=a pipe, socket or device", path.display());
                }
                entries.push(Entry { is_dir, is_file, is_link, bytes: found.len(), path });
            }
            // A dangling link, or a file removed since it was listed.
            Err(error) => warn!("entry is left out path={} reason={error}", path.display()),
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// The images in `folder` and below it, whatever class they are of, sorted within each folder.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be listed; [`Error::Data`] if there is no image.
pub fn images_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    walk(folder, None, &mut files)?;
    if files.is_empty() {
        return Err(Error::data(folder, format!("expected images ({}), got none", EXTENSIONS.join(", "))));
    }
    Ok(files.into_iter().map(|file| file.path).collect())
}

/// Collects the images below `folder`, in sorted order.
fn walk(folder: &Path, label: Option<usize>, files: &mut Vec<ImageFile>) -> Result<()> {
    for entry in list(folder)? {
        if entry.is_image() {
            files.push(ImageFile { path: entry.path, label, bytes: entry.bytes });
        } else if entry.is_dir && !entry.is_link {
            // A linked folder inside a class may lead back up: the walk would not end.
            walk(&entry.path, label, files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;
    use crate::data::testing::write_png;

    fn open(path: &Path) -> Result<Source> {
        Source::open(path, &SourceConfig::default())
    }

    #[test]
    fn class_folders_give_sorted_labels_and_paths() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["dog/b.PNG", "dog/a.png", "cat/deep/er/c.png", ".hidden/x.png", "cat/.y.png", "loose.png"] {
            write_png(&dir.path().join(name), 4, 3);
        }
        std::fs::write(dir.path().join("dog/readme.txt"), "no image").unwrap();
        std::fs::create_dir(dir.path().join("bird")).unwrap();
        let source = open(dir.path()).unwrap();
        assert_eq!(source.class_names().unwrap(), ["bird", "cat", "dog"]);
        let found: Vec<_> = (0..source.len()).map(|i| (source.name(i), source.label(i))).collect();
        let expected = [("cat/deep/er/c.png", 1), ("dog/a.png", 2), ("dog/b.PNG", 2)];
        assert_eq!(found, expected.map(|(name, label)| (dir.path().join(name).display().to_string(), Some(label))));
        assert_eq!(source.decode(0).unwrap().width(), 4);
        assert!(source.decode(3).is_err());
    }

    #[test]
    fn a_flat_folder_has_no_labels_and_content_decides_the_format() {
        let dir = tempfile::tempdir().unwrap();
        write_png(&dir.path().join("really_png.JPG"), 5, 2);
        let source = open(dir.path()).unwrap();
        assert_eq!((source.len(), source.label(0), source.class_names()), (1, None, None));
        assert_eq!(source.decode(0).unwrap().width(), 5);
    }

    #[test]
    fn an_empty_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("class")).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Data { .. }) && error.to_string().contains("got none"), "{error}");
    }

    #[test]
    fn the_digest_follows_names_and_sizes_but_not_the_place() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&a, &b] {
            write_png(&dir.path().join("k/1.png"), 4, 4);
        }
        let digest = open(a.path()).unwrap().digest();
        assert_eq!(digest.len(), 64);
        assert_eq!(digest, open(b.path()).unwrap().digest());
        write_png(&b.path().join("k/2.png"), 4, 4);
        assert_ne!(digest, open(b.path()).unwrap().digest());
    }

    #[test]
    fn a_file_beyond_the_byte_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_png(&dir.path().join("a.png"), 64, 64);
        let limits = ImageLimits { max_bytes: 40, ..ImageLimits::default() };
        let source = Source::open(dir.path(), &SourceConfig { limits, ..SourceConfig::default() }).unwrap();
        assert!(source.decode(0).unwrap_err().to_string().contains("larger than the limit of 40 bytes"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_do_not_loop() {
        let dir = tempfile::tempdir().unwrap();
        write_png(&dir.path().join("k/1.png"), 4, 4);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("k/up")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("gone"), dir.path().join("k/dangling.png")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("k/1.png"), dir.path().join("k/2.png")).unwrap();
        assert_eq!(open(dir.path()).unwrap().len(), 2);
    }
}
