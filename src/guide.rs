//! The guide: programs, with the reasons for their calls.
//!
//! | chapter | program |
//! |---|---|
//! | [`blocking`] | reads and sends a file in plain calls |
//! | [`event_loop`] | serves many senders in one loop |
//! | [`tasks`] | sends from tasks of any runtime |
//! | [`closing`] | ends streams in order, at once, and in the background |
//! | [`broadcasting`] | sends a buffer to many peers, and drops slow peers |
//! | [`datagrams`] | sends trains of datagrams to many receivers |
//! | [`foreign_memory`] | sends mapped files and further memory in place |
//! | [`tuning`] | chooses sizes and limits, and reads the counters |
//! | [`telemetry`] | watches senders in production: counters, release times, events |
#![cfg_attr(feature = "rustls", doc = "| [`tls`] | encrypts into buffers of a pool |")]
//!
//! Pages, also in the folder `docs`:
//!
//! | page | for |
//! |---|---|
//! | [`questions`] | twenty questions, and the page with each answer |
//! | [`choosing`] | plain sends, `sendfile`, the flag, `io_uring`, this library: when which |
//! | [`porting`] | programs already sending without a copy |
//! | [`troubleshooting`] | symptoms, causes, remedies |
//! | [`syscalls`] | sandboxes: system calls, threads, fork |
//! | [`kernel`] | the facts about Linux behind the code, each with its test |
//! | [`non_goals`] | left out on purpose, with reasons |
//!
//! Words:
//!
//! - A **send** is *accepted* when the socket has taken all bytes, and *released* when the kernel
//!   will never read the memory again. Neither means delivery to the peer.
//! - A buffer is *in flight* between the two. The sender keeps it meanwhile.
//! - The kernel reports releases by *notifications*, read by sends, waits and allocations on the
//!   way.

pub mod blocking;
pub mod broadcasting;
pub mod closing;
pub mod datagrams;
pub mod event_loop;
pub mod foreign_memory;
pub mod tasks;
pub mod telemetry;
#[cfg(feature = "rustls")]
#[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
pub mod tls;
pub mod tuning;

/// A page of the folder `docs`. Its links lead to pages here: the first definition of a link holds.
macro_rules! page {
    ($module:ident, $file:literal) => {
        #[doc = include_str!("guide/links.md")]
        #[doc = ""]
        #[doc = include_str!(concat!("../docs/", $file))]
        pub mod $module {}
    };
}

page!(questions, "README.md");
page!(choosing, "Choosing.md");
page!(porting, "Porting.md");
page!(troubleshooting, "Troubleshooting.md");
page!(syscalls, "Syscalls.md");
page!(kernel, "Kernel.md");
page!(non_goals, "Non-goals.md");
