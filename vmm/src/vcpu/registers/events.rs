//! Saved form of what a vCPU has under way: exceptions, interrupts, NMIs, SMIs.

use kvm_bindings::kvm_vcpu_events;
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
            flags,
            smi: [smi.smm, smi.pending, smi.smm_inside_nmi, smi.latched_init],
            triple_fault_pending: triple_fault.pending,
        }
    }
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
            // What KVM reports as valid in GET is not all that SET must be told to take: NMI pending, the
            // SIPI vector and the shadow are always meant here (api.rst 4.32).
            flags: flags
                | kvm_bindings::KVM_VCPUEVENT_VALID_NMI_PENDING
                | kvm_bindings::KVM_VCPUEVENT_VALID_SHADOW,
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
