//! The file that the received memory is written to: whole, or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{failure::Failure, memory::GuestMemory};

/// Where the memory goes. Made before the migration, so that a directory that does not exist or
/// may not be written fails at once and not after a long transfer.
#[derive(Debug)]
pub(crate) struct OutputFile {
    path: PathBuf,
}

impl OutputFile {
    /// Checks that the file can be written where it is to be.
    pub(crate) fn new(path: &Path) -> Result<Self, Failure> {
        let output = Self { path: path.to_owned() };
        if path.is_dir() {
            return Err(output.failure(&io::ErrorKind::IsADirectory.into()));
        }
        // The probe removes its file again.
        output.partial().map(drop).map_err(|e| output.failure(&e))?;
        Ok(output)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the memory beside the final name, syncs it, and renames it.
    pub(crate) fn save(&self, memory: &GuestMemory) -> Result<(), Failure> {
        let save = || {
            let partial = self.partial()?;
            let mut out = BufWriter::with_capacity(1 << 20, &partial.file);
            memory.for_each_piece(|piece| match crate::signals::interrupted() {
                true => Err(io::ErrorKind::Interrupted.into()),
                false => out.write_all(piece),
            })?;
            out.flush()?;
            drop(out);
            partial.file.sync_all()?;
            fs::rename(&partial.path, &self.path)?;
            // The name is on disk when its directory is.
            self.directory().and_then(|dir| File::open(dir)?.sync_all())
        };
        save().map_err(|e| self.failure(&e))
    }

    fn partial(&self) -> io::Result<Partial> {
        let name = self.path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
        let name = format!(".{name}.{}.partial", std::process::id());
        let path = self.directory()?.join(name);
        // For the owner alone: the memory of a guest holds its secrets.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Partial { path, file })
    }

    fn directory(&self) -> io::Result<PathBuf> {
        let parent = self.path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
        Ok(if parent.as_os_str().is_empty() { ".".into() } else { parent.to_owned() })
    }

    fn failure(&self, error: &io::Error) -> Failure {
        Failure::io(format_args!("--memory-out {}", self.path.display()), error)
    }
}

/// A file that is not whole yet; removed when dropped, which after the rename finds nothing.
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
