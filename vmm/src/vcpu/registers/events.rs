//! Saved form of what a vCPU has under way: exceptions, interrupts, NMIs, SMIs.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_TRIPLE_FAULT, kvm_vcpu_events,
};
use tern_schema::record;

record! {
    /// Exceptions, interrupts, NMIs and SMIs under way, as `kvm_vcpu_events` has them.
    pub struct EventsV1 {
        /// Exception: injected, number, has error code, pending.
        [1] exception: [u8; 4],
        /// Its error code.
        [2] exception_error_code: u32,
        /// Has it a payload?
        [3] exception_has_payload: u8,
        /// Its payload.
        [4] exception_payload: u64,
        /// Interrupt: injected, number, soft, shadow.
        [5] interrupt: [u8; 4],
        /// NMI: injected, pending, masked.
        [6] nmi: [u8; 3],
        /// SIPI vector.
        [7] sipi_vector: u32,
        /// Which members are valid: KVM_VCPUEVENT_VALID_*.
        [8] flags: u32,
        /// SMI: in SMM, pending, inside NMI, latched INIT.
        [9] smi: [u8; 4],
        /// Triple fault pending.
        [10] triple_fault_pending: u8,
    }
}

impl From<&kvm_vcpu_events> for EventsV1 {
    fn from(events: &kvm_vcpu_events) -> Self {
        let kvm_vcpu_events {
            exception,
            interrupt,
            nmi,
            sipi_vector,
            flags,
            smi,
            triple_fault,
            reserved: _,
            exception_has_payload,
            exception_payload,
        } = *events;
        Self {
            exception: [exception.injected, exception.nr, exception.has_error_code, exception.pending],
            exception_error_code: exception.error_code,
            exception_has_payload,
            exception_payload,
            interrupt: [interrupt.injected, interrupt.nr, interrupt.soft, interrupt.shadow],
            nmi: [nmi.injected, nmi.pending, nmi.masked],
            sipi_vector,
            flags: flags & !unused(events),
            smi: [smi.smm, smi.pending, smi.smm_inside_nmi, smi.latched_init],
            triple_fault_pending: triple_fault.pending,
        }
    }
}

/// The members that KVM calls valid here because it has been asked to, and that say nothing: a host without
/// them, or a tern that didn't ask, refuses their flags.
fn unused(events: &kvm_vcpu_events) -> u32 {
    let without_payload = events.exception.pending == 0 && events.exception_has_payload == 0;
    let payload = if without_payload { KVM_VCPUEVENT_VALID_PAYLOAD } else { 0 };
    let triple = if events.triple_fault.pending == 0 { KVM_VCPUEVENT_VALID_TRIPLE_FAULT } else { 0 };
    payload | triple
}

impl From<&EventsV1> for kvm_vcpu_events {
    fn from(saved: &EventsV1) -> Self {
        let EventsV1 {
            exception,
            exception_error_code,
            exception_has_payload,
            exception_payload,
            interrupt,
            nmi,
            sipi_vector,
            flags,
            smi,
            triple_fault_pending,
        } = *saved;
        let mut events = Self {
            sipi_vector,
            // What may change while a vCPU runs is taken only if SET is told so (api.rst 4.32). The SIPI vector
            // is never valid in GET: MP_STATE says whether one is awaited.
            flags: flags | KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
            exception_has_payload,
            exception_payload,
            ..Default::default()
        };
        let e = &mut events.exception;
        [e.injected, e.nr, e.has_error_code, e.pending] = exception;
        e.error_code = exception_error_code;
        let i = &mut events.interrupt;
        [i.injected, i.nr, i.soft, i.shadow] = interrupt;
        [events.nmi.injected, events.nmi.pending, events.nmi.masked] = nmi;
        let s = &mut events.smi;
        [s.smm, s.pending, s.smm_inside_nmi, s.latched_init] = smi;
        events.triple_fault.pending = triple_fault_pending;
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: u32 = KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;

    #[test]
    fn flags_of_events_that_are_not_there_do_not_travel() {
        let quiet = kvm_vcpu_events { flags: ASKED | KVM_VCPUEVENT_VALID_SHADOW, ..Default::default() };
        assert_eq!(EventsV1::from(&quiet).flags, KVM_VCPUEVENT_VALID_SHADOW);
    }

    #[test]
    fn a_pending_exception_keeps_its_payload_and_a_triple_fault_is_kept() {
        let mut events = kvm_vcpu_events { flags: ASKED, exception_has_payload: 1, ..Default::default() };
        (events.exception.pending, events.exception.nr, events.exception_payload) = (1, 1, 0x4001);
        events.triple_fault.pending = 1;
        let again = kvm_vcpu_events::from(&EventsV1::from(&events));
        assert_eq!(again.flags & ASKED, ASKED);
        assert_eq!((again.exception.pending, again.exception.nr, again.exception_payload), (1, 1, 0x4001));
        assert_eq!((again.exception_has_payload, again.triple_fault.pending), (1, 1));
    }
}
