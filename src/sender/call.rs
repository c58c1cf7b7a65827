//! One system call: what must hold before it is made, and what became of it.

use std::{io, mem};

use super::{
    core::Core,
    in_flight::InFlight,
    kernel::Kernel,
    window::{Admission, Passes, Window},
};
use crate::{
    error::{CopyReason, OsError, SendError},
    id::NotificationId,
    lock::MutexGuard,
    raw::PoolHead,
    sys::{
        errno,
        socket::{IoVec, SendFlags},
    },
    tracker::LeaseKey,
};

/// Option memory the kernel takes for one note until it is read, in bytes: on 6.1 and 6.18. On
/// Debian's 6.12 it is 896; nothing but estimates and a statistic rests on the number.
const OPTMEM_PER_NOTE: u32 = 832;

/// Zero-copy calls after which the error queue is read at the latest.
const MAX_UNREAD_CALLS: usize = 32;

/// One system call to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    /// The leases of its elements.
    pub(super) keys: &'a [LeaseKey],
    /// As many.
    pub(super) memory: &'a [IoVec],
    pub(super) bytes: usize,
    pub(super) zero_copy: bool,
    /// More of the same send follows, so that a small header need not travel alone.
    pub(super) more: bool,
}

impl<'a> Call<'a> {
    /// The leases of the elements of which the first `bytes` cover a part.
    #[inline]
    pub(super) fn covered(&self, bytes: usize) -> &'a [LeaseKey] {
        let mut start = 0;
        let reached = |memory: &&IoVec| {
            let reached = start < bytes;
            start += memory.len();
            reached
        };
        &self.keys[..self.memory.iter().take_while(reached).count()]
    }
}

/// What the calls so far say about the next one.
pub(super) struct Calls {
    pub(super) window: Window,
    /// Calls of lone buffers that go by copy and need not ask for that.
    pub(super) copies: Passes,
    /// The first error of a connection that is over.
    pub(super) failed: Option<OsError>,
    /// The connection was seen to be over, and no call has told why.
    pub(super) is_over: bool,
    /// Why the last attempt stopped.
    pub(super) stuck: Option<Stuck>,
    /// Whether the kernel has been seen to honour the flag.
    verified: bool,
    /// Zero-copy calls since the error queue was last read, and after how many it is.
    pub(super) unread: usize,
    max_unread: usize,
}

impl Calls {
    pub(super) fn new(window: Window, optmem_max: u32) -> Self {
        let max_unread = ((optmem_max / OPTMEM_PER_NOTE / 2) as usize).clamp(1, MAX_UNREAD_CALLS);
        Self {
            window,
            copies: Passes::default(),
            failed: None,
            is_over: false,
            stuck: None,
            verified: false,
            unread: 0,
            max_unread,
        }
    }

    /// Why the connection is over, if it is.
    pub(super) fn connection_error(&self) -> Option<OsError> {
        self.failed.or_else(|| self.is_over.then(|| OsError::from_raw(errno::ENOTCONN)))
    }

    /// A zero-copy call went well. Whether it is to be verified that the kernel honours the flag.
    pub(super) fn went_well(&mut self) -> bool {
        self.window.went_well();
        !mem::replace(&mut self.verified, true)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stuck {
    Socket,
    Window,
}

/// Why a flush ended with the outbox not empty.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    Stuck,
    /// The connection is over.
    Failed(OsError),
    /// The front of the outbox was refused; the connection is as it was.
    Refused(OsError),
    /// A datagram was accepted, and dropped below the socket.
    Dropped(OsError),
}

impl Stop {
    /// As the error of a send of which nothing was accepted.
    pub(super) fn into_send_error(self) -> SendError<()> {
        match self {
            Self::Stuck => SendError::WouldBlock(()),
            Self::Failed(error) => SendError::Connection { error, buf: () },
            Self::Refused(error) if error.raw() == errno::EFAULT => SendError::BadAddress(()),
            Self::Refused(error) => SendError::Os { error, buf: () },
            Self::Dropped(error) => SendError::Dropped { error, buf: () },
        }
    }
}

impl<K: Kernel> Core<K> {
    /// Makes a call; returns how many bytes the kernel accepted of it.
    #[inline(always)]
    pub(super) fn call(
        &self,
        calls: &mut Calls,
        in_flight: &mut MutexGuard<'_, InFlight>,
        call: Call<'_>,
    ) -> Result<usize, Stop> {
        match call.zero_copy {
            true => self.call_without_copy(calls, in_flight, call, false),
            false => self.call_by_copy(calls, in_flight, call),
        }
    }

    fn call_by_copy(
        &self,
        calls: &mut Calls,
        in_flight: &mut MutexGuard<'_, InFlight>,
        call: Call<'_>,
    ) -> Result<usize, Stop> {
        calls.stuck = None;
        if call.bytes == 0 && !self.kernel.transport().sends_nothing() {
            return Ok(0);
        }
        let flags = SendFlags { zerocopy: false, more: call.more };
        let accepted = in_flight
            .unlocked(|| self.kernel.send(call.memory, flags))
            .map_err(|error| self.stopped(calls, in_flight, &error))?;
        in_flight.copied(accepted);
        for key in call.covered(accepted) {
            in_flight.tracker.get_mut(*key).copied = true;
        }
        Ok(accepted)
    }

    /// `retried`: not for the first time.
    fn call_without_copy(
        &self,
        calls: &mut Calls,
        in_flight: &mut MutexGuard<'_, InFlight>,
        call: Call<'_>,
        retried: bool,
    ) -> Result<usize, Stop> {
        match self.admit(calls, in_flight, call.bytes) {
            Admission::ZeroCopy => {
                calls.copies.revoke();
                let Some(id) = in_flight.begin_call(&self.kernel, call) else {
                    self.budget.refund(1, call.bytes);
                    return self.call_by_copy(calls, in_flight, call);
                };
                let flags = SendFlags { zerocopy: true, more: false };
                let sent = in_flight.unlocked(|| self.kernel.send(call.memory, flags));
                self.called(calls, in_flight, call, id, sent, retried)
            }
            Admission::Copy => self.call_by_copy(calls, in_flight, call),
            Admission::Full => {
                calls.stuck = Some(Stuck::Window);
                Err(Stop::Stuck)
            }
        }
    }

    /// Does what a zero-copy call asks for that was made and answered.
    pub(super) fn called(
        &self,
        calls: &mut Calls,
        in_flight: &mut MutexGuard<'_, InFlight>,
        call: Call<'_>,
        id: NotificationId,
        sent: io::Result<usize>,
        retried: bool,
    ) -> Result<usize, Stop> {
        match sent {
            Ok(accepted) if accepted > 0 => {
                self.accepted(calls, in_flight, call, id, accepted);
                Ok(accepted)
            }
            sent => {
                let error = sent.err().unwrap_or(io::ErrorKind::WouldBlock.into());
                self.recover(calls, in_flight, call, id, &error, retried)
            }
        }
    }

    /// Does for a zero-copy call that failed what can be done for it.
    #[cold]
    fn recover(
        &self,
        calls: &mut Calls,
        in_flight: &mut MutexGuard<'_, InFlight>,
        call: Call<'_>,
        id: NotificationId,
        error: &io::Error,
        retried: bool,
    ) -> Result<usize, Stop> {
        let failed = in_flight.fail_call(&self.kernel, id, call);
        if failed.took_id || error.raw_os_error() != Some(errno::ENOBUFS) {
            let copies = match error.raw_os_error() {
                // More parts of pages than a packet can have: 17.
                Some(errno::EMSGSIZE) => !failed.took_id,
                // The socket has come to need a copy, as one with kernel TLS does.
                Some(errno::EOPNOTSUPP) => {
                    let reason = CopyReason::Refused(OsError::from(error));
                    in_flight.copy_reason.get_or_insert(reason);
                    !failed.took_id
                }
                _ => false,
            };
            return match copies {
                true => self.call_by_copy(calls, in_flight, call),
                false => Err(self.stopped(calls, in_flight, error)),
            };
        }
        self.count_no_bufs(in_flight);
        calls.unread = 0;
        let read = in_flight.read_notes(&self.kernel).unwrap_or_default();
        if failed.freed + read.ids > 0 && !retried {
            return self.call_without_copy(calls, in_flight, call, true);
        }
        let stats = &in_flight.done.stats;
        calls.window.shrink(in_flight.tracker.outstanding(), stats.in_flight_bytes);
        self.call_by_copy(calls, in_flight, call)
    }

    /// What may happen to a call of `bytes`; without copy it is charged for.
    pub(super) fn admit(
        &self,
        calls: &mut Calls,
        in_flight: &mut InFlight,
        bytes: usize,
    ) -> Admission {
        if calls.unread >= calls.max_unread
            || in_flight.route.wants_notes(in_flight.tracker.outstanding())
        {
            calls.unread = 0;
            let _ = in_flight.read_notes(&self.kernel);
        }
        // A full window is looked at again after reading the notes, and once more after asking
        // whether a note went astray.
        for attempt in 0.. {
            let (sends, held) =
                (in_flight.tracker.outstanding(), in_flight.done.stats.in_flight_bytes);
            if in_flight.copy_reason.is_some()
                || !in_flight.route.admits(sends, || self.kernel.now())
            {
                return Admission::Copy;
            }
            match (calls.window.admit(&self.budget, bytes, sends, held), attempt) {
                (Admission::Full, 0) => {
                    calls.unread = 0;
                    let _ = in_flight.read_notes(&self.kernel);
                }
                (Admission::Full, 1) => {
                    in_flight.prove(&self.kernel);
                }
                (admission, _) => return admission,
            }
        }
        unreachable!("attempts end")
    }

    /// What calls like the one just let through, of a lone buffer of `pool`, may do unasked.
    pub(super) fn passes(
        &self,
        calls: &Calls,
        in_flight: &InFlight,
        pool: Option<&PoolHead>,
        bytes: usize,
    ) -> Passes {
        let asks_each_time = in_flight.route.is_exclusive()
            || !in_flight.done.drops_at_once()
            || pool.is_some_and(|pool| pool.sender_quota().is_some())
            || self.config.max_hold.is_some();
        if asks_each_time {
            return Passes::default();
        }
        let held = in_flight.done.stats.in_flight_bytes + bytes;
        let (sends, bytes) = calls.window.room(in_flight.tracker.outstanding() + 1, held);
        let count = sends.min((calls.max_unread - 1).saturating_sub(calls.unread));
        let most = self.call_limits.bytes.min(self.kernel.transport().most_without_copy());
        Passes::new(count, most.min(bytes / count.max(1)), pool)
    }

    /// The kernel took `accepted` bytes of the call of `id`.
    fn accepted(
        &self,
        calls: &mut Calls,
        in_flight: &mut InFlight,
        call: Call<'_>,
        id: NotificationId,
        accepted: usize,
    ) {
        in_flight.in_call = false;
        calls.stuck = None;
        if accepted < call.bytes {
            in_flight.tracker.trim(id, call.covered(accepted).len());
            in_flight.not_accepted(call.bytes - accepted);
        }
        calls.unread += 1;
        if calls.went_well() {
            self.verify(in_flight);
        }
    }

    /// After the first zero-copy call: option memory reading 0 with the id outstanding means that
    /// the kernel took the option and ignored the flag, so nothing is in flight.
    pub(super) fn verify(&self, in_flight: &mut InFlight) {
        if in_flight.tracker.outstanding() > 0 && matches!(self.kernel.optmem(), Ok(0)) {
            in_flight.release_all();
            in_flight.copy_reason = Some(CopyReason::Ignored);
            in_flight.passes.revoke();
        }
    }

    /// Which limit the kernel ran into.
    fn count_no_bufs(&self, in_flight: &mut InFlight) {
        let used = self.kernel.optmem().unwrap_or(0);
        if used.saturating_add(OPTMEM_PER_NOTE) > self.optmem_max {
            in_flight.done.extras.no_bufs_optmem += 1;
        } else {
            in_flight.done.extras.no_bufs_memlock += 1;
        }
    }

    /// What a failed call means.
    pub(super) fn stopped(
        &self,
        calls: &mut Calls,
        in_flight: &mut InFlight,
        error: &io::Error,
    ) -> Stop {
        if error.kind() == io::ErrorKind::WouldBlock {
            calls.stuck = Some(Stuck::Socket);
            // The next call is to say that it is not any more.
            in_flight.passes.revoke();
            return Stop::Stuck;
        }
        calls.stuck = None;
        let error = OsError::from(error);
        if errno::ends_connection(error.raw()) {
            Stop::Failed(*calls.failed.get_or_insert(error))
        } else if self.kernel.transport().is_drop(error.raw()) {
            in_flight.done.extras.dropped_sends += 1;
            Stop::Dropped(error)
        } else {
            Stop::Refused(error)
        }
    }
}
