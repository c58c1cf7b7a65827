//! The version of the kernel.

use std::fmt;

use super::check::Check;

/// A version of Linux.
///
/// ```
/// use pinbuf::probe::KernelVersion;
///
/// let version = KernelVersion::parse("6.12.117-amd64").unwrap();
/// assert!(version >= KernelVersion::FLOOR);
/// assert_eq!(version.to_string(), "6.12.117");
/// assert_eq!(KernelVersion::parse("unknown"), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct KernelVersion {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
    /// The third number; 0 if there is none.
    pub patch: u16,
}

impl KernelVersion {
    /// The oldest tested version: 6.1.
    pub const FLOOR: Self = Self { major: 6, minor: 1, patch: 0 };

    /// The oldest version with `MSG_ZEROCOPY` on TCP: 4.14.
    pub const OLDEST: Self = Self { major: 4, minor: 14, patch: 0 };

    /// Parses the output of `uname -r`; ignores any text after the numbers.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.trim().splitn(3, '.').map(|part| {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse().ok()
        });
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Self { major, minor, patch: numbers.next().flatten().unwrap_or(0) })
    }

    pub(super) fn check(version: Option<Self>) -> Check {
        const NAME: &str = "kernel";
        let Some(version) = version else {
            return if cfg!(target_os = "linux") {
                Check::unknown(NAME, "no /proc/sys/kernel/osrelease", "mount /proc")
            } else {
                let advice = "everything goes by copy here; zero copy needs Linux 6.1 or newer";
                Check::fail(NAME, "not Linux", advice)
            };
        };
        let found = format!("Linux {version}");
        if version < Self::OLDEST {
            Check::fail(
                NAME,
                found,
                "update to Linux 6.1 or newer: before 4.14 there is no zero copy",
            )
        } else if version < Self::FLOOR {
            Check::warn(NAME, found, "update to Linux 6.1 or newer, the oldest tested version")
        } else {
            Check::pass(NAME, found)
        }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Status;

    fn version(major: u16, minor: u16, patch: u16) -> KernelVersion {
        KernelVersion { major, minor, patch }
    }

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        for (release, expected) in [
            ("6.18.44-fc-v657\n", version(6, 18, 44)),
            ("6.1.0-37-amd64", version(6, 1, 0)),
            ("5.10", version(5, 10, 0)),
            ("7.0-rc3", version(7, 0, 0)),
            ("4.18.0.305.el8", version(4, 18, 0)),
            ("6.6.x", version(6, 6, 0)),
            ("6.6.12_1", version(6, 6, 12)),
        ] {
            assert_eq!(KernelVersion::parse(release), Some(expected), "{release}");
        }
        for garbage in ["", "6", "x.1", ".1", "6.", "-6.1", "99999.1", "6,1", "\0"] {
            assert_eq!(KernelVersion::parse(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_floor_is_6_1_and_nothing_works_before_4_14() {
        let status = |major, minor| KernelVersion::check(Some(version(major, minor, 9))).status;
        assert_eq!([status(4, 13), status(3, 99)], [Status::Fail; 2]);
        assert_eq!([status(4, 14), status(5, 19), status(6, 0)], [Status::Warn; 3]);
        assert_eq!([status(6, 1), status(6, 12), status(7, 0)], [Status::Pass; 3]);
        assert_eq!(KernelVersion::check(None).status, Status::Unknown);
    }
}
