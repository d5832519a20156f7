//! A vCPU's whole state: what is saved, and in which order it is written back.
//!
//! Save: MP_STATE first (reading it can run pending APIC events), VCPU_EVENTS last. Restore: CPUID (the
//! caller's), TSC_KHZ, MP_STATE, REGS, SREGS, XSAVE, XCRS, DEBUGREGS, LAPIC (after SREGS, which has the APIC
//! base; before the MSRs, or a TSC deadline is dropped because the LVT's mode differs), TSC offset, MSRs
//! with the deadline last, shadow-stack pointer (after CR4 and the CET registers), nested state (needs EFER,
//! CR4 and the feature-control register), VCPU_EVENTS (SET_REGS clears pending exceptions).
//!
//! Components of XSAVE that belong to the supervisor (IA32_XSS) are not in KVM's XSAVE area: their registers,
//! such as those of CET, are in the list of MSRs, as IA32_XSS is.

use kvm_bindings::{
    KVM_CAP_NESTED_STATE, KVM_CAP_SREGS2, KVM_CAP_XSAVE2, KVM_REG_GUEST_SSP, kvm_x86_reg_kvm,
};
use kvm_bindings::{kvm_lapic_state, kvm_mp_state, kvm_sregs, kvm_sregs2};
use kvm_ioctls::{VcpuFd, VmFd};
use tern_schema::record;

use super::msr::{self, MSR_TSC, MSR_TSC_DEADLINE, MsrV1};
use super::nested::{self, NestedV1};
use super::registers::{DebugRegsV1, EventsV1, RegsV1, SregsV1, XcrV1, xcrs_from, xcrs_to};
use super::{CpuidV1, VcpuError};
use crate::kvm;

const LAPIC_BYTES: usize = 1024;
const XSAVE_BYTES_MIN: usize = 4096;

record! {
    /// One vCPU.
    pub struct VcpuV1 = "vcpu" 1 {
        /// KVM_MP_STATE_*: running, halted, waiting for SIPI.
        [1] mp_state: u32,
        /// General-purpose registers.
        [2] regs: RegsV1,
        /// Special registers.
        [3] sregs: SregsV1,
        /// XSAVE area in the standard format.
        [4] xsave: Vec<u8>,
        /// Extended control registers.
        [5] xcrs: Vec<XcrV1>,
        /// Debug registers.
        [6] debug_regs: DebugRegsV1,
        /// Local APIC page.
        [7] lapic: Vec<u8>,
        /// Frequency of the TSC that the guest sees.
        [8] tsc_khz: u32,
        /// Guest TSC minus the host's, where the host can say and doesn't scale it.
        [9] tsc_offset: Option<u64>,
        /// Model-specific registers.
        [10] msrs: Vec<MsrV1>,
        /// Exceptions and interrupts under way.
        [11] events: EventsV1,
        /// CPUID as this vCPU shows it.
        [12] cpuid: Vec<CpuidV1>,
        /// State of guests inside the guest, where there are any.
        [13] nested: Option<NestedV1>,
        /// Shadow-stack pointer, where it isn't zero.
        [14] guest_ssp: Option<u64>,
    }
}

/// What a host can save and restore of a vCPU, and buffers made before the guest stops.
#[derive(Debug)]
pub struct StateAccess {
    sregs2: bool,
    tsc_offset: bool,
    /// Frequency of the host's TSC.
    host_tsc_khz: u32,
    xsave_bytes: usize,
    xsave: Vec<u64>,
    /// Bytes of the largest nested state, where KVM has it.
    nested_bytes: Option<usize>,
    guest_ssp: bool,
    msrs: Vec<u32>,
}

impl StateAccess {
    /// Finds out what this vCPU has; after its CPUID is set, and before its TSC's frequency is.
    pub fn new(vm: &VmFd, vcpu: &VcpuFd, msr_candidates: &[u32]) -> Result<Self, VcpuError> {
        let xsave2 = vm.check_extension_raw(u64::from(KVM_CAP_XSAVE2));
        let xsave_bytes = usize::try_from(xsave2).unwrap_or(0).max(XSAVE_BYTES_MIN);
        Ok(Self {
            sregs2: vm.check_extension_raw(u64::from(KVM_CAP_SREGS2)) > 0,
            tsc_offset: kvm::has_tsc_offset(vcpu),
            host_tsc_khz: vcpu.get_tsc_khz().map_err(VcpuError::kvm("GET_TSC_KHZ"))?,
            xsave_bytes,
            xsave: vec![0; xsave_bytes.div_ceil(8)],
            nested_bytes: nested::buffer_bytes(vm.check_extension_raw(u64::from(KVM_CAP_NESTED_STATE))),
            guest_ssp: get_ssp(vcpu).is_some(),
            msrs: msr::readable(vcpu, msr_candidates)?,
        })
    }

    /// Finds out again which registers there are, after another CPUID was set.
    pub(super) fn find_msrs(&mut self, vcpu: &VcpuFd, candidates: &[u32]) -> Result<(), VcpuError> {
        self.msrs = msr::readable(vcpu, candidates)?;
        self.guest_ssp = get_ssp(vcpu).is_some();
        Ok(())
    }

    /// Bytes of the XSAVE area.
    pub fn xsave_bytes(&self) -> usize {
        self.xsave_bytes
    }

    /// The MSRs that are state.
    pub fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// Reads everything. The vCPU must not run, and must have no half-done I/O.
    pub fn save(&mut self, vcpu: &VcpuFd, cpuid: &[CpuidV1]) -> Result<VcpuV1, VcpuError> {
        let mp_state = vcpu.get_mp_state().map_err(VcpuError::kvm("GET_MP_STATE"))?.mp_state;
        let regs = vcpu.get_regs().map_err(VcpuError::kvm("GET_REGS"))?;
        let sregs = self.sregs(vcpu)?;
        kvm::get_xsave2(vcpu, &mut self.xsave, self.xsave_bytes).map_err(VcpuError::io("GET_XSAVE2"))?;
        let xcrs = vcpu.get_xcrs().map_err(VcpuError::kvm("GET_XCRS"))?;
        let debug_regs = vcpu.get_debug_regs().map_err(VcpuError::kvm("GET_DEBUGREGS"))?;
        let lapic = vcpu.get_lapic().map_err(VcpuError::kvm("GET_LAPIC"))?;
        let tsc_khz = vcpu.get_tsc_khz().map_err(VcpuError::kvm("GET_TSC_KHZ"))?;
        let tsc_offset = if self.tsc_offset && !is_scaled(self.host_tsc_khz, tsc_khz) {
            Some(kvm::get_tsc_offset(vcpu).map_err(VcpuError::io("GET_DEVICE_ATTR (TSC offset)"))?)
        } else {
            None
        };
        let msrs = msr::save(vcpu, &self.msrs)?;
        let guest_ssp = if self.guest_ssp { get_ssp(vcpu).filter(|ssp| *ssp != 0) } else { None };
        let nested = self.nested(vcpu)?;
        let events = vcpu.get_vcpu_events().map_err(VcpuError::kvm("GET_VCPU_EVENTS"))?;
        Ok(VcpuV1 {
            mp_state,
            regs: regs.into(),
            sregs,
            xsave: self.xsave.iter().flat_map(|word| word.to_le_bytes()).take(self.xsave_bytes).collect(),
            xcrs: xcrs_from(&xcrs),
            debug_regs: (&debug_regs).into(),
            lapic: lapic.regs.iter().map(|byte| byte.cast_unsigned()).collect(),
            tsc_khz,
            tsc_offset,
            msrs,
            events: (&events).into(),
            cpuid: cpuid.to_vec(),
            nested,
            guest_ssp,
        })
    }

    fn nested(&self, vcpu: &VcpuFd) -> Result<Option<NestedV1>, VcpuError> {
        let Some(bytes) = self.nested_bytes else { return Ok(None) };
        let mut area = nested::empty(bytes);
        kvm::get_nested_state(vcpu, &mut area).map_err(VcpuError::io("GET_NESTED_STATE"))?;
        Ok(NestedV1::from_kvm(&area))
    }

    fn sregs(&self, vcpu: &VcpuFd) -> Result<SregsV1, VcpuError> {
        if self.sregs2 {
            let sregs = kvm::get_sregs2(vcpu).map_err(VcpuError::io("GET_SREGS2"))?;
            return Ok((&sregs).into());
        }
        let old = vcpu.get_sregs().map_err(VcpuError::kvm("GET_SREGS"))?;
        Ok((&sregs2_of(&old)).into())
    }

    /// Is this state possible here? Called for all vCPUs before anything is applied.
    pub fn validate(&self, saved: &VcpuV1) -> Result<(), VcpuError> {
        let too_long = saved.xsave.get(self.xsave_bytes..).unwrap_or_default().iter().any(|byte| *byte != 0);
        let length = |what, found: usize, expected| Err(VcpuError::Length { what, found, expected });
        if too_long || saved.xsave.len() < XSAVE_BYTES_MIN.min(self.xsave_bytes) {
            return length("xsave", saved.xsave.len(), self.xsave_bytes);
        }
        if saved.lapic.len() != LAPIC_BYTES {
            return length("lapic", saved.lapic.len(), LAPIC_BYTES);
        }
        if xcrs_to(&saved.xcrs).is_none() {
            return length("xcrs", saved.xcrs.len(), 16);
        }
        if saved.debug_regs.db.len() != 4 {
            return length("debug_regs.db", saved.debug_regs.db.len(), 4);
        }
        if saved.sregs.pdptrs.as_ref().is_some_and(|words| words.len() != 4) {
            return length("sregs.pdptrs", saved.sregs.pdptrs.as_ref().map_or(0, Vec::len), 4);
        }
        saved.nested.as_ref().map_or(Ok(()), |nested| nested.to_kvm(self.nested_bytes).map(drop))
    }

    /// Writes everything, in the order that this file's head explains. `tsc_offset` is what the TSC offset
    /// must be on this host, if known; without it the TSC goes on from its saved value.
    pub fn restore(
        &mut self,
        vcpu: &VcpuFd,
        saved: &VcpuV1,
        tsc_offset: Option<u64>,
    ) -> Result<(), VcpuError> {
        let VcpuV1 {
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debug_regs,
            lapic,
            tsc_khz,
            tsc_offset: _,
            msrs,
            events,
            cpuid: _,
            nested,
            guest_ssp,
        } = saved;
        set_tsc_khz(vcpu, *tsc_khz)?;
        let mp_state = kvm_mp_state { mp_state: *mp_state };
        vcpu.set_mp_state(mp_state).map_err(VcpuError::kvm("SET_MP_STATE"))?;
        vcpu.set_regs(&regs.into()).map_err(VcpuError::kvm("SET_REGS"))?;
        self.set_sregs(vcpu, &sregs.into())?;
        self.set_xsave(vcpu, xsave)?;
        let xcrs = xcrs_to(xcrs).unwrap_or_default();
        vcpu.set_xcrs(&xcrs).map_err(VcpuError::kvm("SET_XCRS"))?;
        vcpu.set_debug_regs(&debug_regs.into()).map_err(VcpuError::kvm("SET_DEBUGREGS"))?;
        let mut page = kvm_lapic_state::default();
        page.regs.iter_mut().zip(lapic).for_each(|(to, from)| *to = from.cast_signed());
        vcpu.set_lapic(&page).map_err(VcpuError::kvm("SET_LAPIC"))?;
        // An offset is counted from the host's TSC as scaled, which the other host's says nothing of.
        let tsc_offset = tsc_offset.filter(|_| !is_scaled(self.host_tsc_khz, *tsc_khz));
        self.set_time_and_msrs(vcpu, msrs, tsc_offset)?;
        self.set_ssp(vcpu, *guest_ssp)?;
        if let Some(nested) = nested {
            let mut area = nested.to_kvm(self.nested_bytes)?;
            kvm::set_nested_state(vcpu, &mut area).map_err(VcpuError::io("SET_NESTED_STATE"))?;
        }
        vcpu.set_vcpu_events(&events.into()).map_err(VcpuError::kvm("SET_VCPU_EVENTS"))
    }

    fn set_sregs(&self, vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), VcpuError> {
        if self.sregs2 {
            return kvm::set_sregs2(vcpu, sregs).map_err(VcpuError::io("SET_SREGS2"));
        }
        vcpu.set_sregs(&sregs_of(sregs)).map_err(VcpuError::kvm("SET_SREGS"))
    }

    fn set_xsave(&mut self, vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), VcpuError> {
        self.xsave.fill(0);
        for (word, chunk) in self.xsave.iter_mut().zip(bytes.chunks(8)) {
            let mut eight = [0; 8];
            eight.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            *word = u64::from_le_bytes(eight);
        }
        kvm::set_xsave(vcpu, &mut self.xsave, self.xsave_bytes).map_err(VcpuError::io("SET_XSAVE"))
    }

    fn set_ssp(&self, vcpu: &VcpuFd, saved: Option<u64>) -> Result<(), VcpuError> {
        match saved {
            None if !self.guest_ssp => Ok(()),
            Some(ssp) if !self.guest_ssp => Err(VcpuError::ShadowStack { ssp }),
            ssp => {
                let bytes = ssp.unwrap_or(0).to_le_bytes();
                let written = vcpu.set_one_reg(SSP_ID, &bytes);
                written.map(drop).map_err(VcpuError::kvm("SET_ONE_REG (GUEST_SSP)"))
            }
        }
    }

    fn set_time_and_msrs(&self, vcpu: &VcpuFd, msrs: &[MsrV1], offset: Option<u64>) -> Result<(), VcpuError> {
        let offset = offset.filter(|_| self.tsc_offset);
        if let Some(offset) = offset {
            kvm::set_tsc_offset(vcpu, offset).map_err(VcpuError::io("SET_DEVICE_ATTR (TSC offset)"))?;
        }
        let before = msrs.iter().find(|msr| msr.index == MSR_TSC).map_or(0, |msr| msr.value);
        let (mut tsc, mut deadline, mut others) = (Vec::new(), Vec::new(), Vec::with_capacity(msrs.len()));
        for msr in msrs {
            match msr.index {
                MSR_TSC if offset.is_some() => {}
                MSR_TSC => tsc.push(msr.clone()),
                MSR_TSC_DEADLINE => deadline.push(msr.clone()),
                _ => others.push(msr.clone()),
            }
        }
        msr::restore(vcpu, &others)?;
        msr::restore(vcpu, &tsc)?;
        // Some KVMs take an offset or a value, and go on with the host's TSC (kvm_pvm, Linux 6.18).
        let now = msr::read(vcpu, MSR_TSC)?.unwrap_or(before);
        if now < before {
            return Err(VcpuError::TscBack { saved: before, here: now });
        }
        msr::restore(vcpu, &deadline)
    }
}

/// KVM_REG_GUEST_SSP as KVM_GET_ONE_REG names it (api.rst 4.68, Linux 6.18).
const SSP_ID: u64 = kvm_x86_reg_kvm(KVM_REG_GUEST_SSP);

/// The shadow-stack pointer; `None` where the vCPU or its KVM has none.
fn get_ssp(vcpu: &VcpuFd) -> Option<u64> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(SSP_ID, &mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Tolerance of the TSC frequency between hosts without scaling, in parts per million, as KVM has it.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Does KVM scale a guest's TSC of this frequency?
fn is_scaled(host_khz: u32, guest_khz: u32) -> bool {
    u64::from(host_khz.abs_diff(guest_khz)) * 1_000_000 > u64::from(host_khz) * TSC_TOLERANCE_PPM
}

fn set_tsc_khz(vcpu: &VcpuFd, wanted: u32) -> Result<(), VcpuError> {
    let here = vcpu.get_tsc_khz().map_err(VcpuError::kvm("GET_TSC_KHZ"))?;
    if here == wanted {
        return Ok(());
    }
    match vcpu.set_tsc_khz(wanted) {
        Ok(()) => Ok(()),
        Err(_) if !is_scaled(here, wanted) => Ok(()),
        Err(source) => Err(VcpuError::TscKhz { wanted, here, source }),
    }
}

fn sregs2_of(old: &kvm_sregs) -> kvm_sregs2 {
    let kvm_sregs { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, .. } = *old;
    let kvm_sregs { cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap: _, .. } = *old;
    let (flags, pdptrs) = (0, [0; 4]);
    kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags,
        pdptrs,
    }
}

fn sregs_of(new: &kvm_sregs2) -> kvm_sregs {
    let kvm_sregs2 { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, .. } = *new;
    let kvm_sregs2 { cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags: _, pdptrs: _, .. } = *new;
    let interrupt_bitmap = [0; 4];
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_of_another_frequency_has_a_scaled_tsc() {
        assert!(
            !is_scaled(2_000_000, 2_000_000)
                && !is_scaled(2_000_000, 2_000_500)
                && !is_scaled(2_000_000, 1_999_500)
        );
        assert!(is_scaled(2_000_000, 2_000_501) && is_scaled(2_600_000, 2_000_000));
    }
}
