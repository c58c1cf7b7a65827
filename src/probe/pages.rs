//! Huge pages, reserved and transparent, and the kernel's advice for ranges of memory.

use std::path::Path;

use super::{
    check::Check,
    text::{chosen, names, read, read_number, size},
};
use crate::{
    error::OsError,
    sys::memory::{self, Advice, Mapping, Supply},
};

/// The reserve of huge pages of one size (`/sys/kernel/mm/hugepages`).
///
/// The source of pools with [`Pages::HugeTlb`](crate::pool::Pages::HugeTlb).
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HugePages {
    /// Size of one page in bytes.
    pub page_bytes: u64,
    /// All pages, used or not.
    pub total: u64,
    /// Unused pages; some may be [reserved](Self::reserved).
    pub free: u64,
    /// Free pages promised to a mapping.
    pub reserved: u64,
    /// Pages beyond the configured number, returned after use.
    pub surplus: u64,
    /// The limit of surplus pages (`nr_overcommit_hugepages`).
    pub overcommit: u64,
    /// The same for each NUMA node.
    pub nodes: Vec<NodeHugePages>,
}

/// Huge pages of one size on one NUMA node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NodeHugePages {
    /// Number of the node.
    pub node: u32,
    /// All pages, used or not.
    pub total: u64,
    /// Unused pages.
    pub free: u64,
    /// Pages beyond the configured number.
    pub surplus: u64,
}

impl HugePages {
    /// Pages available without growing the reserve: free and not reserved.
    ///
    /// ```
    /// let environment = pinbuf::probe::Environment::probe();
    /// for pages in &environment.huge_pages {
    ///     assert!(pages.available() <= pages.total);
    /// }
    /// ```
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }

    /// Reads the reserves below `sizes`, and the nodes' reserves below `nodes`.
    pub(super) fn read(sizes: &Path, nodes: &Path) -> Vec<Self> {
        let pools = names(sizes).into_iter().filter_map(|name| {
            let page_bytes = page_bytes(&name)?;
            let count = |file| read_number(sizes.join(&name).join(file)).unwrap_or(0);
            Some(Self {
                page_bytes,
                total: count("nr_hugepages"),
                free: count("free_hugepages"),
                reserved: count("resv_hugepages"),
                surplus: count("surplus_hugepages"),
                overcommit: count("nr_overcommit_hugepages"),
                nodes: NodeHugePages::read(nodes, &name),
            })
        });
        let mut pools: Vec<_> = pools.collect();
        pools.sort_by_key(|pool| pool.page_bytes);
        pools
    }

    /// `usable` is the outcome of an attempt to use one page of the usual size.
    pub(super) fn check(pools: &[Self], usable: Result<(), OsError>) -> Check {
        const NAME: &str = "huge pages";
        let usual = memory::huge_page_bytes() as u64;
        let found: Vec<_> = pools.iter().map(Self::describe).collect();
        let found = match found.is_empty() {
            true => "none known".to_owned(),
            false => found.join("; "),
        };
        let pool = pools.iter().find(|pool| pool.page_bytes == usual);
        match (pool, usable) {
            (_, Ok(())) => Check::pass(NAME, found),
            (Some(pool), Err(error)) if pool.available() > 0 => Check::warn(
                NAME,
                format!("{found}; but one of {} was refused: {error}", size(usual)),
                "see whether a cgroup (hugetlb.*.max) or a memory policy keeps them away",
            ),
            (Some(_), Err(_)) => Check::warn(
                NAME,
                found,
                format!(
                    "`sysctl vm.nr_hugepages=N` sets N pages of {} aside: pools then get them \
                     for certain; otherwise they use transparent huge pages",
                    size(usual)
                ),
            ),
            (None, Err(error)) => Check::unknown(
                NAME,
                format!("{found}; one of {} was refused: {error}", size(usual)),
                "mount /sys, or use a kernel with CONFIG_HUGETLBFS",
            ),
        }
    }

    fn describe(&self) -> String {
        let Self { page_bytes, total, free, reserved, surplus, overcommit, nodes } = self;
        let mut text = format!("{} pages of {}", total, size(*page_bytes));
        if *total > 0 {
            text += &format!(" ({free} free, {reserved} reserved, {surplus} surplus)");
        }
        if *overcommit > 0 {
            text += &format!(", {overcommit} more on demand");
        }
        if *total > 0 && nodes.len() > 1 {
            for NodeHugePages { node, total, free, .. } in nodes {
                text += &format!(", node {node}: {free} of {total} free");
            }
        }
        text
    }
}

impl NodeHugePages {
    fn read(nodes: &Path, size: &str) -> Vec<Self> {
        let found = names(nodes).into_iter().filter_map(|name| {
            let node = name.strip_prefix("node")?.parse().ok()?;
            let count =
                |file| read_number(nodes.join(&name).join("hugepages").join(size).join(file));
            let (total, free) = (count("nr_hugepages")?, count("free_hugepages")?);
            Some(Self { node, total, free, surplus: count("surplus_hugepages").unwrap_or(0) })
        });
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|node| node.node);
        found
    }
}

/// The size in the name of a directory such as `hugepages-2048kB`.
fn page_bytes(name: &str) -> Option<u64> {
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    kib.checked_mul(1024).filter(|bytes| bytes.is_power_of_two())
}

/// Tries to get one reserved huge page of the usual size, and returns the page at once.
pub(super) fn try_huge_page() -> Result<(), OsError> {
    let bytes = memory::huge_page_bytes();
    Mapping::huge_tlb(bytes, bytes, None).map(drop).map_err(|error| OsError::from(&error))
}

/// Transparent huge pages: the choice of pools without a reserve.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TransparentHugePages {
    /// The mode (`always`, `madvise`, `never`), as the kernel writes it.
    pub mode: Option<String>,
    /// The circumstances in which the kernel moves memory to make a huge page (`always`, `defer`,
    /// `defer+madvise`, `madvise`, `never`).
    pub defrag: Option<String>,
    /// Size of a page in bytes.
    pub page_bytes: usize,
    /// The outcome of an attempt to get a page. The attempt counts, not the mode: a process can be
    /// barred from huge pages, and can get one in the mode `never`.
    pub usable: Result<(), OsError>,
}

impl TransparentHugePages {
    pub(super) fn read() -> Self {
        let setting = |name| {
            let text = read(Path::new("/sys/kernel/mm/transparent_hugepage").join(name))?;
            chosen(&text).map(str::to_owned)
        };
        let page_bytes = memory::huge_page_bytes();
        let usable = Mapping::thp(page_bytes, page_bytes, Supply::default()).map(drop);
        Self {
            mode: setting("enabled"),
            defrag: setting("defrag"),
            page_bytes,
            usable: usable.map_err(|error| OsError::from(&error)),
        }
    }

    pub(super) fn check(&self) -> Check {
        const NAME: &str = "transparent huge pages";
        const UNKNOWN: &str = "unknown";
        let mode = self.mode.as_deref().unwrap_or(UNKNOWN);
        let defrag = self.defrag.as_deref().unwrap_or(UNKNOWN);
        let page = size(self.page_bytes as u64);
        let found = format!("mode {mode}, defrag {defrag}");
        match self.usable {
            Ok(()) => Check::pass(NAME, format!("{found}, a page of {page} was granted")),
            Err(error) => Check::warn(
                NAME,
                format!("{found}, a page of {page} was refused: {error}"),
                match mode {
                    "always" | "madvise" => {
                        "free memory or make it contiguous: `sysctl vm.compact_memory=1`"
                    }
                    UNKNOWN => "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE, or reserved pages",
                    _ => "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`",
                },
            ),
        }
    }
}

/// The advice that the kernel takes for a range of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PageAdvice {
    /// `MADV_POPULATE_WRITE` (Linux 5.14): a lack of huge pages is an error instead of a signal.
    /// Pools need this advice for reserved huge pages.
    pub populate_write: bool,
    /// `MADV_COLLAPSE` (Linux 6.1): a transparent huge page comes at once and for certain, or not
    /// at all. Without this advice and without reserved pages, pools take base pages.
    pub collapse: bool,
    /// `MADV_WIPEONFORK` (Linux 4.14): a forked child can detect the fork.
    pub wipe_on_fork: bool,
}

impl PageAdvice {
    pub(super) fn read() -> Self {
        Self {
            populate_write: memory::knows(Advice::PopulateWrite),
            collapse: memory::knows(Advice::Collapse),
            wipe_on_fork: memory::knows(Advice::WipeOnFork),
        }
    }

    pub(super) fn check(self) -> Check {
        const NAME: &str = "page advice";
        let (mut known, mut missing) = (Vec::new(), Vec::new());
        for (name, is_known) in [
            ("MADV_POPULATE_WRITE", self.populate_write),
            ("MADV_COLLAPSE", self.collapse),
            ("MADV_WIPEONFORK", self.wipe_on_fork),
        ] {
            if is_known { known.push(name) } else { missing.push(name) }
        }
        match missing.is_empty() {
            true => Check::pass(NAME, known.join(", ")),
            false => Check::warn(
                NAME,
                format!("without {}", missing.join(", ")),
                "use Linux 6.1 or newer with CONFIG_TRANSPARENT_HUGEPAGE: huge pages for pools",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::probe::Status;

    const USED_UP: Result<(), OsError> = Err(OsError::from_raw(12));

    fn pages(page_bytes: u64, total: u64, free: u64, reserved: u64) -> HugePages {
        let nodes = Vec::new();
        HugePages { page_bytes, total, free, reserved, surplus: 0, overcommit: 0, nodes }
    }

    /// Files below a private directory, removed at the end.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("pinbuf-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn reserves_are_read_for_each_size_and_node() {
        let tree = Tree::new(
            "reserves",
            &[
                ("sizes/hugepages-1048576kB/nr_hugepages", "0\n"),
                ("sizes/hugepages-2048kB/nr_hugepages", "20\n"),
                ("sizes/hugepages-2048kB/free_hugepages", "15\n"),
                ("sizes/hugepages-2048kB/resv_hugepages", "4\n"),
                ("sizes/hugepages-2048kB/surplus_hugepages", "2\n"),
                ("sizes/hugepages-2048kB/nr_overcommit_hugepages", "7\n"),
                ("sizes/hugepages-many/nr_hugepages", "9\n"),
                ("sizes/README", "x"),
                ("nodes/node10/hugepages/hugepages-2048kB/nr_hugepages", "12\n"),
                ("nodes/node10/hugepages/hugepages-2048kB/free_hugepages", "11\n"),
                ("nodes/node2/hugepages/hugepages-2048kB/nr_hugepages", "8\n"),
                ("nodes/node2/hugepages/hugepages-2048kB/free_hugepages", "4\n"),
                ("nodes/node2/hugepages/hugepages-2048kB/surplus_hugepages", "2\n"),
                ("nodes/node3/hugepages/hugepages-2048kB/nr_hugepages", "garbage"),
                ("nodes/possible", "0-10"),
            ],
        );
        let found = HugePages::read(&tree.0.join("sizes"), &tree.0.join("nodes"));
        let node = |node, total, free, surplus| NodeHugePages { node, total, free, surplus };
        let expected = HugePages {
            surplus: 2,
            overcommit: 7,
            nodes: vec![node(2, 8, 4, 2), node(10, 12, 11, 0)],
            ..pages(2 << 20, 20, 15, 4)
        };
        assert_eq!(found, [expected, pages(1 << 30, 0, 0, 0)]);
        assert_eq!(found[0].available(), 11);
        assert_eq!(
            found[0].describe(),
            "20 pages of 2 MiB (15 free, 4 reserved, 2 surplus), 7 more on demand, \
             node 2: 4 of 8 free, node 10: 11 of 12 free"
        );
        assert_eq!(HugePages::read(Path::new("/nowhere"), Path::new("/nowhere")), []);
    }

    #[test]
    fn names_of_sizes_are_checked() {
        assert_eq!(page_bytes("hugepages-64kB"), Some(64 << 10));
        for garbage in
            ["", "hugepages-", "hugepages-kB", "hugepages-3kB", "hugepages-1MB", "2048kB"]
        {
            assert_eq!(page_bytes(garbage), None, "{garbage}");
        }
        assert_eq!(page_bytes("hugepages-18014398509481985kB"), None);
    }

    #[test]
    fn reasons_of_a_refused_page_are_told_apart() {
        let usual = memory::huge_page_bytes() as u64;
        let check = |pools: &[HugePages], usable| HugePages::check(pools, usable);
        assert_eq!(check(&[pages(usual, 5, 5, 0)], Ok(())).status, Status::Pass);
        let none = check(&[pages(usual, 5, 5, 5)], USED_UP);
        assert!(none.status == Status::Warn && none.advice.unwrap().contains("vm.nr_hugepages"));
        let kept_away = check(&[pages(usual, 5, 5, 4)], USED_UP);
        assert!(kept_away.status == Status::Warn && kept_away.advice.unwrap().contains("cgroup"));
        assert_eq!(check(&[], USED_UP).status, Status::Unknown);
    }

    #[test]
    fn the_attempt_counts_more_than_the_mode() {
        let thp = |mode: &str, usable| TransparentHugePages {
            mode: Some(mode.to_owned()),
            defrag: None,
            page_bytes: 2 << 20,
            usable,
        };
        assert_eq!(thp("never", Ok(())).check().status, Status::Pass);
        let advice = |mode| thp(mode, USED_UP).check().advice.unwrap();
        assert!(advice("never").contains("echo madvise"));
        assert!(advice("madvise").contains("compact_memory"));
        assert_eq!(thp("always", USED_UP).check().status, Status::Warn);
    }

    #[test]
    fn missing_advice_warns() {
        let all = PageAdvice { populate_write: true, collapse: true, wipe_on_fork: true };
        assert_eq!(all.check().status, Status::Pass);
        for missing in [
            PageAdvice { populate_write: false, ..all },
            PageAdvice { collapse: false, ..all },
            PageAdvice { wipe_on_fork: false, ..all },
        ] {
            assert_eq!(missing.check().status, Status::Warn, "{missing:?}");
        }
    }
}
