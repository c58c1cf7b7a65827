//! Refused and accepted settings.

use pinbuf::{
    BuildError, Pool,
    pool::{Backing, Pages, Refusal},
};

fn error(builder: pinbuf::pool::PoolBuilder) -> BuildError {
    builder.build().unwrap_err()
}

#[test]
fn a_pool_prints_its_classes() {
    let pool = Pool::builder().class(100, 3).class(5000, 7).build().unwrap();
    let printed = format!("{pool:?}");
    assert!(["(100, 3)", "(5000, 7)"].iter().all(|class| printed.contains(class)), "{printed}");
}

#[test]
fn errors_tell_the_fault_and_the_remedy() {
    let class = |capacity, count| Pool::builder().class(capacity, count);
    assert_eq!(error(Pool::builder()), BuildError::NoClass);
    let empty = BuildError::EmptyClass { capacity: 0, count: 5 };
    assert_eq!(error(class(0, 5)), empty);
    assert!(matches!(error(class(5, 0)), BuildError::EmptyClass { .. }));
    let twice = error(class(64, 1).class(100, 1).class(64, 2));
    assert_eq!(twice, BuildError::DuplicateClass { capacity: 64 });
    assert!(twice.to_string().contains("make them one"));
    assert!(matches!(error(class(1, 1 << 26)), BuildError::TooManySlots { .. }));
    for (capacity, count) in [
        (usize::MAX, 1),
        (usize::MAX / 2, 1),
        (usize::MAX / 1000, 1001),
        (usize::MAX >> 24, 1 << 25),
        (usize::MAX >> 24, (1 << 26) - 1),
    ] {
        let error = error(class(capacity, count));
        assert_eq!(error, BuildError::TooLarge { capacity, count });
        assert!(error.to_string().contains("use smaller or fewer slots"));
    }
    // Neither too small nor other than a power of two.
    for page_bytes in [3, 1024, 4096, 3 << 20] {
        let pages = Pages::HugeTlb { page_bytes };
        let error = error(class(64, 1).backing(Backing::Prefer(pages)));
        assert_eq!(error, BuildError::PageSize { page_bytes });
    }
}

#[cfg(target_pointer_width = "64")]
#[test]
fn too_much_memory_is_an_error() {
    let error = error(Pool::builder().class(1 << 45, 1).class(1 << 44, 1));
    let BuildError::OutOfMemory { bytes, refusal: Refusal::Os(_) } = error else {
        panic!("{error:?}");
    };
    assert_eq!(bytes, (1 << 45) + (1 << 44));
}
