//! The soft-dirty bits of the hypervisor's page tables.
