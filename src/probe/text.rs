//! Contents of `/proc` and `/sys`, and sizes in text.

use std::{fs, path::Path};

/// The trimmed contents of a small file.
pub(super) fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The number in a file, if the file contains nothing else.
pub(super) fn read_number(path: impl AsRef<Path>) -> Option<u64> {
    read(path)?.parse().ok()
}

/// The names in a directory, sorted; none if it cannot be read.
pub(super) fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The choice that the kernel puts in brackets: `madvise` of `always [madvise] never`.
pub(super) fn chosen(text: &str) -> Option<&str> {
    let (_, behind) = text.split_once('[')?;
    let (chosen, _) = behind.split_once(']')?;
    (!chosen.is_empty()).then_some(chosen)
}

/// A number of bytes for people, whole in the largest unit that allows it.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0 => "0 bytes".to_owned(),
        _ if bytes.trailing_zeros() >= 30 => format!("{} GiB", bytes >> 30),
        _ if bytes.trailing_zeros() >= 20 => format!("{} MiB", bytes >> 20),
        _ if bytes.trailing_zeros() >= 10 => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_is_in_brackets() {
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen("always defer [defer+madvise] never\n"), Some("defer+madvise"));
        for garbage in ["", "always", "[", "]", "][", "[]", "always [madvise"] {
            assert_eq!(chosen(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn sizes_are_exact() {
        let sizes = [0, 1, 1023, 1024, 1025, 8 << 20, (8 << 20) + 1024, 3 << 30];
        let texts =
            ["0 bytes", "1 bytes", "1023 bytes", "1 KiB", "1025 bytes", "8 MiB", "8193 KiB"];
        for (bytes, text) in sizes.into_iter().zip(texts.into_iter().chain(["3 GiB"])) {
            assert_eq!(size(bytes), text);
        }
    }
}
