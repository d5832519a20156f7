//! Model-specific registers: which of them are state, and how to write them so that none is lost silently.
//!
//! KVM_SET_MSRS stops at the first register that it refuses and says how many it wrote: the rest must be
//! written by further calls, and each refusal judged.

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
/// MTRRs, which KVM_GET_MSR_INDEX_LIST leaves out on some kernels: default type, fixed and variable ranges.
const MTRRS: [u32; 12] = [0x2ff, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;

/// All registers that may be state on this host. Whether a vCPU has one is seen by reading it.
pub fn indices(kvm: &Kvm) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let mut indices: Vec<u32> = kvm.get_msr_index_list()?.as_slice().to_vec();
    for more in MTRRS.into_iter().chain(MTRR_VARIABLE).chain([MSR_XSS]) {
        if !indices.contains(&more) {
            indices.push(more);
        }
    }
    Ok(indices)
}

/// Of `candidates`, those that this vCPU lets us read. After its CPUID is set: since Linux 6.13 a register
/// of a feature that CPUID lacks reads as zero or not at all.
pub(super) fn readable(vcpu: &VcpuFd, candidates: &[u32]) -> Result<Vec<u32>, VcpuError> {
    let mut out = Vec::with_capacity(candidates.len());
    let mut left = candidates;
    while !left.is_empty() {
        let mut msrs = entries(left.iter().map(|index| (*index, 0)))?;
        let read = vcpu.get_msrs(&mut msrs).map_err(VcpuError::kvm("GET_MSRS"))?;
        out.extend(left.iter().take(read));
        left = left.get(read + 1..).unwrap_or_default();
    }
    Ok(out)
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
            let mut now = entries([(*index, 0)])?;
            let read = vcpu.get_msrs(&mut now).map_err(VcpuError::kvm("GET_MSRS"))?;
            let here = (read == 1).then(|| now.as_slice().first().map_or(0, |entry| entry.data));
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
