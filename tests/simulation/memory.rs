//! The memory for payloads: the pieces that the simulated kernel may still read, and their
//! contents.

use std::{collections::HashMap, ptr, slice, sync::LazyLock};

use pinbuf::{
    __internals::{self, IoVec, Lease, SlotState},
    PinnedBuf,
};

use crate::choices::Choices;

/// Every payload is a part of this table.
pub(crate) static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Choices::random(0);
    (0..TABLE_BYTES).map(|_| random.below(256) as u8).collect()
});
pub(crate) const TABLE_BYTES: usize = 1 << 18;

/// The contents of a payload: bytes of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Text {
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl Text {
    pub(crate) fn new(choices: &mut Choices, len: usize) -> Self {
        Self { offset: choices.below(TABLE_BYTES - len), len }
    }

    pub(crate) fn bytes(self) -> &'static [u8] {
        &TABLE[self.offset..][..self.len]
    }

    pub(crate) fn part(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len);
        Self { offset: self.offset + start, len }
    }
}

/// Blocks of mapped memory, beside the pools: number and size.
const BLOCKS: usize = 64;
pub(crate) const BLOCK_BYTES: usize = 32 << 10;

/// Bytes that the kernel reads in place.
#[derive(Debug)]
pub(crate) struct Piece {
    address: usize,
    text: Text,
    /// Their cell, unless they are constant.
    cell: Option<Cell>,
}

impl Piece {
    pub(crate) fn len(&self) -> usize {
        self.text.len
    }
}

/// A slot or block, as long as its pages stay the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Cell {
    area: usize,
    index: usize,
    epoch: u32,
}

/// Memory in cells of equal size.
#[derive(Debug)]
struct Area {
    start: usize,
    cell_bytes: usize,
    /// Pieces in each cell that the kernel may read, and the number of page replacements of the
    /// cell.
    readers: Vec<u32>,
    epochs: Vec<u32>,
    /// `true` for a cell with a successful zero-copy call since the cell was last free or in a
    /// program's hands.
    given: Vec<bool>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A slot that is never returned keeps the pool's slots and memory.
    Pool {
        witness: PinnedBuf,
    },
    Blocks {
        memory: Vec<u8>,
        used: Vec<bool>,
        holes: Vec<Option<usize>>,
    },
}

/// The memory of all payloads.
#[derive(Debug)]
pub(crate) struct Memory {
    areas: Vec<Area>,
    /// Pieces that the kernel may read on former pages of a cell.
    replaced: HashMap<Cell, u32>,
}

fn bytes_at(address: usize, len: usize) -> &'static [u8] {
    // SAFETY: `from_raw_parts` needs initialized memory without writers while the slice lives. The
    // areas stay mapped as long as the simulation, sent bytes have been written, and the only
    // thread compares the slice at once.
    unsafe { slice::from_raw_parts(ptr::with_exposed_provenance(address), len) }
}

impl Memory {
    pub(crate) fn new() -> Self {
        let memory = vec![0; BLOCKS * BLOCK_BYTES];
        let blocks = Area {
            start: memory.as_ptr().expose_provenance(),
            cell_bytes: BLOCK_BYTES,
            readers: vec![0; BLOCKS],
            epochs: vec![0; BLOCKS],
            given: vec![false; BLOCKS],
            kind: Kind::Blocks { memory, used: vec![false; BLOCKS], holes: vec![None; BLOCKS] },
        };
        Self { areas: vec![blocks], replaced: HashMap::new() }
    }

    /// Adds a pool of equal slots; `witness` is one of its slots.
    pub(crate) fn add_pool(&mut self, witness: PinnedBuf) {
        let starts: Vec<_> = __internals::slots(witness.pool())
            .map(|(start, _)| start.expose_provenance())
            .collect();
        assert!(starts.is_sorted());
        self.areas.push(Area {
            start: starts[0],
            cell_bytes: starts.get(1).map_or(witness.capacity(), |next| next - starts[0]),
            readers: vec![0; starts.len()],
            epochs: vec![0; starts.len()],
            given: vec![false; starts.len()],
            kind: Kind::Pool { witness },
        });
    }

    /// Removes the pools and returns their witnesses.
    pub(crate) fn take_witnesses(&mut self) -> Vec<PinnedBuf> {
        let pools = self.areas.drain(1..);
        pools
            .filter_map(|area| match area.kind {
                Kind::Pool { witness } => Some(witness),
                Kind::Blocks { .. } => None,
            })
            .collect()
    }

    /// An unused block, filled; unreadable from `hole` on.
    pub(crate) fn take_block(&mut self, text: Text, hole: Option<usize>) -> Option<(usize, usize)> {
        let Area { start, readers, kind: Kind::Blocks { memory, used, holes }, .. } =
            &mut self.areas[0]
        else {
            unreachable!("the blocks are the first area");
        };
        let index = used.iter().position(|used| !used)?;
        assert_eq!(readers[index], 0, "block {index} was dropped while the kernel may read it");
        used[index] = true;
        holes[index] = hole;
        memory[index * BLOCK_BYTES..][..text.len].copy_from_slice(text.bytes());
        Some((index, *start + index * BLOCK_BYTES))
    }

    /// The owner of a block was dropped.
    pub(crate) fn give_block(&mut self, index: usize) {
        let Area { readers, kind: Kind::Blocks { used, .. }, .. } = &mut self.areas[0] else {
            unreachable!("the blocks are the first area");
        };
        let readers = readers[index];
        assert_eq!(readers, 0, "the owner of block {index} is dropped, the kernel may read it");
        assert!(used[index], "the owner of block {index} is dropped twice");
        used[index] = false;
    }

    /// Blocks in use by payloads.
    pub(crate) fn blocks_used(&self) -> usize {
        match &self.areas[0].kind {
            Kind::Blocks { used, .. } => used.iter().filter(|used| **used).count(),
            Kind::Pool { .. } => 0,
        }
    }

    /// The number of readable bytes at the start of a range.
    pub(crate) fn readable(&self, range: &IoVec) -> usize {
        let (area, address) = (&self.areas[0], range.start().addr());
        let Kind::Blocks { holes, .. } = &area.kind else {
            unreachable!("the blocks are the first area")
        };
        let Some(cell) = area.cell_of(address) else { return range.len() };
        let offset = address - area.start - cell * BLOCK_BYTES;
        holes[cell].map_or(range.len(), |hole| hole.saturating_sub(offset).min(range.len()))
    }

    /// The kernel takes a part of a range, to read in place from now on.
    pub(crate) fn begin(&mut self, range: &IoVec, start: usize, text: Text) -> Piece {
        let address = range.start().expose_provenance() + start;
        assert!(bytes_at(address, text.len) == text.bytes(), "the bytes differ from the owner's");
        let cell = self.areas.iter_mut().enumerate().find_map(|(area, cells)| {
            let index = cells.cell_of(address)?;
            cells.readers[index] += 1;
            Some(Cell { area, index, epoch: cells.epochs[index] })
        });
        Piece { address, text, cell }
    }

    /// A zero-copy call with these ranges succeeded.
    pub(crate) fn give(&mut self, memory: &[IoVec]) {
        for area in &mut self.areas {
            for range in memory {
                if let Some(cell) = area.cell_of(range.start().addr()) {
                    area.given[cell] = true;
                }
            }
        }
    }

    /// The kernel copies a part of a range.
    pub(crate) fn copy(range: &IoVec, start: usize, text: Text) {
        let address = range.start().expose_provenance() + start;
        assert!(bytes_at(address, text.len) == text.bytes(), "the bytes differ from the owner's");
    }

    /// The kernel reads a part of a piece.
    pub(crate) fn read(&mut self, piece: &Piece, start: usize, len: usize) {
        if self.is_replaced(piece) {
            return;
        }
        let text = piece.text.part(start, len);
        if bytes_at(piece.address + start, len) != text.bytes() {
            self.check();
            assert!(self.is_replaced(piece), "bytes that the kernel may read have changed");
        }
    }

    /// The kernel releases a piece.
    pub(crate) fn end(&mut self, piece: &Piece) {
        self.read(piece, 0, piece.text.len);
        let Some(cell) = piece.cell else { return };
        let Some(readers) = self.replaced.get_mut(&cell) else {
            self.areas[cell.area].readers[cell.index] -= 1;
            return;
        };
        *readers -= 1;
        if *readers == 0 {
            self.replaced.remove(&cell);
        }
    }

    /// Returns `true` if the cell of the piece has new pages, and the kernel the former ones.
    fn is_replaced(&self, piece: &Piece) -> bool {
        piece.cell.is_some_and(|cell| self.replaced.contains_key(&cell))
    }

    /// Checks that no program has a slot while the kernel may read it, except a slot with new
    /// pages. Checks the number of replaced pages against the pool's.
    pub(crate) fn check(&mut self) {
        for (at, area) in self.areas.iter_mut().enumerate() {
            let Kind::Pool { witness } = &area.kind else { continue };
            let pool = witness.pool();
            for (index, (_, state)) in __internals::slots(pool).enumerate() {
                let readers = area.readers[index];
                match state {
                    SlotState::Free | SlotState::Owned => area.given[index] = false,
                    SlotState::InFlight => {}
                    SlotState::Quarantined => {
                        assert!(
                            area.given[index],
                            "slot {index} is {state}, but no zero-copy call succeeded"
                        );
                    }
                }
                if readers == 0 || !matches!(state, SlotState::Free | SlotState::Owned) {
                    continue;
                }
                let held = self.replaced.keys().filter(|cell| cell.area == at).count();
                assert!(
                    (held + 1) * area.cell_bytes <= pool.replaced_bytes(),
                    "slot {index} is {state}, but the kernel may read it"
                );
                let cell = Cell { area: at, index, epoch: area.epochs[index] };
                self.replaced.insert(cell, readers);
                area.readers[index] = 0;
                area.epochs[index] += 1;
            }
        }
    }
}

impl Area {
    fn cell_of(&self, address: usize) -> Option<usize> {
        let cell = address.checked_sub(self.start)? / self.cell_bytes;
        (cell < self.readers.len()).then_some(cell)
    }
}
