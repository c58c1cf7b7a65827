//! The folder that is served, and the way to its files.

use std::{
    ffi::OsString,
    fmt::Write,
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use crate::request::{Target, is_hidden};

/// The most names of a listing, which bounds its memory.
const MOST_NAMES: usize = 2000;

const INDEX: &str = "index.html";

/// Stays as it is in the segment of a path.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// As above, with the slash behind the name of a folder.
const UNRESERVED_OR_SLASH: &AsciiSet = &UNRESERVED.remove(b'/');

/// The folder that is served.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
}

/// The resource behind a target.
#[derive(Debug)]
pub(crate) enum Found {
    File(OpenFile),
    /// A page about a folder without an index.
    Listing(String),
    /// A folder, asked for without the slash at the end: the path with the slash.
    Folder(String),
}

/// A regular file below the root.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) file: File,
    pub(crate) version: Version,
    pub(crate) mime: String,
}

/// One state of one file: any write changes a time stamp, once the clock has moved on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Version {
    device: u64,
    inode: u64,
    pub(crate) len: u64,
    pub(crate) modified: SystemTime,
    /// Of the inode; no program can set this one.
    pub(crate) changed: (i64, i64),
}

impl Root {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        if !path.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { path })
    }

    /// Opens the resource. Blocks.
    pub(crate) fn find(&self, target: &Target) -> io::Result<Found> {
        let relative: PathBuf = target.segments.iter().collect();
        let (handle, metadata) = self.open(&relative)?;
        if metadata.is_file() && !target.ends_with_slash {
            return Ok(Found::File(OpenFile::new(&handle, &relative)?));
        }
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !target.ends_with_slash {
            // Built anew: `//host/path` as it came would lead to another host.
            return Ok(Found::Folder(format!("{}/", encode(&target.segments))));
        }
        let index = relative.join(INDEX);
        match self.open(&index) {
            Ok((handle, metadata)) if metadata.is_file() => {
                Ok(Found::File(OpenFile::new(&handle, &index)?))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Found::Listing(list(&handle, &target.segments)?)),
        }
    }

    /// Finds a file or folder, without opening it: the open of a device may act, and that of a pipe waits.
    ///
    /// The place is checked afterwards, so that no exchange of a folder for a link comes between.
    fn open(&self, relative: &Path) -> io::Result<(File, Metadata)> {
        let mut options = OpenOptions::new();
        let handle =
            options.read(true).custom_flags(libc::O_PATH).open(self.path.join(relative))?;
        if !fs::read_link(place_of(&handle))?.starts_with(&self.path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let metadata = handle.metadata()?;
        Ok((handle, metadata))
    }
}

impl OpenFile {
    fn new(handle: &File, path: &Path) -> io::Result<Self> {
        let file = File::open(place_of(handle))?;
        let metadata = file.metadata()?;
        let version = Version {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: metadata.modified()?,
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let mime = mime_guess::from_path(path).first_or_octet_stream();
        let charset = if mime.type_() == "text" { "; charset=utf-8" } else { "" };
        Ok(Self { file, version, mime: format!("{mime}{charset}") })
    }
}

/// The name of an open file in `/proc`. An open of this name opens the very same file again.
fn place_of(handle: &File) -> PathBuf {
    format!("/proc/self/fd/{}", handle.as_raw_fd()).into()
}

/// The path of the segments, without a slash at the end.
fn encode(segments: &[OsString]) -> String {
    let encode = |segment: &OsString| percent_encode(segment.as_bytes(), UNRESERVED).to_string();
    segments.iter().fold(String::new(), |path, segment| path + "/" + &encode(segment))
}

/// A page with the names in a folder.
fn list(folder: &File, segments: &[OsString]) -> io::Result<String> {
    let mut names = Vec::new();
    let mut entries = fs::read_dir(place_of(folder))?;
    for entry in entries.by_ref().take(MOST_NAMES) {
        let entry = entry?;
        let mut name = entry.file_name();
        if !is_hidden(&name) {
            if entry.file_type()?.is_dir() {
                name.push("/");
            }
            names.push(name);
        }
    }
    names.sort();
    let rest = entries.next().map_or("", |_| "<p>Further names are left out.</p>\n");
    let title = segments
        .iter()
        .fold(String::from("/"), |path, segment| path + &escape(&segment.to_string_lossy()) + "/");
    let mut page = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<h1>{title}</h1>\n<ul>\n"
    );
    if !segments.is_empty() {
        page += "<li><a href=\"../\">../</a></li>\n";
    }
    for name in names {
        // A colon is encoded, and so no link has a scheme.
        let link = percent_encode(name.as_bytes(), UNRESERVED_OR_SLASH);
        let text = escape(&name.to_string_lossy());
        let _ = writeln!(page, "<li><a href=\"{link}\">{text}</a></li>");
    }
    Ok(page + "</ul>\n" + rest)
}

/// Text for a page.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}
