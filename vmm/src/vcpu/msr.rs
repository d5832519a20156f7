//! Model-specific registers: which of them are state, and how to write them so that none is lost silently.
//!
//! KVM_SET_MSRS stops at the first register that it refuses and says how many it wrote: the rest must be
//! written by further calls, and each refusal judged.

use std::ops::Range;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use tern_schema::record;

use super::VcpuError;

record! {
    /// A model-specific register.
    pub struct MsrV1 {
        /// Index.
        [1] index: u32,
        /// Value.
        [2] value: u64,
    }
}

/// IA32_TIME_STAMP_COUNTER (Intel SDM volume 4).
pub const MSR_TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE (Intel SDM volume 3, 11.5.4.1).
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// IA32_XSS (Intel SDM volume 4).
const MSR_XSS: u32 = 0xda0;
/// MTRRs, which KVM_GET_MSR_INDEX_LIST leaves out on some kernels: default type, and fixed ranges.
const MTRRS: [u32; 12] = [0x2ff, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// Variable ranges, two registers each: all that fit below the fixed ones.
const MTRR_VARIABLE: Range<u32> = 0x200..0x250;
/// IA32_MTRRCAP: its lowest byte is the number of variable ranges (Intel SDM volume 3, 12.11.1).
const MSR_MTRR_CAP: u32 = 0xfe;
/// KVM's own registers (the kernel's `Documentation/virt/kvm/x86/msr.rst`): clocks, async page faults, steal
/// time, EOI, and room for those to come. Those of before 2010 are in the list.
const KVMS_OWN: Range<u32> = 0x4b56_4d00..0x4b56_4d10;

/// All registers that may be state on this host. Whether a vCPU has one is seen by reading it.
pub fn indices(kvm: &Kvm) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let mut indices: Vec<u32> = kvm.get_msr_index_list()?.as_slice().to_vec();
    for more in MTRRS.into_iter().chain(MTRR_VARIABLE).chain([MSR_XSS]).chain(KVMS_OWN) {
        if !indices.contains(&more) {
            indices.push(more);
        }
    }
    Ok(indices)
}

/// Of `candidates`, those that this vCPU lets us read. After its CPUID is set: since Linux 6.13 a register
/// of a feature that CPUID lacks reads as zero or not at all.
pub(super) fn readable(vcpu: &VcpuFd, candidates: &[u32]) -> Result<Vec<u32>, VcpuError> {
    let mtrrs = ranges_of(read(vcpu, MSR_MTRR_CAP)?);
    let exists = |index: &&u32| !MTRR_VARIABLE.contains(*index) || mtrrs.contains(*index);
    let candidates: Vec<u32> = candidates.iter().filter(exists).copied().collect();
    let mut out = Vec::with_capacity(candidates.len());
    let mut left = candidates.as_slice();
    while !left.is_empty() {
        let mut msrs = entries(left.iter().map(|index| (*index, 0)))?;
        let read = vcpu.get_msrs(&mut msrs).map_err(VcpuError::kvm("GET_MSRS"))?;
        out.extend(left.iter().take(read));
        left = left.get(read + 1..).unwrap_or_default();
    }
    Ok(out)
}

/// The variable MTRRs that there are, by IA32_MTRRCAP.
fn ranges_of(mtrr_cap: Option<u64>) -> Range<u32> {
    let count = mtrr_cap.map_or(0, |value| value as u8);
    let end = MTRR_VARIABLE.start + 2 * u32::from(count);
    MTRR_VARIABLE.start..end.min(MTRR_VARIABLE.end)
}

/// One register; `None` if this vCPU doesn't let us read it.
pub(super) fn read(vcpu: &VcpuFd, index: u32) -> Result<Option<u64>, VcpuError> {
    let mut msrs = entries([(index, 0)])?;
    let read = vcpu.get_msrs(&mut msrs).map_err(VcpuError::kvm("GET_MSRS"))?;
    Ok(msrs.as_slice().first().filter(|_| read == 1).map(|entry| entry.data))
}

/// Reads the registers `indices`, all of which must be readable.
pub(super) fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<MsrV1>, VcpuError> {
    let mut msrs = entries(indices.iter().map(|index| (*index, 0)))?;
    let read = vcpu.get_msrs(&mut msrs).map_err(VcpuError::kvm("GET_MSRS"))?;
    if let Some(index) = indices.get(read) {
        return Err(VcpuError::MsrUnreadable { index: *index });
    }
    Ok(msrs.as_slice().iter().map(|entry| MsrV1 { index: entry.index, value: entry.data }).collect())
}

/// Writes `list` in order. A register that this host refuses is passed over only if its value is already
/// what was saved; otherwise it is an error that names it.
pub(super) fn restore(vcpu: &VcpuFd, list: &[MsrV1]) -> Result<(), VcpuError> {
    let mut left = list;
    while !left.is_empty() {
        let msrs = entries(left.iter().map(|msr| (msr.index, msr.value)))?;
        let written = vcpu.set_msrs(&msrs).map_err(VcpuError::kvm("SET_MSRS"))?;
        if let Some(MsrV1 { index, value }) = left.get(written) {
            let here = read(vcpu, *index)?;
            if here.unwrap_or(0) != *value {
                return Err(VcpuError::MsrRefused { index: *index, value: *value, here });
            }
        }
        left = left.get(written + 1..).unwrap_or_default();
    }
    Ok(())
}

fn entries(list: impl IntoIterator<Item = (u32, u64)>) -> Result<Msrs, VcpuError> {
    let entries: Vec<kvm_msr_entry> =
        list.into_iter().map(|(index, data)| kvm_msr_entry { index, reserved: 0, data }).collect();
    Msrs::from_entries(&entries).map_err(|_| VcpuError::TooManyMsrs { count: entries.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_mtrrs_are_as_many_as_the_processor_says() {
        assert_eq!(ranges_of(Some(0x508)), 0x200..0x210);
        assert_eq!(ranges_of(Some(0xff)), 0x200..0x250);
        assert!(ranges_of(Some(0)).is_empty() && ranges_of(None).is_empty());
    }
}
