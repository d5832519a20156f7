//! State of the guests that a guest itself runs (VMX or SVM inside the guest), as KVM_GET_NESTED_STATE has it
//! (the kernel's `Documentation/virt/kvm/api.rst`, 4.114 and 4.115).
//!
//! ```text
//! flags u16 | format u16 | size u32 | header, 120 bytes | data, to `size`
//! ```
//!
//! tern hides VMX and SVM from its guests, so the state is its default and doesn't travel. It is carried all
//! the same, so that a guest that was given them can't lose its own guests silently.

use kvm_bindings::{KVM_STATE_NESTED_FORMAT_SVM, KVM_STATE_NESTED_FORMAT_VMX, KVM_STATE_NESTED_GIF_SET};
use tern_schema::record;

use super::VcpuError;

record! {
    /// State of a guest's own guests.
    pub struct NestedV1 {
        /// KVM_STATE_NESTED_*: in the inner guest, about to enter it, interrupts on.
        [1] flags: u16,
        /// KVM_STATE_NESTED_FORMAT_*: 0 for VMX, 1 for SVM.
        [2] format: u16,
        /// The format's header: addresses of VMXON region and VMCS, or of the VMCB.
        [3] header: [u8; 120],
        /// VMCS and shadow VMCS, or VMCB; empty outside of one.
        [4] data: Vec<u8>,
    }
}

/// Bytes before the data.
const HEAD_BYTES: usize = 128;
/// KVM's largest today is 8,320; more than this is not a capability but a mistake.
const MOST_BYTES: usize = 64 << 10;
/// `vmxon_pa`, first in VMX's header, of a guest without VMXON.
const NO_VMXON: [u8; 8] = [0xff; 8];

/// Bytes of the buffer for KVM_GET_NESTED_STATE, from what KVM_CAP_NESTED_STATE says; `None` without it.
pub(super) fn buffer_bytes(capability: i32) -> Option<usize> {
    let bytes = usize::try_from(capability).ok()?;
    (HEAD_BYTES..=MOST_BYTES).contains(&bytes).then_some(bytes)
}

/// An empty buffer that tells KVM its size.
pub(super) fn empty(bytes: usize) -> Vec<u64> {
    let mut words = vec![0; bytes.div_ceil(8)];
    if let (Some(first), Ok(size)) = (words.first_mut(), u32::try_from(bytes)) {
        *first = u64::from(size) << 32;
    }
    words
}

impl NestedV1 {
    /// What KVM has written; `None` if it is the default, which every vCPU has from the start.
    pub(super) fn from_kvm(words: &[u64]) -> Option<Self> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let first = *words.first()?;
        let size = usize::try_from(first >> 32).ok()?.max(HEAD_BYTES).min(bytes.len());
        let header = bytes.get(8..HEAD_BYTES)?.try_into().ok()?;
        let data = bytes.get(HEAD_BYTES..size)?.to_vec();
        let nested = Self { flags: first as u16, format: (first >> 16) as u16, header, data };
        (!nested.is_default()).then_some(nested)
    }

    fn is_default(&self) -> bool {
        let Self { flags, format, header, data } = self;
        let unused = match u32::from(*format) {
            KVM_STATE_NESTED_FORMAT_VMX => *flags == 0 && header.starts_with(&NO_VMXON),
            KVM_STATE_NESTED_FORMAT_SVM => {
                u32::from(*flags) & !KVM_STATE_NESTED_GIF_SET == 0 && header.iter().all(|byte| *byte == 0)
            }
            _ => false,
        };
        unused && data.is_empty()
    }

    /// As KVM wants it, if it is no longer than this host's state can be (`most_bytes`, `None` where it has none).
    pub(super) fn to_kvm(&self, most_bytes: Option<usize>) -> Result<Vec<u64>, VcpuError> {
        let Self { flags, format, header, data } = self;
        let (found, expected) = (HEAD_BYTES.saturating_add(data.len()), most_bytes.unwrap_or(0));
        let size = u32::try_from(found).ok().filter(|_| found <= expected);
        let size = size.ok_or(VcpuError::Length { what: "nested", found, expected })?;
        let mut bytes = Vec::with_capacity(found);
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&format.to_le_bytes());
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(data);
        Ok(words(&bytes))
    }
}

/// Little-endian words; the last one is filled up with zeros.
pub(super) fn words(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let mut eight = [0; 8];
        eight.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(eight)
    };
    bytes.chunks(8).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMX_BYTES: usize = 128 + 8192;

    fn vmx() -> NestedV1 {
        let mut header = [0; 120];
        header[..8].copy_from_slice(&0x1000u64.to_le_bytes());
        header[8..16].copy_from_slice(&0x2000u64.to_le_bytes());
        NestedV1 { flags: 1, format: 0, header, data: (0..8192u32).map(|at| at as u8).collect() }
    }

    #[test]
    fn the_layout_is_the_kernels() {
        let words = vmx().to_kvm(buffer_bytes(VMX_BYTES as i32)).unwrap();
        assert_eq!(words.len() * 8, VMX_BYTES);
        assert_eq!((words[0], words[1], words[2]), ((VMX_BYTES as u64) << 32 | 1, 0x1000, 0x2000));
        assert_eq!(words[16], 0x0706_0504_0302_0100, "VMCS12 begins at 128");
        assert_eq!(NestedV1::from_kvm(&words), Some(vmx()));
    }

    #[test]
    fn a_vcpu_without_inner_guests_has_nothing_to_carry() {
        let mut fresh = empty(VMX_BYTES);
        assert_eq!(fresh[0] >> 32, VMX_BYTES as u64);
        (fresh[0], fresh[1], fresh[2]) = (128 << 32, u64::MAX, u64::MAX);
        assert_eq!(NestedV1::from_kvm(&fresh), None);
        fresh[1] = 0x1000;
        assert!(NestedV1::from_kvm(&fresh).is_some(), "VMXON alone is state");
        let svm = [128 << 32 | 1 << 16 | u64::from(KVM_STATE_NESTED_GIF_SET)];
        let svm: Vec<u64> = svm.into_iter().chain([0; 15]).collect();
        assert_eq!(NestedV1::from_kvm(&svm), None);
    }

    #[test]
    fn what_does_not_fit_this_host_is_refused() {
        for most_bytes in [None, Some(128), Some(VMX_BYTES - 1)] {
            assert!(matches!(vmx().to_kvm(most_bytes), Err(VcpuError::Length { what: "nested", .. })));
        }
        assert_eq!([-1, 0, 127, 1 << 20].map(buffer_bytes), [None; 4]);
    }
}
