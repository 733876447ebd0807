//! Cache folder of catalogue models.
//!
//! A file appears there under its name only after its SHA-256 was verified, so later starts check only its length. One process at a
//! time writes a model; a second one waits for it and then finds the file.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::CatalogueModel;

/// Folder of verified model files.
#[derive(Debug)]
pub(crate) struct ModelCache {
    dir: PathBuf,
}

/// Lock for writing one model. Released when dropped, or when the process ends in any way.
#[derive(Debug)]
pub(crate) struct WriteLock<'a> {
    cache: &'a ModelCache,
    model: &'static CatalogueModel,
    _file: File,
}

/// Model file that is being written. Unless accepted, it is removed when dropped.
#[derive(Debug)]
pub(crate) struct IncomingFile<'a> {
    lock: &'a WriteLock<'a>,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    num_bytes: u64,
    accepted: bool,
}

/// Folder for files to unpack first. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

/// Reason why a file is not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    /// It is not the file of the catalogue.
    #[error("{file} has SHA-256 {found} and {num_bytes} bytes, but {expected} and {expected_bytes} bytes were expected")]
    WrongContents {
        /// Name of the file.
        file: &'static str,
        /// SHA-256 found.
        found: String,
        /// Length found.
        num_bytes: u64,
        /// SHA-256 in the catalogue.
        expected: &'static str,
        /// Length in the catalogue.
        expected_bytes: u64,
    },
    /// The folder cannot be written.
    #[error("writing {}: {source}", path.display())]
    Write {
        /// Path that cannot be written.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl ModelCache {
    /// Creates a cache in `dir`, which is made at the first write.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Returns the verified file of `model`, if it is stored.
    pub(crate) fn get(&self, model: &CatalogueModel) -> Option<PathBuf> {
        let path = self.dir.join(model.file);
        let metadata = fs::metadata(&path).ok()?;
        (metadata.is_file() && metadata.len() == model.num_bytes).then_some(path)
    }

    /// Waits until no other process writes `model`; calls `on_wait` first if one does.
    ///
    /// # Errors
    /// If the folder cannot be made or written.
    pub(crate) fn lock(&self, model: &'static CatalogueModel, on_wait: impl FnOnce()) -> Result<WriteLock<'_>, CacheError> {
        fs::create_dir_all(&self.dir).map_err(|source| CacheError::Write { path: self.dir.clone(), source })?;
        let path = self.dir.join(format!(".{}.lock", model.file));
        let failed = |source| CacheError::Write { path: path.clone(), source };
        let file = File::create(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                on_wait();
                file.lock().map_err(failed)?;
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        Ok(WriteLock { cache: self, model, _file: file })
    }
}

impl WriteLock<'_> {
    /// Starts a new file. Overwrites the rest of an interrupted process.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub(crate) fn incoming(&self) -> Result<IncomingFile<'_>, CacheError> {
        let path = self.cache.dir.join(format!(".{}.part", self.model.file));
        let file = File::create(&path).map_err(|source| CacheError::Write { path: path.clone(), source })?;
        Ok(IncomingFile { lock: self, path, file, hasher: Sha256::new(), num_bytes: 0, accepted: false })
    }

    /// Creates an empty folder on the disk of the cache.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn scratch(&self) -> Result<Scratch, CacheError> {
        let path = self.cache.dir.join(format!(".{}.scratch", self.model.file));
        // Left by an interrupted process; usually there is none.
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).map_err(|source| CacheError::Write { path: path.clone(), source })?;
        Ok(Scratch { path })
    }
}

impl IncomingFile<'_> {
    /// Verifies the file against the catalogue and gives it its name.
    ///
    /// # Errors
    /// If its length or SHA-256 differ, or the disk fails. The file is then removed.
    pub(crate) fn accept(mut self) -> Result<PathBuf, CacheError> {
        let model = self.lock.model;
        let found = hex(&self.hasher.finalize_reset());
        if found != model.sha256 || self.num_bytes != model.num_bytes {
            return Err(CacheError::WrongContents {
                file: model.file,
                found,
                num_bytes: self.num_bytes,
                expected: model.sha256,
                expected_bytes: model.num_bytes,
            });
        }
        let path = self.lock.cache.dir.join(model.file);
        let rename = self.file.sync_all().and_then(|()| fs::rename(&self.path, &path));
        rename.map_err(|source| CacheError::Write { path: path.clone(), source })?;
        self.accepted = true;
        Ok(path)
    }
}

impl Write for IncomingFile<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let num_written = self.file.write(buffer)?;
        self.hasher.update(&buffer[..num_written]);
        self.num_bytes += num_written as u64;
        Ok(num_written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for IncomingFile<'_> {
    fn drop(&mut self) {
        if !self.accepted {
            // A disk that fails here too has already been reported.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Scratch {
    /// Returns the path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next process that needs the folder removes the rest.
        drop(fs::remove_dir_all(&self.path));
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Model whose file is `hello`.
    static HELLO: CatalogueModel = CatalogueModel {
        name: "hello",
        description: "",
        file: "hello.gguf",
        num_bytes: 5,
        sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        hub: None,
        wheels: &[],
    };

    fn store(cache: &ModelCache, contents: &[u8]) -> Result<PathBuf, CacheError> {
        let lock = cache.lock(&HELLO, || ())?;
        let mut incoming = lock.incoming()?;
        incoming.write_all(contents).unwrap();
        incoming.accept()
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.ends_with(".lock"));
        names.sort();
        names
    }

    /// Checks that after writing `contents` the folder holds `expected_files`.
    #[track_caller]
    fn check(contents: &[u8], expected_files: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let cache = ModelCache::new(dir.path().join("models"));
        let stored = store(&cache, contents);
        assert_eq!(stored.is_ok(), !expected_files.is_empty());
        assert_eq!(cache.get(&HELLO), stored.ok());
        assert_eq!(files(&dir.path().join("models")), expected_files);
    }

    #[test]
    fn the_right_file_gets_its_name() {
        check(b"hello", &["hello.gguf"]);
    }

    #[test]
    fn a_wrong_file_is_refused_and_nothing_is_left_behind() {
        check(b"hellO", &[]);
        check(b"hello!", &[]);
        check(b"", &[]);
    }

    #[test]
    fn a_refusal_names_both_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let message = store(&ModelCache::new(dir.path().to_owned()), b"x").unwrap_err().to_string();
        assert!(message.contains(HELLO.sha256) && message.contains("2d711642b726b044"), "{message}");
    }

    #[test]
    fn what_an_interrupted_process_left_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".hello.gguf.part"), "half of something longer").unwrap();
        let cache = ModelCache::new(dir.path().to_owned());
        assert!(cache.get(&HELLO).is_none());
        store(&cache, b"hello").unwrap();
        assert_eq!(files(dir.path()), ["hello.gguf"]);
    }

    #[test]
    fn a_truncated_file_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("hello.gguf"), "hell").unwrap();
        assert!(ModelCache::new(dir.path().to_owned()).get(&HELLO).is_none());
    }

    #[test]
    fn a_second_writer_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ModelCache::new(dir.path().to_owned());
        let first = cache.lock(&HELLO, || panic!("nobody else writes")).unwrap();
        let (waits, is_waiting) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let _lock = cache.lock(&HELLO, || waits.send(()).unwrap()).unwrap();
                cache.get(&HELLO).is_some()
            });
            is_waiting.recv().unwrap();
            let mut incoming = first.incoming().unwrap();
            incoming.write_all(b"hello").unwrap();
            incoming.accept().unwrap();
            drop(first);
            assert!(second.join().unwrap(), "the second must find what the first stored");
        });
    }

    #[test]
    fn scratch_folders_start_empty_and_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ModelCache::new(dir.path().to_owned());
        let lock = cache.lock(&HELLO, || ()).unwrap();
        let scratch = lock.scratch().unwrap();
        fs::write(scratch.path().join("wheel"), "x").unwrap();
        std::mem::forget(scratch);
        let scratch = lock.scratch().unwrap();
        assert!(files(scratch.path()).is_empty());
        drop(scratch);
        assert!(files(dir.path()).is_empty());
    }
}
