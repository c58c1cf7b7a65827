//! Conditional and range requests: RFC 9110, sections 13 and 14.

use std::{
    ops::Range,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use httpdate::HttpDate;

/// A file younger than this may change again within the same time stamp.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// The fields of a request that make it conditional, or ask for a part.
#[derive(PartialEq, Eq, Default, Debug)]
pub(crate) struct Conditions {
    pub(crate) if_match: Option<String>,
    pub(crate) if_none_match: Option<String>,
    pub(crate) if_modified_since: Option<String>,
    pub(crate) if_unmodified_since: Option<String>,
    pub(crate) if_range: Option<String>,
    pub(crate) range: Option<String>,
}

/// The version of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Validators {
    /// Weak while the file is not settled: two versions could have the same tag.
    pub(crate) etag: String,
    pub(crate) modified: HttpDate,
}

/// The outcome of the preconditions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Send,
    NotModified,
    Failed,
}

/// The outcome of the range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Whole,
    Bytes(Range<u64>),
    Unsatisfiable,
}

impl Validators {
    pub(crate) fn new(len: u64, modified: SystemTime, now: SystemTime) -> Self {
        let stamp = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let weak = if is_settled(modified, now) { "" } else { "W/" };
        let etag = format!("{weak}\"{:x}-{len:x}\"", stamp.as_nanos());
        // A date in the future is not to be sent.
        Self { etag, modified: modified.min(now).max(UNIX_EPOCH).into() }
    }

    fn is_strong(&self) -> bool {
        !self.etag.starts_with("W/")
    }
}

/// Returns `true` if a change from `now` on would change the time stamp.
pub(crate) fn is_settled(modified: SystemTime, now: SystemTime) -> bool {
    now.duration_since(modified).is_ok_and(|age| age >= SETTLED_AFTER)
}

impl Conditions {
    pub(crate) fn new(field: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            if_match: field("if-match"),
            if_none_match: field("if-none-match"),
            if_modified_since: field("if-modified-since"),
            if_unmodified_since: field("if-unmodified-since"),
            if_range: field("if-range"),
            range: field("range"),
        }
    }

    /// Evaluates the preconditions in the order of section 13.2.2.
    pub(crate) fn evaluate(&self, file: &Validators) -> Verdict {
        let is_newer_than = |date: &str| parse(date).is_none_or(|date| file.modified > date);
        let failed = match (&self.if_match, &self.if_unmodified_since) {
            (Some(tags), _) => !has_tag(tags, |tag| file.is_strong() && tag == file.etag),
            (None, Some(date)) => parse(date).is_some() && is_newer_than(date),
            (None, None) => false,
        };
        let not_modified = match (&self.if_none_match, &self.if_modified_since) {
            (Some(tags), _) => has_tag(tags, |tag| opaque(tag) == opaque(&file.etag)),
            (None, Some(date)) => file.is_strong() && !is_newer_than(date),
            (None, None) => false,
        };
        match (failed, not_modified) {
            (true, _) => Verdict::Failed,
            (false, true) => Verdict::NotModified,
            (false, false) => Verdict::Send,
        }
    }

    /// The part of the file to send. Several ranges are answered with the whole file, as the RFC allows.
    pub(crate) fn part(&self, file: &Validators, len: u64) -> Part {
        let is_same_version = self.if_range.as_deref().is_none_or(|validator| {
            file.is_strong() && (validator == file.etag || parse(validator) == Some(file.modified))
        });
        let Some(range) = self.range.as_deref().filter(|_| is_same_version) else {
            return Part::Whole;
        };
        part(range, len).unwrap_or(Part::Whole)
    }
}

/// A malformed date is ignored.
fn parse(date: &str) -> Option<HttpDate> {
    date.parse().ok()
}

fn has_tag(tags: &str, matches: impl Fn(&str) -> bool) -> bool {
    tags.trim() == "*" || tags.split(',').any(|tag| matches(tag.trim()))
}

/// The tag without its strength.
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// A range of bytes. `None`: another unit, several ranges, or malformed, and so ignored.
fn part(range: &str, len: u64) -> Option<Part> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let bytes = match (first, last) {
        ("", last) => match number(last)? {
            0 => return Some(Part::Unsatisfiable),
            _ if len == 0 => return None,
            count => len.saturating_sub(count)..len,
        },
        (first, "") => number(first)?..len,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..len.min(last.saturating_add(1))
        }
    };
    Some(if bytes.start < len { Part::Bytes(bytes) } else { Part::Unsatisfiable })
}

/// A number above all lengths stands for all of these.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}
