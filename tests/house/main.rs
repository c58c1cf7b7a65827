//! The rules of the repository: the documents' claims, and the imports of `src/`.

mod claims;
mod import_map;
mod words;
