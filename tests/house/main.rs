//! The rules of the repository: the documents' claims, and the imports of `src/`.

use std::{
    fs,
    path::{Path, PathBuf},
};

mod claims;
mod import_map;
mod words;

/// The variable first: the tests may run away from the folder of their build.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
