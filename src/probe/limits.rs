//! The limits for zero-copy sends, as they apply here.

use super::{check::Check, kernel::KernelVersion, text::size};
use crate::sys::{limits, memory};

/// `RLIMIT_MEMLOCK`: the limit of bytes in flight, over all processes of a user.
///
/// A zero-copy send is charged its length and two pages until its release. The senders of a process
/// share half of the remaining bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Memlock {
    /// The soft limit in bytes; `None` for none.
    pub soft_bytes: Option<u64>,
    /// The hard limit in bytes, up to which every process may raise the soft limit; `None` for
    /// none.
    pub hard_bytes: Option<u64>,
    /// `true` if the calling thread has `CAP_IPC_LOCK` in its user namespace. The capability lifts
    /// the limit in the initial user namespace only.
    pub capability: Option<bool>,
    /// The limit as the kernel applies it to the calling thread; `None` for none.
    pub applies_bytes: Option<u64>,
}

impl Memlock {
    pub(super) fn read() -> Self {
        let [soft_bytes, hard_bytes] = limits::memlock_limits();
        let (capability, applies_bytes) = (limits::may_lock(), limits::memlock_bytes());
        Self { soft_bytes, hard_bytes, capability, applies_bytes }
    }

    /// The number of sends of `bytes` within the limit, over all processes of the user; `None` for
    /// any number.
    ///
    /// ```
    /// # if cfg!(target_os = "linux") {
    /// let environment = pinbuf::probe::Environment::probe();
    /// if environment.memlock.sends(64 << 10).is_some_and(|sends| sends < 100) {
    ///     eprintln!("raise `ulimit -l`");
    /// }
    /// # }
    /// ```
    pub fn sends(&self, bytes: u64) -> Option<u64> {
        let page = memory::page_bytes() as u64;
        self.applies_bytes.map(|limit| (limit / page) / (bytes / page).saturating_add(2))
    }

    pub(super) fn check(&self) -> Check {
        const NAME: &str = "memlock limit";
        /// The smallest zero-copy send by default.
        const SMALLEST: u64 = 16 << 10;
        /// The bytes that a sender may have in flight by default; its share is half the limit.
        const WINDOW: u64 = 64 << 20;
        let Some(limit) = self.applies_bytes else {
            return match self.soft_bytes {
                None => Check::pass(NAME, "none"),
                Some(soft) => {
                    Check::pass(NAME, format!("{}, but CAP_IPC_LOCK lifts the limit", size(soft)))
                }
            };
        };
        let sends = self.sends(64 << 10).unwrap_or(u64::MAX);
        let unmoved = match self.capability {
            Some(true) => "; CAP_IPC_LOCK does not count in a user namespace",
            _ => "",
        };
        let found = format!(
            "{} for all processes of this user, {sends} sends of 64 KiB in flight{unmoved}",
            size(limit)
        );
        let advice = match self.hard_bytes {
            Some(hard) if hard < 2 * WINDOW => {
                "raise it (LimitMEMLOCK=infinity in the systemd \
                unit, `--ulimit memlock=-1` for a container, memlock in limits.conf)"
            }
            _ => "raise it with `ulimit -l`, as the hard limit allows",
        };
        let share = Self { applies_bytes: Some(limit / 2), ..*self };
        if share.sends(SMALLEST) == Some(0) {
            Check::fail(NAME, found, format!("{advice}: now everything goes by copy"))
        } else if limit < 2 * WINDOW {
            let window = size(WINDOW);
            Check::warn(
                NAME,
                found,
                format!("{advice}: a sender can use {window}, half of 128 MiB"),
            )
        } else {
            Check::pass(NAME, found)
        }
    }
}

/// The number of unread notifications with room in the option memory of a socket.
pub(super) fn notifications(optmem_max_bytes: u32) -> u32 {
    /// Bytes of one notification until it is read.
    const NOTIFICATION_BYTES: u32 = 832;
    optmem_max_bytes / NOTIFICATION_BYTES
}

pub(super) fn check_optmem(optmem_max_bytes: Option<u32>, kernel: Option<KernelVersion>) -> Check {
    const NAME: &str = "net.core.optmem_max";
    /// The default of kernels since 6.2.
    const USUAL: u32 = 128 << 10;
    let Some(bytes) = optmem_max_bytes else {
        return Check::unknown(NAME, "no /proc/sys/net/core/optmem_max", "mount /proc");
    };
    let notifications = notifications(bytes);
    let found = format!("{bytes} bytes, {notifications} unread notifications for each socket");
    let advice = "`sysctl net.core.optmem_max=131072` (each network namespace has its own)";
    let since = match kernel {
        Some(version) if version < (KernelVersion { major: 6, minor: 2, patch: 0 }) => {
            ", the default since Linux 6.2"
        }
        _ => "",
    };
    if notifications == 0 {
        Check::fail(NAME, found, format!("{advice}{since}: now no zero-copy send can be made"))
    } else if bytes < USUAL {
        Check::warn(NAME, found, format!("{advice}{since}: more sends can be in flight"))
    } else {
        Check::pass(NAME, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Status;

    const NONE: Memlock =
        Memlock { soft_bytes: None, hard_bytes: None, capability: None, applies_bytes: None };

    fn limited(bytes: u64) -> Memlock {
        Memlock { soft_bytes: Some(bytes), applies_bytes: Some(bytes), ..NONE }
    }

    #[test]
    fn each_send_is_charged_two_extra_pages() {
        if memory::page_bytes() == 4096 {
            assert_eq!(limited(8 << 20).sends(64 << 10), Some(113));
            assert_eq!(limited(8 << 20).sends(16 << 10), Some(341));
            assert_eq!(limited(1 << 20).sends(2 << 20), Some(0));
        }
        assert_eq!(limited(1 << 20).sends(u64::MAX), Some(0));
        assert_eq!(NONE.sends(1), None);
    }

    #[test]
    fn a_limit_below_two_windows_warns() {
        for (bytes, status) in [
            (0, Status::Fail),
            (32 << 10, Status::Fail),
            (8 << 20, Status::Warn),
            ((128 << 20) - 1, Status::Warn),
            (128 << 20, Status::Pass),
        ] {
            assert_eq!(limited(bytes).check().status, status, "{bytes}");
        }
        assert_eq!(NONE.check().status, Status::Pass);
        let lifted = Memlock { applies_bytes: None, ..limited(64 << 10) };
        assert_eq!(lifted.check().status, Status::Pass);
        assert!(lifted.check().found.contains("64 KiB, but CAP_IPC_LOCK"), "{}", lifted.check());
    }

    #[test]
    fn the_advice_fits_the_limit_and_the_namespace() {
        let advice = |limit: Memlock| limit.check().advice.unwrap();
        assert!(advice(limited(8 << 20)).contains("ulimit -l"));
        let hard = Memlock { hard_bytes: Some(8 << 20), ..limited(8 << 20) };
        assert!(advice(hard).contains("LimitMEMLOCK"));
        let namespace = Memlock { capability: Some(true), ..hard };
        assert!(namespace.check().found.contains("does not count in a user namespace"));
        assert!(!hard.check().found.contains("CAP_IPC_LOCK"));
    }

    #[test]
    fn a_notification_takes_832_bytes_of_option_memory() {
        let check = |bytes| check_optmem(bytes, None);
        assert_eq!(
            (notifications(131_072), notifications(20_480), notifications(831)),
            (157, 24, 0)
        );
        assert_eq!(check(Some(131_072)).status, Status::Pass);
        assert_eq!(check(Some(20_480)).status, Status::Warn);
        assert_eq!(check(Some(831)).status, Status::Fail);
        assert_eq!(check(None).status, Status::Unknown);
        assert!(check(Some(20_480)).found.contains("24 unread notifications"));
    }
}
