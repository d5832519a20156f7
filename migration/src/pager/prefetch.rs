//! The prefetcher: brings everything that nobody waits for, in the order of [`super::order`].

use std::sync::PoisonError;

use super::order::Order;
use super::shared::{Cause, Shared, buffer};

/// A run that may turn out to be zero as a whole: 1 GiB. Of content, a batch comes at once.
const RUN_PAGES: u64 = 1 << 18;

pub(super) fn bring(shared: &Shared) {
    let (mut order, mut buffer) = (Order::default(), buffer());
    while !shared.is_stopping() {
        let fault = shared.newest_fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((region, pages)) = order.next(&shared.placed, fault, RUN_PAGES) else { return };
        if let Err(error) = shared.bring(region, pages, &mut buffer, Cause::Prefetch) {
            return shared.fail(error);
        }
    }
}
