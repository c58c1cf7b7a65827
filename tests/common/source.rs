//! Sources of messages that overwrite their memory after the assumed release: the library, or a
//! loop with a wrong assumption.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, BorrowedFd},
    ptr, slice, thread,
    time::{Duration, Instant},
};

use pinbuf::{PinnedBuf, Policy, Pool, Sender, sender::SenderBuilder};

use super::{after, enable_zerocopy, fill, filled, pool, read_notification_ids, send_raw, unacked};

/// The overwriting byte; no pattern has a run of it.
pub(crate) const SCRIBBLE: u8 = 0xDD;

pub(crate) trait Source {
    /// Sends `len` bytes of the pattern of `seed`, the number of the message.
    fn send(&mut self, seed: usize, len: usize);

    /// Overwrites all memory that the source takes for released, and returns the messages there,
    /// since the start.
    fn reuse(&mut self) -> BTreeSet<usize>;

    fn socket(&self) -> BorrowedFd<'_>;
}

/// Expects exactly the first `released` messages to be overwritten, within a patient wait.
pub(crate) fn expect(source: &mut dyn Source, released: usize, when: &str) -> Result<(), String> {
    let deadline = after(60_000);
    loop {
        let reused = source.reuse();
        if reused == (0..released).collect::<BTreeSet<_>>() {
            return Ok(());
        }
        if reused.len() >= released || Instant::now() > deadline {
            return Err(format!("{when}: released {released}, written over {reused:?}"));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// As [`expect`], at every time within `ms` milliseconds.
pub(crate) fn hold(
    source: &mut dyn Source,
    released: usize,
    ms: u64,
    when: &str,
) -> Result<(), String> {
    let end = after(ms);
    let mut held = Ok(());
    while Instant::now() < end {
        held = held.and(expect(source, released, when));
        thread::sleep(Duration::from_millis(10));
    }
    held
}

/// A sender, and a pool with a slot per message: every Free slot is taken, overwritten and kept.
pub(crate) struct Library<S: AsFd + Send + Sync + 'static> {
    pub(crate) sender: Sender<S>,
    pub(crate) slots: Slots,
}

/// The slots of a pool, each used for one message and then overwritten.
pub(crate) struct Slots {
    pub(crate) pool: Pool,
    messages: BTreeMap<*const u8, usize>,
    scribbled: Vec<PinnedBuf>,
}

impl Slots {
    pub(crate) fn of(pool: Pool) -> Self {
        Self { pool, messages: BTreeMap::new(), scribbled: Vec::new() }
    }

    pub(crate) fn fill(&mut self, seed: usize, len: usize) -> PinnedBuf {
        let buf = self.pool.try_alloc(len).expect("a slot for each message");
        assert_eq!(self.messages.insert(buf.as_ptr(), seed), None, "no slot comes back");
        filled(buf, len, seed)
    }

    pub(crate) fn reuse(&mut self) -> BTreeSet<usize> {
        // Slots for later messages are returned.
        let mut unused = Vec::new();
        while let Ok(mut buf) = self.pool.try_alloc(1) {
            if self.messages.contains_key(&buf.as_ptr()) {
                buf.resize(buf.capacity(), SCRIBBLE);
                self.scribbled.push(buf);
            } else {
                unused.push(buf);
            }
        }
        self.scribbled.iter().filter_map(|buf| self.messages.get(&buf.as_ptr()).copied()).collect()
    }
}

impl<S: AsFd + Send + Sync + 'static> Library<S> {
    pub(crate) fn over(near: S, builder: SenderBuilder, len: usize, messages: usize) -> Self {
        Self::with_pool(near, builder, pool(len, messages))
    }

    pub(crate) fn with_pool(near: S, builder: SenderBuilder, pool: Pool) -> Self {
        let sender = builder.policy(Policy::Require).threshold_bytes(1).adopt(near);
        let sender = sender.unwrap_or_else(|error| panic!("{error}"));
        Self { sender, slots: Slots::of(pool) }
    }
}

impl<S: AsFd + Send + Sync + 'static> Source for Library<S> {
    fn send(&mut self, seed: usize, len: usize) {
        self.sender.send(self.slots.fill(seed, len)).unwrap_or_else(|error| panic!("{error}"));
    }

    fn reuse(&mut self) -> BTreeSet<usize> {
        self.sender.reap().unwrap();
        self.slots.reuse()
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }
}

/// The assumption of a loop without the library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// Sent messages may be overwritten.
    Sent,
    /// Acknowledged messages may be overwritten.
    Acknowledged,
    /// As many messages as notifications have named may be overwritten, from the oldest on.
    Oldest,
}

/// The same without the library.
pub(crate) struct Loop<S: AsFd> {
    near: S,
    rule: Rule,
    /// Leaked: without the library no one can tell the end of the kernel's reads.
    messages: Vec<*mut [u8]>,
    named: usize,
}

impl<S: AsFd> Loop<S> {
    pub(crate) fn over(near: S, rule: Rule) -> Self {
        enable_zerocopy(&near);
        Self { near, rule, messages: Vec::new(), named: 0 }
    }

    /// Ends the socket, and overwrites all messages.
    pub(crate) fn end(self, end: impl FnOnce(S)) {
        end(self.near);
        self.messages.into_iter().for_each(overwrite);
    }
}

impl<S: AsFd> Source for Loop<S> {
    fn send(&mut self, seed: usize, len: usize) {
        assert_eq!(seed, self.messages.len());
        // Whole pages without copy on write: after a fork the first write would go to a copy.
        let pages = len.next_multiple_of(4096);
        let memory = vec![0_u8; pages + 4096].leak();
        let start = memory.as_ptr().align_offset(4096);
        let memory = &mut memory[start..][..pages];
        // SAFETY: madvise(2): the advice changes no contents, and no child needs the pages.
        let done = unsafe { libc::madvise(memory.as_mut_ptr().cast(), pages, libc::MADV_DONTFORK) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        let message = &mut memory[..len];
        fill(message, seed);
        let message = ptr::from_mut(message);
        // SAFETY: the message was leaked.
        let sent = unsafe { send_raw(self.near.as_fd(), message) };
        assert_eq!(sent.unwrap(), len);
        self.messages.push(message);
    }

    fn reuse(&mut self) -> BTreeSet<usize> {
        let ranges = read_notification_ids(self.near.as_fd());
        self.named += ranges.iter().map(|ids| ids.clone().count()).sum::<usize>();
        let usable = match self.rule {
            Rule::Sent => self.messages.len(),
            Rule::Acknowledged if unacked(&self.near) == 0 => self.messages.len(),
            Rule::Acknowledged => 0,
            Rule::Oldest => self.named,
        };
        self.messages[..usable].iter().for_each(|message| overwrite(*message));
        (0..usable).collect()
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.near.as_fd()
    }
}

fn overwrite(message: *mut [u8]) {
    // SAFETY: the message was leaked, and no other reference is left. A concurrent read by the
    // kernel is the point.
    unsafe { slice::from_raw_parts_mut(message.cast::<u8>(), message.len()) }.fill(SCRIBBLE);
}

/// One buffer for all messages, rewritten after each send.
pub(crate) struct Reused(*mut [u8]);

impl Reused {
    /// A buffer for messages of `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        // Leaked: without the library no one can tell the end of the kernel's reads.
        Self(vec![0; len].leak())
    }

    pub(crate) fn send(&self, near: BorrowedFd<'_>, seed: usize) {
        let Self(memory) = *self;
        // SAFETY: the buffer was leaked, and no other reference is left.
        fill(unsafe { slice::from_raw_parts_mut(memory.cast::<u8>(), memory.len()) }, seed);
        // SAFETY: the buffer was leaked. A read by the kernel during the next rewrite is the point.
        let sent = unsafe { send_raw(near, memory) };
        assert_eq!(sent.unwrap(), memory.len());
    }
}
