//! The steps of a migration of a QEMU.
