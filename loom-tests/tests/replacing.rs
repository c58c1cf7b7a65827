//! Page replacement: a slot is recycled while the kernel still reads its former pages.

use loom_tests::{Mutex, Turnstile, model, pool_of_pages, thread};
use pinbuf::{
    __internals::{Lease, Replaced, raw},
    PinnedBuf, Pool, SharedBuf,
};
use std::sync::Arc;

/// The tracker's entry for a send.
enum Entry {
    Quarantined(PinnedBuf),
    #[expect(dead_code, reason = "held and dropped like a lease")]
    Replaced(Replaced),
    Released,
}

fn quarantined(pool: &Pool) -> PinnedBuf {
    let mut buf = pool.try_alloc(1).unwrap();
    buf.extend_from_slice(b"x");
    buf.begin_lease();
    buf.kernel_reads();
    buf.quarantine();
    buf
}

fn assert_home(pool: &Pool) {
    let audit = pool.audit();
    assert!(audit.is_clean() && audit.stats.free() == 4, "{audit}");
    assert_eq!(raw(pool).replaced_bytes(), 0);
    pool.try_alloc(1).unwrap().extend_from_slice(b"y");
}

/// The late notification and the replacement come at once, while a thread allocates. The first of
/// the two recycles the slot, once. Only the notification lowers the count.
#[test]
fn a_late_notification_and_a_replacement_recycle_once() {
    model(|| {
        let pool = pool_of_pages(4);
        let entry = Arc::new(Mutex::new(Entry::Quarantined(quarantined(&pool))));
        let notification = {
            let entry = Arc::clone(&entry);
            thread::spawn(move || {
                let entry = std::mem::replace(&mut *entry.lock().unwrap(), Entry::Released);
                if let Entry::Quarantined(mut buf) = entry {
                    buf.quarantine_released();
                    assert_eq!(&buf[..], b"x", "handed back unchanged");
                }
            })
        };
        let mut guard = entry.lock().unwrap();
        let home = match &mut *guard {
            Entry::Quarantined(buf) => {
                let replaced = buf.replace_pages().unwrap();
                assert!(raw(&pool).replaced_bytes() > 0);
                match std::mem::replace(&mut *guard, Entry::Replaced(replaced)) {
                    Entry::Quarantined(buf) => Some(buf),
                    _ => None,
                }
            }
            _ => None,
        };
        drop(guard);
        if let Some(mut buf) = home {
            assert!(buf.is_empty(), "its contents are lost");
            buf.extend_from_slice(b"z");
        }
        notification.join().unwrap();
        assert_home(&pool);
    });
}

/// Two senders hold a frozen buffer Quarantined. The proof comes for the first sender, and hands
/// the buffer back to a reader, while the second sender tries to replace the pages.
#[test]
fn pages_are_not_replaced_under_another_lease_or_handle() {
    model(|| {
        let pool = pool_of_pages(4);
        let mut buf = pool.try_alloc(1).unwrap();
        buf.extend_from_slice(b"x");
        let mut one = buf.freeze();
        let mut two = one.clone();
        for lease in [&mut one, &mut two] {
            lease.begin_lease();
            lease.quarantine();
        }
        let turnstile = Turnstile::default();
        let theirs = turnstile.clone();
        let proven = thread::spawn(move || {
            one.quarantine_released();
            theirs.pass();
            assert_eq!(&one[..], b"x");
            drop(one);
            theirs.pass();
        });
        turnstile.pass();
        let mut replaced = two.replace_pages();
        if replaced.is_none() {
            proven.join().unwrap();
            replaced = two.replace_pages();
        } else {
            proven.join().unwrap();
        }
        drop::<SharedBuf>(two);
        assert_eq!(pool.stats().free(), 4);
        drop(replaced.expect("no other holder is left"));
        assert_home(&pool);
    });
}

/// Two slots of a pool with room for the former pages of one.
#[test]
fn at_most_a_quarter_is_replaced() {
    model(|| {
        let pool = pool_of_pages(4);
        let [mut one, mut two] = [(); 2].map(|()| quarantined(&pool));
        let other = thread::spawn(move || (two.replace_pages(), two));
        let replaced = one.replace_pages();
        let (also, mut two) = other.join().unwrap();
        assert!(replaced.is_some() != also.is_some());
        for (buf, replaced) in [(&mut one, replaced), (&mut two, also)] {
            if replaced.is_none() {
                buf.quarantine_released();
            }
        }
        drop((one, two));
        assert_home(&pool);
    });
}
