//! The receiver of released leases.

/// Receives the leases without a hold.
pub trait Heir<T> {
    /// Takes a lease out of its place, cheaper than a move.
    fn take(&mut self, lease: &mut Option<T>);
}

impl<T, F: FnMut(&mut Option<T>)> Heir<T> for F {
    #[inline(always)]
    fn take(&mut self, lease: &mut Option<T>) {
        self(lease);
    }
}
