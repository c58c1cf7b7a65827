//! Trackers of the pages that a guest has written.
//!
//! A tracker protects first and tells later: [`Tracker::changes`] returns the pages that were
//! written since the call before, and from then on sees every further write. So a page is sent
//! *after* the call that names it. A write during the send is in the next set. The sets of the first
//! call are round 0: with any other set, a page that is given back during the round would be missed.
//!
//! | method     | each round asks                | the stopped guest costs                     |
//! |------------|--------------------------------|---------------------------------------------|
//! | digest     | the destination's digests      | a digest of all data                        |
//! | soft-dirty | page tables, then digests      | a digest of the pages written since round 0 |
//! | uffd       | page tables                    | nothing more                                |
//!
//! No tracker sees writes that come past the page tables of the hypervisor: by other processes'
//! mappings (vhost-user), by pwrite(2) to the file, and by direct I/O, whose pages the kernel has
//! pinned before the protection and fills after it. [`choose`] takes digests for such guests.

pub mod soft_dirty;
pub mod uffd;

use std::{fmt, io, ops::Range, sync::Arc};

use clap::ValueEnum;

use crate::{
    failure::{Code, Failure},
    hypervisor::memory::GuestRam,
    track::{soft_dirty::SoftDirty, uffd::Uffd},
};

/// The way to find written pages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, ValueEnum)]
pub enum Method {
    /// The best of the others that works here.
    #[default]
    Auto,
    /// Compare digests with the destination. Works with every hypervisor.
    Digest,
    /// A userfaultfd in the hypervisor, started with LD_PRELOAD=libpinbuf_uffd.so. Linux 6.7 or later.
    Uffd,
    /// Soft-dirty bits, with digests of the pages that have them.
    SoftDirty,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Digest => "digest",
            Self::Uffd => "uffd",
            Self::SoftDirty => "soft-dirty",
        })
    }
}

/// Changes of a piece of memory: two sets of ranges in bytes, each in order, without common pages.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Changes {
    /// Ranges to read and send.
    pub written: Vec<Range<u64>>,
    /// All ranges that are holes of the file now: zeros, and a page is sent only if the destination
    /// has other bytes. A read through a mapping would fill the hole.
    pub holes: Vec<Range<u64>>,
}

/// A source of written pages.
pub trait Tracker: Send + fmt::Debug {
    /// For each piece of memory the changes since the call before. The first call begins, and returns
    /// every page.
    fn changes(&mut self) -> io::Result<Vec<Changes>>;

    /// Returns `true` if nearly every page of `written` has changed. Otherwise a digest tells whether
    /// a page differs from the destination's.
    fn is_exact(&self) -> bool;
}

/// A chosen method.
#[derive(Debug)]
pub struct Choice {
    /// Never `Auto`.
    pub method: Method,
    /// The reason, for the user.
    pub reason: String,
    /// `None` for digests.
    pub tracker: Option<Box<dyn Tracker>>,
}

/// Chooses the method for a guest. `untracked` names the writers past the page tables.
///
/// # Errors
///
/// Fails if the asked method does not work here.
pub fn choose(
    asked: Method,
    ram: &Arc<[GuestRam]>,
    untracked: &[String],
) -> Result<Choice, Failure> {
    let digest = |reason| Choice { method: Method::Digest, reason, tracker: None };
    let candidates: &[Method] = match asked {
        Method::Auto => &[Method::Uffd, Method::SoftDirty],
        Method::Digest => return Ok(digest("as asked".into())),
        Method::Uffd => &[Method::Uffd],
        Method::SoftDirty => &[Method::SoftDirty],
    };
    let mut reasons = Vec::new();
    if !untracked.is_empty() {
        reasons.push(format!("page tables do not show the writes of {}", untracked.join(", ")));
    }
    for method in candidates.iter().copied().filter(|_| untracked.is_empty()) {
        match begin(method, ram) {
            Ok(tracker) => {
                reasons.push(format!("{method} works here"));
                return Ok(Choice { method, reason: reasons.join("; "), tracker: Some(tracker) });
            }
            Err(why) => reasons.push(format!("no {method}: {why}")),
        }
    }
    let reason = reasons.join("; ");
    match asked {
        Method::Auto => Ok(digest(reason)),
        _ => Err(Failure::new(Code::Environment, format!("--track {asked}: {reason}"))),
    }
}

fn begin(method: Method, ram: &Arc<[GuestRam]>) -> Result<Box<dyn Tracker>, String> {
    Ok(match method {
        Method::SoftDirty => Box::new(SoftDirty::new(Arc::clone(ram))?),
        _ => Box::new(Uffd::new(Arc::clone(ram))?),
    })
}

/// Adds a range behind the others, and joins neighbours.
fn push(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
        _ => ranges.push(next),
    }
}

/// The holes of the file among ranges without an entry in the page table.
fn holes(piece: &GuestRam, absent: &[Range<u64>]) -> io::Result<Vec<Range<u64>>> {
    let mut data = Vec::new();
    for range in absent {
        data.extend(piece.data_in(range.clone())?);
    }
    Ok(without(absent, &data))
}

/// What is left of `ranges` without `others`, both in order.
fn without(ranges: &[Range<u64>], mut others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    for range in ranges {
        let mut at = range.start;
        while let [other, rest @ ..] = others
            && other.start < range.end
        {
            if other.start > at {
                push(&mut left, at..other.start);
            }
            at = at.max(other.end);
            if other.end > range.end {
                break;
            }
            others = rest;
        }
        if at < range.end {
            push(&mut left, at..range.end);
        }
    }
    left
}

#[cfg(test)]
mod tests;
