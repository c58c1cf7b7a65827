//! Shared set-up of the concurrency models in `tests/`.
