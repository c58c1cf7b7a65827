//! The file that the received memory is written to: whole, or not at all.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{failure::Failure, memory::GuestMemory};

/// The target of the memory: a regular file or a free name. Checked before the migration, so that a
/// wrong name fails at once.
#[derive(Debug)]
pub struct OutputFile {
    /// The path as given by the user.
    asked: PathBuf,
    /// The path behind all links.
    target: PathBuf,
}

impl OutputFile {
    /// Checks that the file can be written there.
    pub fn new(path: &Path) -> Result<Self, Failure> {
        let target = behind_links(path).map_err(|e| failure(path, &e))?;
        let output = Self { asked: path.to_owned(), target };
        // The probe removes its file again.
        output.partial().map(drop).map_err(|e| failure(path, &e))?;
        Ok(output)
    }

    pub fn path(&self) -> &Path {
        &self.asked
    }

    /// Writes the memory beside the target and syncs it.
    pub fn write(&self, memory: &GuestMemory) -> Result<Written<'_>, Failure> {
        let write = || {
            let partial = self.partial()?;
            let mut out = BufWriter::with_capacity(1 << 20, &partial.file);
            for region in memory.layout().regions() {
                memory.for_each_piece(region.start..region.end(), |_, piece| {
                    match crate::signals::interrupted() {
                        true => Err(io::ErrorKind::Interrupted.into()),
                        false => out.write_all(piece),
                    }
                })?;
            }
            out.flush()?;
            drop(out);
            partial.file.sync_all()?;
            // The target may have changed during the migration.
            check(fs::symlink_metadata(&self.target))?;
            Ok(Written { output: self, partial })
        };
        write().map_err(|e| failure(&self.asked, &e))
    }

    fn partial(&self) -> io::Result<Partial> {
        let name = self.target.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let name = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
        let path = self.directory()?.join(name);
        // For the owner alone: the memory of a guest contains secrets.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Partial { path, file })
    }

    fn directory(&self) -> io::Result<PathBuf> {
        let parent = self.target.parent().ok_or(io::ErrorKind::InvalidFilename)?;
        Ok(if parent.as_os_str().is_empty() { ".".into() } else { parent.to_owned() })
    }
}

/// The path behind all links. Fails unless the target is a regular file or a free name.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    if check(fs::metadata(path))? {
        return path.canonicalize();
    }
    // `canonicalize` fails for a free name. The kernel has found no loop of links.
    let mut path = path.to_owned();
    while let Ok(next) = fs::read_link(&path) {
        path = path.parent().unwrap_or(&path).join(next);
    }
    // A trailing slash names a directory.
    match path.as_os_str().as_bytes().ends_with(b"/") {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "no such directory")),
        false => Ok(path),
    }
}

/// Returns `true` for a regular file and `false` for a free name. Fails for all else: a rename
/// would replace even a device.
fn check(found: io::Result<Metadata>) -> io::Result<bool> {
    match found {
        Ok(metadata) if metadata.is_file() => Ok(true),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::io(format_args!("--memory-out {}", path.display()), error)
}

/// A complete file beside the target; removed when dropped.
#[derive(Debug)]
pub struct Written<'a> {
    output: &'a OutputFile,
    partial: Partial,
}

impl Written<'_> {
    pub fn path(&self) -> &Path {
        &self.output.asked
    }

    /// Gives the file its name.
    pub fn name(self) -> Result<(), Failure> {
        let name = || {
            fs::rename(&self.partial.path, &self.output.target)?;
            // The directory makes the name durable.
            self.output.directory().and_then(|dir| File::open(dir)?.sync_all())
        };
        name().map_err(|e| failure(&self.output.asked, &e))
    }
}

/// An incomplete file; removed when dropped, without effect after the rename.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    file: File,
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
