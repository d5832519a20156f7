//! The rows of the chips that every machine has.

use std::sync::{Arc, Mutex};

use crate::state::{Part, part};
use crate::{AcpiPm, I8042, Rtc, Serial};

/// What of the chips migrates, in order.
pub fn chip_parts(
    serial: Arc<Mutex<Serial>>,
    i8042: Arc<Mutex<I8042>>,
    rtc: Arc<Mutex<Rtc>>,
    pm: Arc<Mutex<AcpiPm>>,
) -> Vec<Box<dyn Part>> {
    let mut parts = vec![part(serial, 0)];
    #[cfg(not(feature = "next"))]
    parts.extend([part(i8042, 0), part(rtc, 0), part(pm, 0)]);
    #[cfg(feature = "next")]
    parts.extend(crate::next::parts(i8042, rtc, pm));
    parts
}
