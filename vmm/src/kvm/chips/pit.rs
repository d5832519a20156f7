//! The PIT (8254).

use kvm_bindings::{kvm_pit_channel_state, kvm_pit_state2};
use kvm_ioctls::VmFd;
use tern_schema::record;

use super::{ChipError, kvm};

record! {
    /// One channel of the 8254.
    pub struct PitChannelV1 {
        /// Reload value; 65536 is possible.
        [1] count: u32,
        /// Latched counter.
        [2] latched_count: u16,
        /// Which half of the latch is next.
        [3] count_latched: u8,
        /// Status latched?
        [4] status_latched: u8,
        /// Latched status.
        [5] status: u8,
        /// Read half.
        [6] read_state: u8,
        /// Write half.
        [7] write_state: u8,
        /// First half written.
        [8] write_latch: u8,
        /// Read/write mode.
        [9] rw_mode: u8,
        /// Counter mode.
        [10] mode: u8,
        /// BCD counting.
        [11] bcd: u8,
        /// Gate input.
        [12] gate: u8,
        /// When the counter was loaded, in the host's ktime. Kept as KVM gives it; KVM reloads the counter
        /// on restore.
        [13] count_load_time_ns: i64,
    }
}

record! {
    /// The 8254 timer.
    pub struct PitV1 = "pit" 1 {
        /// Its three channels.
        [1] channels: Vec<PitChannelV1>,
        /// KVM's flags: HPET legacy, speaker data.
        [2] flags: u32,
    }
}

impl PitV1 {
    /// Reads the PIT.
    pub fn save(vm: &VmFd) -> Result<Self, ChipError> {
        let kvm_pit_state2 { channels, flags, reserved: _ } = vm.get_pit2().map_err(kvm("GET_PIT2"))?;
        let channel = |channel: &kvm_pit_channel_state| {
            let kvm_pit_channel_state {
                count,
                latched_count,
                count_latched,
                status_latched,
                status,
                read_state,
                write_state,
                write_latch,
                rw_mode,
                mode,
                bcd,
                gate,
                count_load_time: count_load_time_ns,
            } = *channel;
            PitChannelV1 {
                count,
                latched_count,
                count_latched,
                status_latched,
                status,
                read_state,
                write_state,
                write_latch,
                rw_mode,
                mode,
                bcd,
                gate,
                count_load_time_ns,
            }
        };
        Ok(Self { channels: channels.iter().map(channel).collect(), flags })
    }

    /// Is this state possible? Called before anything is applied.
    pub fn validate(&self) -> Result<(), ChipError> {
        let (what, found, expected) = ("pit.channels", self.channels.len(), 3);
        if found == expected { Ok(()) } else { Err(ChipError::Count { what, found, expected }) }
    }

    /// Writes the PIT.
    pub fn restore(&self, vm: &VmFd) -> Result<(), ChipError> {
        self.validate()?;
        let Self { channels, flags } = self;
        let mut state = kvm_pit_state2 { flags: *flags, ..Default::default() };
        for (to, from) in state.channels.iter_mut().zip(channels) {
            let PitChannelV1 {
                count,
                latched_count,
                count_latched,
                status_latched,
                status,
                read_state,
                write_state,
                write_latch,
                rw_mode,
                mode,
                bcd,
                gate,
                count_load_time_ns: count_load_time,
            } = *from;
            *to = kvm_pit_channel_state {
                count,
                latched_count,
                count_latched,
                status_latched,
                status,
                read_state,
                write_state,
                write_latch,
                rw_mode,
                mode,
                bcd,
                gate,
                count_load_time,
            };
        }
        vm.set_pit2(&state).map_err(kvm("SET_PIT2"))
    }
}
