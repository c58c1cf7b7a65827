//! The kinds of memory for pools.

use std::fmt;

/// A kind of pages behind a pool's memory.
///
/// ```
/// use pinbuf::{pool::{Backing, Pages}, Pool};
///
/// let huge = Pages::HugeTlb { page_bytes: 2 << 20 };
/// let builder = Pool::builder().class(64 * 1024, 32).backing(Backing::Require(huge));
/// match builder.build() {
///     Ok(pool) => assert_eq!(pool.region().pages, huge),
///     Err(error) => println!("{error}"),
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Pages {
    /// Huge pages from the system's reserve (`MAP_HUGETLB`), of the given size in bytes. The
    /// reserve must be filled first, for example with `sysctl vm.nr_hugepages=512`. Linux only.
    HugeTlb {
        /// Size of a huge page in bytes: one of the sizes in `/sys/kernel/mm/hugepages`.
        page_bytes: usize,
    },
    /// Transparent huge pages: ordinary memory with the request for huge pages. No reserve is
    /// needed. Linux only.
    Thp,
    /// Base pages, 4 KiB on most machines.
    Base,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HugeTlb { page_bytes } => write!(f, "hugetlb pages of {page_bytes} bytes"),
            Self::Thp => f.write_str("transparent huge pages"),
            Self::Base => f.write_str("base pages"),
        }
    }
}

/// The choice of [`Pages`] for a pool.
///
/// Huge pages make a zero-copy send of 64 KiB and more a quarter to a half cheaper; below 16 KiB
/// they make no difference. [`Pool::region`](crate::Pool::region) tells the pages of a pool.
///
/// ```
/// use pinbuf::{pool::{Backing, Pages}, Pool};
///
/// let pool = Pool::builder().class(4096, 16).backing(Backing::Require(Pages::Base)).build()?;
/// assert_eq!(pool.region().pages, Pages::Base);
/// # Ok::<(), pinbuf::BuildError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Backing {
    /// The best available pages: hugetlb pages of the machine's usual huge page size, else
    /// transparent huge pages, else base pages. A pool smaller than half a huge page gets none.
    #[default]
    Auto,
    /// As `Auto`, but the ladder starts at this kind.
    Prefer(Pages),
    /// This kind, or [`BuildError::Unavailable`](crate::BuildError::Unavailable). The pool's memory
    /// is rounded up to whole pages of any size.
    Require(Pages),
}
