//! The VM's clock: what kvm-clock counts from.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CAP_ADJUST_CLOCK, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use tern_schema::record;

use super::{ChipError, kvm};

record! {
    /// The VM's clock: kvmclock, and the host's clocks at the same instant where the host can say.
    pub struct ClockV1 = "clock" 1 {
        /// kvmclock.
        [1] guest_ns: u64,
        /// The host's CLOCK_REALTIME at that instant.
        [2] host_realtime_ns: Option<u64>,
        /// The host's TSC at that instant.
        [3] host_tsc: Option<u64>,
    }
}

/// Furthest that the guest's clock is moved on for the time in which it was stopped: more is a fault of
/// one of the hosts' clocks, not a stop.
const STOPPED_MAX_NS: u64 = 600 * 1_000_000_000;

impl ClockV1 {
    /// Reads the clock.
    pub fn save(vm: &VmFd) -> Result<Self, ChipError> {
        // Before KVM's own: if it is the one that counts, the clock moves on a little too far, never back.
        let now_ns = realtime_ns();
        let data = vm.get_clock().map_err(kvm("GET_CLOCK"))?;
        let flagged = |flag: u32, value: u64| (data.flags & flag != 0).then_some(value);
        let host_realtime_ns = flagged(KVM_CLOCK_REALTIME, data.realtime).or(Some(now_ns));
        Ok(Self {
            guest_ns: data.clock,
            host_realtime_ns,
            host_tsc: flagged(KVM_CLOCK_HOST_TSC, data.host_tsc),
        })
    }

    /// What KVM_SET_CLOCK is told. Where KVM can't move the clock on by itself (before Linux 5.16, which also
    /// refuses the flag), it is moved on here.
    fn told(&self, host_now_ns: u64, kvm_moves_on: bool) -> kvm_clock_data {
        let mut data = kvm_clock_data { clock: self.guest_ns, ..Default::default() };
        let Some(then_ns) = self.host_realtime_ns else { return data };
        let stopped_ns = host_now_ns.checked_sub(then_ns).filter(|stopped| *stopped <= STOPPED_MAX_NS);
        match stopped_ns {
            Some(_) if kvm_moves_on => (data.flags, data.realtime) = (KVM_CLOCK_REALTIME, then_ns),
            Some(stopped_ns) => data.clock = data.clock.saturating_add(stopped_ns),
            None => {}
        }
        data
    }

    /// Writes the clock, moved on by the time that has passed since it was saved, if both hosts' clocks say
    /// how long that was and it is plausible (`host_now_ns` is this host's CLOCK_REALTIME). Returns what the
    /// clock is now.
    pub fn restore(&self, vm: &VmFd, host_now_ns: u64) -> Result<Self, ChipError> {
        let flags = vm.check_extension_raw(u64::from(KVM_CAP_ADJUST_CLOCK));
        let kvm_moves_on = u32::try_from(flags).is_ok_and(|flags| flags & KVM_CLOCK_REALTIME != 0);
        let data = self.told(host_now_ns, kvm_moves_on);
        vm.set_clock(&data).map_err(kvm("SET_CLOCK"))?;
        Self::save(vm)
    }

    /// What a vCPU's TSC offset must become here so that TSC and kvmclock go on together: the algorithm of
    /// the kernel's `Documentation/virt/kvm/devices/vcpu.rst`, section 4.1. `None` where a host doesn't
    /// report its TSC.
    pub fn moved_tsc_offset(&self, here: &Self, offset: u64, tsc_khz: u32) -> Option<u64> {
        let (source_tsc, destination_tsc) = (self.host_tsc?, here.host_tsc?);
        let passed_ns = i128::from(here.guest_ns) - i128::from(self.guest_ns);
        let passed_ticks = passed_ns * i128::from(tsc_khz) / 1_000_000;
        let ticks = i128::from(source_tsc) - i128::from(destination_tsc) + passed_ticks;
        Some(offset.wrapping_add(ticks as u64))
    }
}

/// The host's CLOCK_REALTIME.
fn realtime_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(guest_ns: u64, host_tsc: u64) -> ClockV1 {
        ClockV1 { guest_ns, host_realtime_ns: None, host_tsc: Some(host_tsc) }
    }

    #[test]
    fn the_guest_tsc_advances_as_its_clock_did() {
        // 2 GHz: 5 ms passed for the guest, so 10 M ticks. Source: guest TSC = 1000 + 50.
        let (source, here) = (clock(1_000_000_000, 1000), clock(1_005_000_000, 7_000_000));
        let offset = source.moved_tsc_offset(&here, 50, 2_000_000).unwrap();
        assert_eq!(7_000_000u64.wrapping_add(offset), 1050 + 10_000_000);
    }

    #[test]
    fn a_clock_is_moved_on_by_whoever_can() {
        let saved = ClockV1 { host_realtime_ns: Some(1000), ..clock(50, 0) };
        let by_kvm = saved.told(1700, true);
        assert_eq!((by_kvm.clock, by_kvm.flags, by_kvm.realtime), (50, KVM_CLOCK_REALTIME, 1000));
        let by_us = saved.told(1700, false);
        assert_eq!((by_us.clock, by_us.flags, by_us.realtime), (750, 0, 0));
    }

    #[test]
    fn a_clock_stands_where_the_hosts_clocks_contradict_or_too_much_time_has_passed() {
        let saved = ClockV1 { host_realtime_ns: Some(1000), ..clock(50, 0) };
        for now_ns in [999, 1001 + STOPPED_MAX_NS] {
            for kvm_moves_on in [false, true] {
                let told = saved.told(now_ns, kvm_moves_on);
                assert_eq!((told.clock, told.flags), (50, 0));
            }
        }
        assert_eq!(clock(50, 0).told(9, true).flags, 0);
    }

    #[test]
    fn without_a_host_tsc_there_is_no_answer() {
        let silent = ClockV1 { host_tsc: None, ..clock(0, 0) };
        assert_eq!(silent.moved_tsc_offset(&clock(0, 0), 1, 1), None);
    }
}
