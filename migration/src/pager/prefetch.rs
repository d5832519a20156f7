//! The prefetcher: brings everything that nobody waits for, in the order of [`super::order`].

use std::sync::PoisonError;

use super::fetch::{Fetching, buffer};
use super::order::Order;
use super::{Cause, Placer};

/// A run that may turn out to be zero as a whole: 1 GiB. Of content, a batch comes at once.
const RUN_PAGES: u64 = 1 << 18;

pub(super) fn bring(placer: &Placer, fetching: &Fetching) {
    let (mut order, mut buffer) = (Order::default(), buffer());
    while !placer.0.is_stopping() {
        let fault = fetching.newest_fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((region, pages)) = order.next(&placer.0.placed, fault, RUN_PAGES) else { return };
        if let Err(error) = fetching.bring(placer, region, pages, &mut buffer, Cause::Ahead) {
            return placer.0.fail(error);
        }
    }
}
