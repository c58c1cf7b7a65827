//! A look at the environment: the kernel, the limits, the memory and the network that zero copy
//! depends on.
//!
//! - [`Environment::probe`] looks at this machine and tries what can be tried. The fields of the
//!   result are for programs that decide by them.
//! - [`Environment::checks`] lists the findings for people: each with the remedy, if there is one.
//! - [`Environment::route_to`] looks at the way to one peer.
//! - [`calibrate_threshold`] measures from which size on zero copy pays. Senders with a
//!   [`DataHint`](crate::sender::DataHint) follow the result.
//!
//! Programs work without this module: a [`Sender`](crate::Sender) finds out by itself what works, and
//! [`Sender::capabilities`](crate::Sender::capabilities) tells.
//!
//! ```
//! use pinbuf::probe::{Environment, Status};
//!
//! for check in Environment::probe().checks() {
//!     if check.status > Status::Pass {
//!         println!("{check}");
//!     }
//! }
//! ```

mod check;
mod interface;
mod isolation;
mod kernel;
mod limits;
mod pages;
mod route;
mod text;
mod trial;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

pub use check::{Check, Status};
pub use interface::{Interface, InterfaceKind, Tap};
pub use isolation::Isolation;
pub use kernel::KernelVersion;
pub use limits::Memlock;
pub use pages::{HugePages, NodeHugePages, PageAdvice, TransparentHugePages};
pub use route::{Route, RouteError};
pub use trial::Trial;

pub use crate::sender::calibrate::{Calibration, Crossover, SendCost, calibrate_threshold};
use crate::{error::OsError, sys};

/// The state of this machine, as the calling thread sees it.
///
/// A snapshot: other processes take huge pages, open packet taps and use up limits. Its `Display`
/// is for people, a line or two for each [`Check`].
///
/// ```
/// use pinbuf::probe::{Environment, Status};
///
/// let environment = Environment::probe();
/// println!("{environment}");
/// if !environment.tcp_ipv4.works() {
///     println!("sends over IPv4 go by copy");
/// }
/// let worst = environment.checks().iter().map(|check| check.status).max();
/// assert!(worst.is_some());
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Environment {
    /// Version of the kernel; `None` off Linux and without `/proc`.
    pub kernel: Option<KernelVersion>,
    /// A zero-copy send over TCP and IPv4.
    pub tcp_ipv4: Trial,
    /// A zero-copy send over TCP and IPv6.
    pub tcp_ipv6: Trial,
    /// Bytes of option memory per socket (`net.core.optmem_max`); an unread notification takes 832.
    pub optmem_max_bytes: Option<u32>,
    /// The memlock limit for zero-copy sends.
    pub memlock: Memlock,
    /// Reserves of huge pages, by size.
    pub huge_pages: Vec<HugePages>,
    /// The outcome of an attempt to get one reserved huge page of the usual size.
    pub huge_page_usable: Result<(), OsError>,
    /// Transparent huge pages.
    pub transparent_huge_pages: TransparentHugePages,
    /// The advice that the kernel takes for a range of memory.
    pub page_advice: PageAdvice,
    /// Namespaces and containers.
    pub isolation: Isolation,
    /// The interfaces of the network namespace.
    pub interfaces: Result<Vec<Interface>, OsError>,
    /// Packet taps in the network namespace; `None` if they cannot be listed.
    pub taps: Option<Vec<Tap>>,
    /// The initial congestion control of TCP connections.
    pub congestion_control: Option<String>,
}

impl Environment {
    /// Looks at everything. Needs no privilege. Facts out of reach are unknown.
    ///
    /// Off Linux all checks but the first are unknown.
    ///
    /// # Performance
    ///
    /// Some milliseconds; two seconds at most, if loopback blocks packets. Makes two connections
    /// over loopback to itself, and takes two huge pages for a moment. Leaves no socket, memory or
    /// thread behind.
    ///
    /// ```
    /// let environment = pinbuf::probe::Environment::probe();
    /// # if cfg!(target_os = "linux") {
    /// assert!(environment.kernel.is_some());
    /// # }
    /// ```
    #[must_use]
    pub fn probe() -> Self {
        let kernel =
            text::read("/proc/sys/kernel/osrelease").and_then(|text| KernelVersion::parse(&text));
        Self {
            kernel,
            tcp_ipv4: Trial::run(Ipv4Addr::LOCALHOST.into()),
            tcp_ipv6: Trial::run(Ipv6Addr::LOCALHOST.into()),
            optmem_max_bytes: sys::limits::optmem_max().ok(),
            memlock: Memlock::read(),
            huge_pages: HugePages::read(
                Path::new("/sys/kernel/mm/hugepages"),
                Path::new("/sys/devices/system/node"),
            ),
            huge_page_usable: pages::try_huge_page(),
            transparent_huge_pages: TransparentHugePages::read(),
            page_advice: PageAdvice::read(),
            isolation: Isolation::read(kernel),
            interfaces: Interface::all(),
            taps: Tap::all(),
            congestion_control: text::read("/proc/sys/net/ipv4/tcp_congestion_control"),
        }
    }

    /// Finds the route to a peer, anew each time. The port does not matter.
    ///
    /// # Errors
    ///
    /// [`RouteError::NotOnePeer`] for a broadcast or multicast address, [`RouteError::NoRoute`] for an unreachable peer, [`RouteError::Unknown`] off Linux.
    ///
    /// ```
    /// # if cfg!(target_os = "linux") {
    /// use pinbuf::probe::{Environment, InterfaceKind};
    ///
    /// let route = Environment::route_to("127.0.0.1:4444".parse()?)?;
    /// assert_eq!(route.interface.kind, InterfaceKind::Loopback);
    /// println!("{}", route.check());
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn route_to(peer: SocketAddr) -> Result<Route, RouteError> {
        Route::find(peer)
    }

    /// One check for each condition of zero copy: always the same checks in the same order.
    ///
    /// ```
    /// let checks = pinbuf::probe::Environment::probe().checks();
    /// assert_eq!(checks[0].name, "kernel");
    /// ```
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        let mut checks = vec![
            KernelVersion::check(self.kernel),
            self.tcp_ipv4.check("zero copy over IPv4"),
            self.tcp_ipv6.check("zero copy over IPv6"),
            limits::check_optmem(self.optmem_max_bytes, self.kernel),
            self.memlock.check(),
            HugePages::check(&self.huge_pages, self.huge_page_usable),
            self.transparent_huge_pages.check(),
            self.page_advice.check(),
            self.isolation.check(),
            Interface::check(&self.interfaces),
            Tap::check(self.taps.as_deref()),
            check_congestion_control(self.congestion_control.as_deref()),
        ];
        if !cfg!(target_os = "linux") {
            for check in &mut checks[1..] {
                *check = Check::unknown(check.name, "not looked at", "use Linux");
            }
        }
        checks
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, check) in self.checks().iter().enumerate() {
            write!(f, "{}{check}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

fn check_congestion_control(name: Option<&str>) -> Check {
    const NAME: &str = "congestion control";
    match name {
        None => Check::unknown(NAME, "unknown", "mount /proc"),
        Some(name @ ("bbr" | "bbr2" | "bbr3")) => {
            Check::pass(NAME, format!("{name}, which paces: buffers wait in the socket longer"))
        }
        Some(name) => Check::pass(NAME, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_but_a_pass_has_advice() {
        let environment = Environment::probe();
        let checks = environment.checks();
        for check in &checks {
            assert_eq!(check.advice.is_none(), check.status == Status::Pass, "{check}");
            assert!(!check.found.is_empty() && !check.found.contains('\n'), "{check}");
        }
        let mut names: Vec<_> = checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), checks.len());
        let text = environment.to_string();
        assert!(checks.iter().all(|check| text.contains(&check.to_string())), "{text}");
        assert_eq!(text.lines().filter(|line| !line.starts_with(' ')).count(), checks.len());
    }

    #[test]
    fn statuses_get_worse_in_order() {
        let order = [Status::Pass, Status::Unknown, Status::Warn, Status::Fail];
        assert!(order.is_sorted());
    }

    #[test]
    fn the_check_names_bbr() {
        assert!(check_congestion_control(Some("bbr")).found.contains("paces"));
        assert_eq!(check_congestion_control(Some("cubic")).found, "cubic");
        assert_eq!(check_congestion_control(None).status, Status::Unknown);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_probe_finds_this_machine() {
        let environment = Environment::probe();
        let since =
            |major, minor| environment.kernel.unwrap() >= KernelVersion { major, minor, patch: 0 };
        let PageAdvice { wipe_on_fork, populate_write, .. } = environment.page_advice;
        assert!(wipe_on_fork >= since(4, 14) && populate_write >= since(5, 14));
        assert!(environment.optmem_max_bytes.is_some());
        let interfaces = environment.interfaces.unwrap();
        assert!(interfaces.iter().any(|interface| interface.kind == InterfaceKind::Loopback));
        assert!(environment.taps.is_some() && environment.congestion_control.is_some());
    }
}
