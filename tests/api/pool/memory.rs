//! The mapping: inheritance, flags, kinds of pages.

use std::collections::HashSet;

use pinbuf::{
    BuildError, Pool,
    pool::{Backing, Pages, Refusal},
};

use crate::common::{process::smaps, reserve::Reserve, skip, test_of};

/// The `VmFlags` of the mapping at `address`.
fn flags(address: *const u8) -> HashSet<String> {
    smaps("VmFlags:", address).split_whitespace().map(str::to_owned).collect()
}

fn address(pool: &Pool) -> *const u8 {
    pool.try_alloc(1).unwrap().as_ptr()
}

#[test]
fn no_child_inherits_a_buffer() {
    let _reserve = Reserve::lock();
    for backing in [Backing::Auto, Backing::Require(Pages::Base)] {
        let pool = Pool::builder().class(1 << 20, 4).backing(backing).build().unwrap();
        let flags = flags(address(&pool));
        assert!(flags.contains("dc"), "{flags:?}");
        assert!(!flags.contains("dd") && !flags.contains("lo"), "{flags:?}");
    }
}

#[test]
fn options_reach_the_mapping() {
    let pool = Pool::builder().class(4096, 4).dont_dump(true).mlock(true).build().unwrap();
    let flags = flags(address(&pool));
    assert!(flags.contains("dd") && flags.contains("lo"), "{flags:?}");
}

#[test]
fn the_report_tells_the_pages_and_the_refused_kinds() {
    let _reserve = Reserve::lock();
    let pool = Pool::builder().class(2 << 20, 4).build().unwrap();
    let region = pool.region();
    assert!(region.bytes >= 8 << 20);
    assert_eq!(region.bytes % region.page_bytes, 0);
    let rungs = match region.pages {
        Pages::HugeTlb { .. } => 0,
        Pages::Thp => 1,
        Pages::Base => 2,
        other => panic!("{other}"),
    };
    assert_eq!(region.refused.len(), rungs);
    assert!(region.refused.iter().all(|(_, refusal)| matches!(refusal, Refusal::Os(_))));
}

#[test]
fn a_small_pool_takes_no_huge_page_unless_required() {
    let pool = Pool::new(4096, 4).unwrap();
    let region = pool.region();
    assert_eq!((region.pages, region.bytes), (Pages::Base, 4 * 4096));
    let refusals: Vec<_> = region.refused.iter().map(|(_, refusal)| *refusal).collect();
    assert_eq!(refusals, [Refusal::TooSmall; 2]);
}

#[test]
fn required_transparent_huge_pages_are_aligned_or_refused() {
    let builder = Pool::builder().class(4096, 4).backing(Backing::Require(Pages::Thp));
    match builder.build() {
        Ok(pool) => {
            let region = pool.region();
            assert_eq!((region.pages, region.bytes), (Pages::Thp, region.page_bytes));
            assert_eq!(address(&pool).addr() % region.page_bytes, 0);
            assert!(flags(address(&pool)).contains("hg"));
        }
        Err(BuildError::Unavailable { pages: Pages::Thp, refusal }) => {
            skip(test_of(&|| ()), &refusal.to_string());
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn required_hugetlb_pages_are_taken_or_refused_and_given_back() {
    let _reserve = Reserve::lock();
    const PAGE: usize = Reserve::PAGE;
    let pages = Pages::HugeTlb { page_bytes: PAGE };
    let free = || {
        let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
    };
    let reserve: usize = free().unwrap_or(0);
    // One page more than the reserve has.
    let greedy = Pool::builder().class(PAGE, reserve + 1).backing(Backing::Require(pages));
    assert!(matches!(greedy.build(), Err(BuildError::Unavailable { refusal: Refusal::Os(_), .. })));
    if reserve == 0 {
        return skip(test_of(&|| ()), "no huge page is set aside");
    }
    // Not a multiple of the huge page.
    let pool = Pool::builder().class(4096, 3).backing(Backing::Require(pages)).build().unwrap();
    let region = pool.region();
    assert_eq!((region.pages, region.bytes), (pages, PAGE));
    assert!(flags(address(&pool)).contains("ht"));
    assert!(flags(address(&pool)).contains("dc"));
    assert_eq!(free(), Some(reserve - 1));
    let mut buf = pool.try_alloc(4096).unwrap();
    buf.resize(4096, 1);
    drop(pool);
    drop(buf);
    assert_eq!(free(), Some(reserve), "the page went back to the reserve");
}
