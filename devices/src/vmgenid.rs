//! The VM generation ID: tells a guest that it goes on from a saved state, so that it must not use again what it
//! drew once (random numbers, sequence numbers), and the event by which it hears of a change.
//!
//! As Microsoft's "Virtual Machine Generation ID" has it: 16 random bytes in guest memory, at an address that an
//! ACPI device tells, and a notification when they change. They change when a guest is restored from a file.
//! They stay when it moves, stops, goes on or is reset. The notification is the first event of the
//! general-purpose event block GPE0 (ACPI 6.5, 4.8.4.1), whose two registers are here:
//!
//! ```text
//! +0 GPE0 status (u8, write 1 to clear)   +1 GPE0 enable (u8)
//! ```

use std::sync::Arc;

use tern_schema::record;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::irq::raise;
use crate::{BusDevice, GuestRam, Interrupt, RestoreError, Stateful};

const STATUS: u64 = 0;
const ENABLE: u64 = 1;
/// The one event: `_E00` of the tables.
const CHANGED: u8 = 1 << 0;

/// A generation ID as it is in guest memory: a GUID with its first three fields little-endian.
pub type GenerationId = [u8; 16];

record! {
    /// Saved state of [`VmGenId`].
    pub struct VmGenIdV1 = "vmgenid" 1 {
        /// The ID as it is in guest memory; none in a guest whose tables tell of none.
        [1] id: Option<[u8; 16]>,
        /// GPE0 status.
        [2] status: u8,
        /// GPE0 enable.
        [3] enable: u8,
    }
}

/// A machine's generation ID and its event.
pub struct VmGenId {
    // Configuration.
    place: GuestAddress,
    // Glue.
    ram: GuestRam,
    sci: Arc<dyn Interrupt>,
    // State.
    id: Option<GenerationId>,
    status: u8,
    enable: u8,
}

impl VmGenId {
    /// `place` is where the tables say that the ID is, and `id` what the boot writes there: none in a machine that
    /// boots no guest, but waits for one. `sci` is the ACPI interrupt.
    pub fn new(
        ram: GuestRam,
        place: GuestAddress,
        sci: Arc<dyn Interrupt>,
        id: Option<GenerationId>,
    ) -> Self {
        Self { place, ram, sci, id, status: 0, enable: 0 }
    }

    /// The guest's ID. None: it knows of none, because a tern has booted it that had none.
    pub fn id(&self) -> Option<GenerationId> {
        self.id
    }

    /// Gives the guest a new ID, and tells it. A guest that knows of none is left alone. Call it when the saved
    /// state has been applied, the interrupt controllers' too, and before a vCPU runs. Errors: `place` is not
    /// in guest memory.
    pub fn change(&mut self, id: GenerationId) -> Result<(), GuestMemoryError> {
        if self.id.is_none() {
            return Ok(());
        }
        self.ram.write_slice(&id, self.place)?;
        self.id = Some(id);
        self.status |= CHANGED;
        self.raise_if_pending();
        Ok(())
    }

    fn raise_if_pending(&self) {
        if self.status & self.enable != 0 {
            raise(&*self.sci, "vmgenid");
        }
    }
}

impl BusDevice for VmGenId {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = match register {
                STATUS => self.status,
                ENABLE => self.enable,
                _ => 0,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..).zip(data) {
            match register {
                STATUS => self.status &= !byte,
                ENABLE => {
                    self.enable = byte & CHANGED;
                    self.raise_if_pending();
                }
                _ => {}
            }
        }
    }
}

impl Stateful for VmGenId {
    type Saved = VmGenIdV1;

    fn save(&self) -> VmGenIdV1 {
        let Self { place: _, ram: _, sci: _, id, status, enable } = self;
        VmGenIdV1 { id: *id, status: *status, enable: *enable }
    }

    fn check(&self, saved: &VmGenIdV1) -> Result<(), RestoreError> {
        let VmGenIdV1 { id: _, status, enable } = *saved;
        for (field, found) in [("status", status), ("enable", enable)] {
            if found & !CHANGED != 0 {
                let (found, expected) = (u64::from(found), "only bit 0 exists");
                return Err(RestoreError::Field { record: "VmGenIdV1", field, found, expected });
            }
        }
        Ok(())
    }

    fn restore(&mut self, saved: VmGenIdV1) -> Result<(), RestoreError> {
        self.check(&saved)?;
        let VmGenIdV1 { id, status, enable } = saved;
        (self.id, self.status, self.enable) = (id, status, enable);
        self.raise_if_pending();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    use vmm_sys_util::eventfd::EventFd;

    const PLACE: GuestAddress = GuestAddress(0x3008);
    const OLD: GenerationId = [1; 16];
    const NEW: GenerationId = [2; 16];

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap()
    }

    fn chip(ram: &GuestRam, id: Option<GenerationId>) -> (VmGenId, EventFd) {
        let sci = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (VmGenId::new(ram.clone(), PLACE, Arc::new(sci.try_clone().unwrap()), id), sci)
    }

    fn in_memory(ram: &GuestRam) -> GenerationId {
        ram.read_obj(PLACE).unwrap()
    }

    #[test]
    fn a_change_is_in_memory_and_dirty_and_interrupts_once_enabled() {
        let ram = ram();
        let (mut chip, sci) = chip(&ram, Some(OLD));
        chip.change(NEW).unwrap();
        assert_eq!((in_memory(&ram), chip.id()), (NEW, Some(NEW)));
        let bitmap = GuestMemoryRegion::bitmap(ram.iter().next().unwrap());
        let dirty: Vec<bool> = (0..8).map(|page| bitmap.dirty_at(page * 0x1000)).collect();
        assert_eq!(dirty, [false, false, false, true, false, false, false, false]);
        assert!(sci.read().is_err(), "not enabled yet");
        chip.write(ENABLE, &[0xff]);
        assert_eq!(sci.read().unwrap(), 1);
        let mut both = [0; 2];
        chip.read(STATUS, &mut both);
        assert_eq!(both, [CHANGED, CHANGED]);
        chip.write(STATUS, &[CHANGED]);
        chip.read(STATUS, &mut both);
        assert_eq!(both, [0, CHANGED]);
        assert!(sci.read().is_err());
    }

    #[test]
    fn a_guest_that_knows_of_no_id_is_left_alone() {
        let ram = ram();
        let (mut chip, sci) = chip(&ram, None);
        chip.write(ENABLE, &[CHANGED]);
        chip.change(NEW).unwrap();
        assert_eq!((in_memory(&ram), chip.id()), ([0; 16], None));
        assert!(sci.read().is_err());
    }

    #[test]
    fn an_id_travels_unchanged_and_a_change_that_was_not_heard_of_is_told_again() {
        let (here, there) = (ram(), ram());
        let (mut source, _) = chip(&here, Some(OLD));
        source.write(ENABLE, &[CHANGED]);
        let (mut destination, sci) = chip(&there, None);
        destination.restore(source.save()).unwrap();
        assert_eq!(destination.save(), source.save());
        assert!(sci.read().is_err(), "nothing has changed");
        source.change(NEW).unwrap();
        destination.restore(source.save()).unwrap();
        assert_eq!((destination.id(), sci.read().unwrap()), (Some(NEW), 1));
        assert_eq!(in_memory(&there), [0; 16], "guest memory travels by itself");
    }

    proptest! {
        #[test]
        fn any_access_leaves_a_legal_state(accesses: Vec<(bool, u64, Vec<u8>)>, far: u64) {
            let (mut chip, _) = chip(&ram(), Some(OLD));
            chip.write(far, &[0xff; 8]);
            for (write, offset, mut data) in accesses {
                if write { chip.write(offset % 4, &data) } else { chip.read(offset % 4, &mut data) }
            }
            prop_assert!(chip.check(&chip.save()).is_ok());
        }

        #[test]
        fn any_state_is_taken_whole_or_refused(id: Option<[u8; 16]>, status: u8, enable: u8) {
            let (mut chip, _) = chip(&ram(), Some(OLD));
            let before = chip.save();
            let saved = VmGenIdV1 { id, status, enable };
            let taken = chip.restore(saved.clone()).is_ok();
            prop_assert_eq!(chip.save(), if taken { saved } else { before });
        }
    }
}
