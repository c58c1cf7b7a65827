//! A library for `LD_PRELOAD` that gives a hypervisor a userfaultfd, before its `main` begins.
//!
//! `migration_sender send --track uffd` takes the descriptor and tracks the guest's writes with it.
//! Until then the descriptor does nothing.
//!
//! ```text
//! cargo build --release -p migration_sender --example pinbuf_uffd
//! LD_PRELOAD=target/release/examples/libpinbuf_uffd.so qemu-system-x86_64 ...
//! ```

/// Run by the dynamic loader.
#[used]
#[unsafe(link_section = ".init_array")]
static MAKE: extern "C" fn() = make;

extern "C" fn make() {
    /// UFFD_USER_MODE_ONLY: all that an ordinary user may ask for. The kernel's own writes are
    /// tracked too, since asynchronous protection stops no writer.
    const USER_MODE_ONLY: libc::c_int = 1;
    // SAFETY: userfaultfd(2) takes flags. The descriptor stays open until the process ends. After a
    // failure there is none, which `migration_sender` reports.
    unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
}
