//! QEMU's monitor: a client of QMP over a unix socket.
