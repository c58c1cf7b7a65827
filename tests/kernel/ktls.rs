//! Sockets with kernel TLS (`TCP_ULP`): zero copy is refused, and a sender goes on by copy.

use std::{
    io::{self, Read},
    net::TcpStream,
    os::fd::{AsFd, AsRawFd},
    thread,
};

use pinbuf::{Fate, Policy, Sender, sender::CopyReason};

use crate::common::{
    assert_same, enable_zerocopy, pair, pattern, send_static, set_option, skip, soon,
};

const LEN: usize = 100_000;

/// A connection with the keys of TLS in the kernel, for one direction. The error of a kernel without TLS.
fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let (near, far) = pair();
    for (end, direction) in [(&near, libc::TLS_TX), (&far, libc::TLS_RX)] {
        let (fd, level, name) = (end.as_raw_fd(), libc::IPPROTO_TCP, c"tls");
        // SAFETY: setsockopt(2) reads three bytes of the name, which is constant.
        let done = unsafe { libc::setsockopt(fd, level, libc::TCP_ULP, name.as_ptr().cast(), 3) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let keys = libc::tls12_crypto_info_aes_gcm_128 {
            info: libc::tls_crypto_info {
                version: libc::TLS_1_2_VERSION,
                cipher_type: libc::TLS_CIPHER_AES_GCM_128,
            },
            iv: [1; 8],
            key: [2; 16],
            salt: [3; 4],
            rec_seq: [0; 8],
        };
        set_option(end, libc::SOL_TLS, direction, &keys);
    }
    Ok((near, far))
}

#[test]
fn a_socket_with_kernel_tls_refuses_zero_copy() {
    let (near, _far) = match connection() {
        Ok(connection) => connection,
        Err(error) => {
            return skip("a_socket_with_kernel_tls_refuses_zero_copy", &error.to_string());
        }
    };
    enable_zerocopy(&near);
    static DATA: [u8; 20_000] = [7; 20_000];
    let error = send_static(near.as_fd(), &DATA).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
}

#[test]
fn a_sender_over_kernel_tls_goes_on_by_copy() {
    let (near, mut far) = match connection() {
        Ok(connection) => connection,
        Err(error) => return skip("a_sender_over_kernel_tls_goes_on_by_copy", &error.to_string()),
    };
    let mut sender = Sender::builder().policy(Policy::Prefer).adopt(near).unwrap();
    let reading = thread::spawn(move || {
        let mut read = vec![0; LEN];
        far.read_exact(&mut read).unwrap();
        read
    });
    let ticket = sender.send(pattern(LEN, 0)).unwrap();
    let fate = sender.wait(ticket, soon()).unwrap();
    assert!(matches!(fate, Fate::Released { .. }), "{fate:?}");
    assert_same(&reading.join().unwrap(), &pattern(LEN, 0));
    let reason = sender.capabilities().reason;
    let Some(CopyReason::Refused(error)) = reason else { panic!("{reason:?}") };
    assert_eq!(error.raw(), libc::EOPNOTSUPP);
    assert_eq!(sender.stats().zero_copy_calls, 0);
}
