//! The Linux-only functions for every other Unix: no zero copy, nothing ever in flight, no error
//! queue.

use std::{io, net::IpAddr, os::fd::BorrowedFd};

fn unsupported<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// There is no zero copy here.
pub(crate) fn enable_zerocopy(_fd: BorrowedFd<'_>) -> io::Result<()> {
    unsupported()
}

/// No socket holds option memory for zero-copy sends here.
pub(crate) fn optmem(_fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(0)
}

/// Bytes the socket accepted and the peer has not acknowledged yet.
#[cfg(target_vendor = "apple")]
pub(crate) fn unsent(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let bytes = super::option::option(fd, libc::SO_NWRITE)?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Bytes the socket accepted and the peer has not acknowledged yet.
#[cfg(any(target_os = "freebsd", target_os = "netbsd"))]
pub(crate) fn unsent(fd: BorrowedFd<'_>) -> io::Result<usize> {
    use std::os::fd::AsRawFd;

    let mut bytes: libc::c_int = 0;
    // SAFETY: tcp(4): FIONWRITE writes one int through the pointer; `bytes` is an int that lives
    // through the call. The fd is open while borrowed.
    super::option::check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONWRITE, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Unknown on this system.
#[cfg(not(any(target_vendor = "apple", target_os = "freebsd", target_os = "netbsd")))]
pub(crate) fn unsent(_fd: BorrowedFd<'_>) -> io::Result<usize> {
    unsupported()
}

/// Refuses: the only portable way to break a connection is a close after
/// [`reset_on_close`](super::socket::reset_on_close). A close is enough here, as no id waits for
/// its release.
pub(crate) fn abort(_fd: BorrowedFd<'_>) -> io::Result<()> {
    unsupported()
}

/// Control data of a message: none here.
#[derive(Clone, Copy, Default)]
pub(crate) struct Control;

impl Control {
    /// Nothing.
    pub(super) fn bytes(&self) -> &[u8] {
        &[]
    }

    /// Refuses.
    pub(super) fn source(&mut self, _source: IpAddr, _interface: u32) -> io::Result<()> {
        unsupported()
    }

    /// Refuses.
    pub(super) fn segment(&mut self, _bytes: u16) -> io::Result<()> {
        unsupported()
    }

    /// Refuses.
    pub(super) fn time(&mut self, _time_ns: u64) -> io::Result<()> {
        unsupported()
    }
}

/// The error queue of a socket: none here.
pub(crate) mod errqueue {
    use std::{io, os::fd::BorrowedFd};

    use crate::sys::{Batch, Record};

    /// Room for one read of an error queue: none is needed here.
    #[derive(Debug)]
    pub(crate) struct Scratch;

    /// Lends a scratch to `body`.
    pub(crate) fn with_scratch<R>(body: impl FnOnce(&mut Scratch) -> R) -> R {
        body(&mut Scratch)
    }

    /// Finds nothing.
    pub(crate) fn recv(
        _fd: BorrowedFd<'_>,
        _scratch: &mut Scratch,
        _on_record: &mut dyn FnMut(Record),
    ) -> io::Result<Batch> {
        Ok(Batch { messages: 0, truncated: false, drained: true })
    }

    /// Knows no form of message.
    pub(crate) fn decode(_control: &[u8], _on_record: &mut dyn FnMut(Record)) {}
}

/// Waiting by edges: not here.
pub(crate) mod epoll {
    use std::{
        convert::Infallible,
        io,
        os::fd::{AsFd, BorrowedFd},
        time::Duration,
    };

    use crate::sys::socket::{News, Ready};

    /// Waits on one socket by edges. No value exists.
    #[derive(Debug)]
    pub(crate) struct EdgeWait(Infallible);

    impl EdgeWait {
        /// Refuses.
        pub(crate) fn new(_fd: BorrowedFd<'_>, _writable: bool) -> io::Result<Self> {
            super::unsupported()
        }

        /// Never called.
        pub(crate) fn wait(&self, _timeout: Option<Duration>) -> io::Result<Ready> {
            match self.0 {}
        }

        /// Never called.
        pub(crate) fn wake(&self) -> io::Result<()> {
            match self.0 {}
        }
    }

    /// A descriptor for event loops. No value exists.
    #[derive(Debug)]
    pub(crate) struct EventFd(Infallible);

    impl EventFd {
        /// Refuses.
        pub(crate) fn new(_fd: BorrowedFd<'_>) -> io::Result<Self> {
            super::unsupported()
        }

        /// Never called.
        pub(crate) fn take(&self) -> io::Result<News> {
            match self.0 {}
        }

        /// Never called.
        pub(crate) fn renew(&self, _fd: BorrowedFd<'_>, _data: bool) -> io::Result<()> {
            match self.0 {}
        }
    }

    impl AsFd for EventFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            match self.0 {}
        }
    }

    /// Waits on many sockets by edges. No value exists.
    #[derive(Debug)]
    pub(crate) struct Watcher(Infallible);

    impl Watcher {
        /// Refuses.
        pub(crate) fn new() -> io::Result<Self> {
            super::unsupported()
        }

        /// Never called.
        pub(crate) fn wake(&self) -> io::Result<()> {
            match self.0 {}
        }

        /// Never called.
        pub(crate) fn add(&self, _fd: BorrowedFd<'_>, _token: u64) -> io::Result<()> {
            match self.0 {}
        }

        /// Never called.
        pub(crate) fn remove(&self, _fd: BorrowedFd<'_>) -> io::Result<()> {
            match self.0 {}
        }

        /// Never called.
        pub(crate) fn wait(
            &self,
            _tokens: &mut Vec<u64>,
            _timeout: Option<Duration>,
        ) -> io::Result<()> {
            match self.0 {}
        }
    }
}

/// The limits that zero-copy sends are charged to: none here.
pub(crate) mod limits {
    use std::io;

    /// There is no such limit here.
    pub(crate) fn optmem_max() -> io::Result<u32> {
        super::unsupported()
    }

    /// There is no such limit here.
    pub(crate) fn memlock_bytes() -> Option<u64> {
        None
    }

    /// Nothing is charged to it here.
    pub(crate) fn memlock_limits() -> [Option<u64>; 2] {
        [None; 2]
    }

    /// There is no such capability here.
    pub(crate) fn may_lock() -> Option<bool> {
        None
    }

    /// There are no namespaces here.
    pub(crate) fn in_initial_namespace(_kind: &str) -> Option<bool> {
        None
    }
}

/// Interfaces and routes: never asked for here, where no route avoids the copy.
pub(crate) mod netlink {
    use std::{io, net::IpAddr};

    use crate::sys::{Link, Queue, RouteReply};

    /// Refuses.
    pub(crate) fn links() -> io::Result<Vec<Link>> {
        super::unsupported()
    }

    /// Refuses.
    pub(crate) fn route(_peer: IpAddr, _scope: u32) -> io::Result<RouteReply> {
        super::unsupported()
    }

    /// Refuses.
    pub(crate) fn queues() -> io::Result<Vec<Queue>> {
        super::unsupported()
    }

    /// Refuses.
    pub(crate) fn scatter_gather(_interface: &str) -> io::Result<bool> {
        super::unsupported()
    }
}

/// Pacing: not here.
pub(crate) mod pacing {
    use std::{io, os::fd::BorrowedFd, time::Instant};

    /// Refuses.
    pub(crate) fn allow_transmit_times(_fd: BorrowedFd<'_>) -> io::Result<()> {
        super::unsupported()
    }

    /// Refuses.
    pub(crate) fn transmit_time(_fd: BorrowedFd<'_>, _time: Instant) -> io::Result<Option<u64>> {
        super::unsupported()
    }

    /// Refuses.
    pub(crate) fn set_max_rate(_fd: BorrowedFd<'_>, _rate: Option<u64>) -> io::Result<()> {
        super::unsupported()
    }

    /// Refuses.
    pub(crate) fn max_rate(_fd: BorrowedFd<'_>) -> io::Result<u64> {
        super::unsupported()
    }

    /// Refuses.
    pub(crate) fn leaves_pacing_to_the_queue(_fd: BorrowedFd<'_>) -> io::Result<bool> {
        super::unsupported()
    }
}
