//! The bytes that a peer must receive.

use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use xxhash_rust::xxh3::xxh3_64;

use crate::contents::Piece;

/// The sends over a connection: entered before the call, so that no unknown byte arrives, and
/// removed after a refusal.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pieces: Mutex<Vec<Piece>>,
    over: AtomicBool,
}

/// The peer's position.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    piece: usize,
    within: usize,
    pub(crate) bytes: u64,
}

impl Journal {
    /// Enters a send. Returns the mark for [`retract`](Self::retract).
    pub(crate) fn promise(&self, pieces: &[Piece]) -> usize {
        let mut all = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = all.len();
        all.extend(pieces.iter().filter(|piece| piece.len > 0));
        mark
    }

    /// Removes the last send: no byte was accepted.
    pub(crate) fn retract(&self, mark: usize) {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).truncate(mark);
    }

    /// The sender is gone: closed, or with the reaper.
    pub(crate) fn end(&self) {
        // Relaxed: a flag on its own, without other data.
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Compares the next bytes.
    pub(crate) fn check(&self, cursor: &mut Cursor, mut got: &[u8]) -> Result<(), String> {
        while !got.is_empty() {
            let all = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
            let piece = all.get(cursor.piece).copied();
            drop(all);
            let Some(whole) = piece else {
                return Err(format!("{} bytes that were never sent", got.len()));
            };
            let piece = whole.part(cursor.within, got.len());
            let (now, rest) = got.split_at(piece.len);
            if let Some(at) = piece.differs(now) {
                let at = cursor.bytes + at as u64;
                return Err(format!("byte {at} of the stream is wrong, in send {}", cursor.piece));
            }
            cursor.bytes += piece.len as u64;
            cursor.within += piece.len;
            if cursor.within == whole.len {
                (cursor.piece, cursor.within) = (cursor.piece + 1, 0);
            }
            got = rest;
        }
        Ok(())
    }

    /// Returns `true` if all bytes have arrived.
    pub(crate) fn is_whole(&self, cursor: &Cursor) -> bool {
        cursor.piece == self.pieces.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// The sent datagrams, which may be lost but never changed: the checksum of each.
#[derive(Debug, Default)]
pub(crate) struct Checksums(Mutex<HashSet<u64>>);

impl Checksums {
    pub(crate) fn promise(&self, pieces: &[Piece]) {
        let mut bytes = Vec::new();
        pieces.iter().for_each(|piece| piece.write_to(&mut bytes));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(xxh3_64(&bytes));
    }

    pub(crate) fn knows(&self, datagram: &[u8]) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&xxh3_64(datagram))
    }
}
