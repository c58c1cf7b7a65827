//! The files that hold the RAM of a QEMU.
