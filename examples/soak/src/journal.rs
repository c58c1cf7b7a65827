//! What a peer is to receive.

use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use xxhash_rust::xxh3::xxh3_64;

use crate::contents::Piece;

/// What was sent over one connection: entered before the send, so that no byte arrives that is
/// not here, and taken back if the send was refused.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pieces: Mutex<Vec<Piece>>,
    over: AtomicBool,
}

/// How far the peer has come.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    piece: usize,
    within: usize,
    pub(crate) bytes: u64,
}

impl Journal {
    /// Enters a send; returns what [`retract`](Self::retract) takes.
    pub(crate) fn promise(&self, pieces: &[Piece]) -> usize {
        let mut all = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = all.len();
        all.extend(pieces.iter().filter(|piece| piece.len > 0));
        mark
    }

    /// Nothing of the last send was accepted.
    pub(crate) fn retract(&self, mark: usize) {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).truncate(mark);
    }

    /// The sender is gone: closed, or with the reaper.
    pub(crate) fn end(&self) {
        // Relaxed: a flag on its own, nothing is published with it.
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Compares what comes next.
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

    /// Whether everything has arrived.
    pub(crate) fn is_whole(&self, cursor: &Cursor) -> bool {
        cursor.piece == self.pieces.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// What was sent in datagrams, which may be lost but never changed: the checksum of each.
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
