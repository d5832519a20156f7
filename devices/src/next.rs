//! A stand-in for the next version of tern, for tests of how two versions get on: the feature `next`, which only
//! the program `tern-next` has. Nothing here ships.
//!
//! | section | what the next version did |
//! |---|---|
//! | `acpi-pm` 1 | added an optional field: how often the guest has moved |
//! | `i8042` 1 | added a subsection: a mouse, which older terns don't have |
//! | `rtc` 2 | counts its offset in milliseconds |
//! | `uptime` 1 | is a new, optional part of every machine |
//!
//! `TERN_NEXT_USES` names what its guests use that older terns don't have: `mouse`, `fine-clock`, or `host-mouse`,
//! which can't move at all; several with commas.

use std::sync::{Arc, Mutex};

use tern_schema::{EncodeError, Follows, record, subsection};

use crate::state::{Part, RestoreError, Stateful, lock, part};
use crate::{AcpiPm, HeldClockV1, I8042, Rtc};

record! {
    /// Saved state of the ACPI power button.
    pub struct AcpiPmV1 = "acpi-pm" 1 {
        /// As before.
        [1] status: u16,
        /// As before.
        [2] enable: u16,
        /// As before.
        [3] control: u16,
        /// How often the guest has moved between terns that count it.
        [4 optional] moves: Option<u32>,
    }
}

record! {
    /// A mouse.
    #[derive(Default)]
    pub struct MouseV1 {
        /// Is it switched on?
        [1] enabled: bool,
    }
}

record! {
    /// Saved state of the i8042.
    pub struct I8042V1 = "i8042" 1 {
        /// As before.
        [1] config: u8,
        /// As before.
        [2] output: Option<u8>,
        /// As before.
        [3] command: Option<u8>,
        /// The mouse, if the guest uses it.
        [4] mouse: Option<MouseV1>,
    }
}

record! {
    /// Saved state of the CMOS clock.
    pub struct RtcV2 = "rtc" 2 after RtcBefore {
        /// As before.
        [1] index: u8,
        /// As before.
        [3] status_a: u8,
        /// As before.
        [4] status_b: u8,
        /// As before.
        [5] memory: Vec<u8>,
        /// As before.
        [6] held: Option<HeldClockV1>,
        /// Guest's clock minus host's clock.
        [7] offset_ms: i64,
    }
}
use crate::RtcV1 as RtcBefore;

record! {
    /// For the owner's statistics; the guest doesn't see it.
    pub struct UptimeV1 = "uptime" optional 1 {
        /// How often the guest has moved between terns that know this section.
        [1] moves: u32,
    }
}

impl Follows for RtcV2 {
    type Before = RtcBefore;

    fn upgrade(before: RtcBefore) -> Self {
        let RtcBefore { index, offset_seconds, status_a, status_b, memory, held } = before;
        Self { index, status_a, status_b, memory, held, offset_ms: offset_seconds.saturating_mul(1000) }
    }

    fn downgrade(&self) -> Result<RtcBefore, EncodeError> {
        let Self { index, status_a, status_b, memory, held, offset_ms } = self.clone();
        if offset_ms % 1000 != 0 {
            return Err(EncodeError::inexpressible::<Self>("a clock set to the millisecond"));
        }
        Ok(RtcBefore { index, offset_seconds: offset_ms / 1000, status_a, status_b, memory, held })
    }
}

fn is_used(what: &str) -> bool {
    std::env::var("TERN_NEXT_USES").is_ok_and(|uses| uses.split(',').any(|used| used == what))
}

/// Rows for the chips and for what is new.
pub(crate) fn parts(
    i8042: Arc<Mutex<I8042>>,
    rtc: Arc<Mutex<Rtc>>,
    pm: Arc<Mutex<AcpiPm>>,
) -> Vec<Box<dyn Part>> {
    let i8042 = NextI8042 { chip: i8042, mouse: MouseV1 { enabled: is_used("mouse") } };
    let rtc = NextRtc { chip: rtc, fine_ms: i64::from(is_used("fine-clock")) };
    let (pm, uptime) = (NextPm { chip: pm, moves: 0 }, Uptime { moves: 0 });
    vec![row(i8042), row(rtc), row(pm), row(uptime)]
}

fn row<S: Stateful + 'static>(device: S) -> Box<dyn Part> {
    part(Arc::new(Mutex::new(device)), 0)
}

struct NextPm {
    chip: Arc<Mutex<AcpiPm>>,
    moves: u32,
}

impl NextPm {
    fn split(saved: AcpiPmV1) -> (crate::AcpiPmV1, u32) {
        let AcpiPmV1 { status, enable, control, moves } = saved;
        (crate::AcpiPmV1 { status, enable, control }, moves.unwrap_or_default())
    }
}

impl Stateful for NextPm {
    type Saved = AcpiPmV1;

    fn save(&self) -> AcpiPmV1 {
        let crate::AcpiPmV1 { status, enable, control } = lock(&self.chip).save();
        AcpiPmV1 { status, enable, control, moves: Some(self.moves) }
    }

    fn check(&self, saved: &AcpiPmV1) -> Result<(), RestoreError> {
        lock(&self.chip).check(&Self::split(saved.clone()).0)
    }

    fn restore(&mut self, saved: AcpiPmV1) -> Result<(), RestoreError> {
        let (chip, moves) = Self::split(saved);
        self.moves = moves.saturating_add(1);
        tracing::info!(moves = self.moves, "next: the power button came");
        lock(&self.chip).restore(chip)
    }
}

struct NextI8042 {
    chip: Arc<Mutex<I8042>>,
    mouse: MouseV1,
}

impl NextI8042 {
    fn split(saved: I8042V1) -> (crate::I8042V1, MouseV1) {
        let I8042V1 { config, output, command, mouse } = saved;
        (crate::I8042V1 { config, output, command }, mouse.unwrap_or_default())
    }
}

impl Stateful for NextI8042 {
    type Saved = I8042V1;

    fn save(&self) -> I8042V1 {
        let crate::I8042V1 { config, output, command } = lock(&self.chip).save();
        I8042V1 { config, output, command, mouse: subsection(self.mouse.clone()) }
    }

    fn check(&self, saved: &I8042V1) -> Result<(), RestoreError> {
        lock(&self.chip).check(&Self::split(saved.clone()).0)
    }

    fn restore(&mut self, saved: I8042V1) -> Result<(), RestoreError> {
        let (chip, mouse) = Self::split(saved);
        tracing::info!(enabled = mouse.enabled, "next: the mouse came");
        self.mouse = mouse;
        lock(&self.chip).restore(chip)
    }

    fn blocked(&self) -> Option<String> {
        let text =
            "i8042: the mouse is this host's own, whose state can't be read; take it away from the guest";
        is_used("host-mouse").then(|| text.to_owned())
    }
}

struct NextRtc {
    chip: Arc<Mutex<Rtc>>,
    /// Less than a second: what the chip of today can't hold.
    fine_ms: i64,
}

impl NextRtc {
    fn split(saved: RtcV2) -> (RtcBefore, i64) {
        let RtcV2 { index, status_a, status_b, memory, held, offset_ms } = saved;
        let offset_seconds = offset_ms.div_euclid(1000);
        let chip = RtcBefore { index, offset_seconds, status_a, status_b, memory, held };
        (chip, offset_ms.rem_euclid(1000))
    }
}

impl Stateful for NextRtc {
    type Saved = RtcV2;

    fn save(&self) -> RtcV2 {
        let saved = RtcV2::upgrade(lock(&self.chip).save());
        RtcV2 { offset_ms: saved.offset_ms.saturating_add(self.fine_ms), ..saved }
    }

    fn check(&self, saved: &RtcV2) -> Result<(), RestoreError> {
        lock(&self.chip).check(&Self::split(saved.clone()).0)
    }

    fn restore(&mut self, saved: RtcV2) -> Result<(), RestoreError> {
        let (chip, fine_ms) = Self::split(saved);
        tracing::info!(fine_ms, "next: the clock came");
        self.fine_ms = fine_ms;
        lock(&self.chip).restore(chip)
    }
}

struct Uptime {
    moves: u32,
}

impl Stateful for Uptime {
    type Saved = UptimeV1;

    fn save(&self) -> UptimeV1 {
        let Self { moves } = *self;
        UptimeV1 { moves }
    }

    fn check(&self, saved: &UptimeV1) -> Result<(), RestoreError> {
        let UptimeV1 { moves: _ } = saved;
        Ok(())
    }

    fn restore(&mut self, saved: UptimeV1) -> Result<(), RestoreError> {
        let UptimeV1 { moves } = saved;
        self.moves = moves.saturating_add(1);
        tracing::info!(moves = self.moves, "next: the uptime came");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_clock_of_today_comes_back_from_the_next(offset_seconds in -1_000_000i64..1_000_000) {
            let (index, status_a, status_b, memory, held) = (1, 2, 3, vec![4; 5], None);
            let before = RtcBefore { index, offset_seconds, status_a, status_b, memory, held };
            let after = RtcV2::upgrade(before.clone());
            prop_assert_eq!(after.downgrade(), Ok(before.clone()));
            prop_assert_eq!(NextRtc::split(after.clone()), (before, 0));
            let finer = RtcV2 { offset_ms: after.offset_ms + 1, ..after };
            prop_assert!(finer.downgrade().is_err());
        }
    }
}
