//! `PAGEMAP_SCAN` with a userfaultfd that lives in the hypervisor.
