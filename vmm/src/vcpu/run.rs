//! One vCPU: made, run exit by exit, saved and restored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use tern_migration::GuestRam;

use super::cpuid::{for_vcpu, to_kvm};
use crate::boot::{self, Entry};
use crate::kvm::{self, DirtyRings};

use super::{CpuidV1, MSR_ARCH_CAPABILITIES, MsrV1, StateAccess, Template, VcpuError, VcpuFault, VcpuV1};
use super::{fault, msr};

/// Where a vCPU's port and memory accesses go.
pub trait Bus: Send + Sync {
    /// IN: `data` is one or more accesses of `size` bytes each to the same port.
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]);
    /// OUT: as [`Self::port_read`].
    fn port_write(&self, port: u16, size: usize, data: &[u8]);
    /// A load from an address without memory behind it.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// A store to one.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
}

/// What a vCPU tells the machine.
#[derive(Debug)]
pub enum VcpuEvent {
    /// A reset that KVM was asked for.
    Reset,
    /// A power-off that KVM was asked for.
    PowerOff,
    /// It can't go on.
    Fault(Box<VcpuFault>),
}

/// What the run loop does next.
#[derive(Debug)]
pub(super) enum Step {
    /// Enter the guest again.
    Again,
    /// A signal came: look whether to stop.
    Interrupted,
    /// This vCPU has nothing more to run.
    Ended(VcpuEvent),
}

/// A vCPU and all that its state needs.
#[derive(Debug)]
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    ram: GuestRam,
    cpuid: Vec<CpuidV1>,
    access: StateAccess,
    msr_candidates: Vec<u32>,
    rings: Option<Arc<DirtyRings>>,
}

/// The byte through which another thread makes KVM_RUN return at once (api.rst 5, `immediate_exit`).
#[derive(Debug, Clone)]
pub(super) struct ImmediateExit {
    byte: *const AtomicU8,
    // Keeps the mapping alive.
    _vcpu: Arc<std::sync::Mutex<Vcpu>>,
}

#[allow(unsafe_code, reason = "one byte of the kvm_run page is shared with the kernel and between threads")]
mod immediate_exit {
    use super::*;

    // SAFETY: the pointer is only used for atomic stores to a byte of a page that `_vcpu` keeps mapped.
    unsafe impl Send for ImmediateExit {}
    // SAFETY: as above.
    unsafe impl Sync for ImmediateExit {}

    impl ImmediateExit {
        pub(in super::super) fn new(vcpu: &Arc<std::sync::Mutex<Vcpu>>) -> Self {
            let mut guard = vcpu.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let byte = (&raw mut guard.fd.get_kvm_run().immediate_exit).cast::<AtomicU8>().cast_const();
            drop(guard);
            Self { byte, _vcpu: Arc::clone(vcpu) }
        }

        pub(in super::super) fn set(&self, value: u8) {
            // SAFETY: the page stays mapped while `_vcpu` lives, and AtomicU8 has the layout of a byte.
            unsafe { (*self.byte).store(value, Ordering::SeqCst) }
        }
    }
}

impl Vcpu {
    /// Makes vCPU number `index` of `cpus` with its CPUID set.
    pub fn new(
        vm: &VmFd,
        index: u32,
        cpus: u32,
        template: &Template,
        msr_candidates: &[u32],
        ram: GuestRam,
    ) -> Result<Self, VcpuError> {
        let fd = vm.create_vcpu(u64::from(index)).map_err(VcpuError::kvm("CREATE_VCPU"))?;
        let tsc_khz = fd.get_tsc_khz().map_err(VcpuError::kvm("GET_TSC_KHZ"))?;
        let cpuid = for_vcpu(&template.cpuid, index, cpus, tsc_khz);
        fd.set_cpuid2(&to_kvm(&cpuid)?).map_err(VcpuError::kvm("SET_CPUID2"))?;
        let access = StateAccess::new(vm, &fd, msr_candidates)?;
        let has = |msr: &&MsrV1| access.msrs().contains(&msr.index);
        msr::restore(&fd, &template.msrs.iter().filter(has).cloned().collect::<Vec<_>>())?;
        let msr_candidates = msr_candidates.to_vec();
        Ok(Self { index, fd, ram, cpuid, access, msr_candidates, rings: None })
    }

    /// The registers that say what the processor is. Not while it runs.
    pub fn feature_msrs(&self) -> Result<Vec<MsrV1>, VcpuError> {
        let has = |index: &u32| self.access.msrs().contains(index);
        msr::save(&self.fd, &[MSR_ARCH_CAPABILITIES].into_iter().filter(has).collect::<Vec<_>>())
    }

    /// Sets vCPU 0 to a kernel's entry; the others wait for SIPI.
    pub fn enter(&self, entry: &Entry) -> Result<(), VcpuError> {
        let mut lapic = self.fd.get_lapic().map_err(VcpuError::kvm("GET_LAPIC"))?;
        boot::configure_lapic(&mut lapic);
        self.fd.set_lapic(&lapic).map_err(VcpuError::kvm("SET_LAPIC"))?;
        if self.index != 0 {
            return Ok(());
        }
        let mut sregs = self.fd.get_sregs().map_err(VcpuError::kvm("GET_SREGS"))?;
        boot::configure_sregs(entry, &mut sregs);
        self.fd.set_sregs(&sregs).map_err(VcpuError::kvm("SET_SREGS"))?;
        let mut regs = self.fd.get_regs().map_err(VcpuError::kvm("GET_REGS"))?;
        boot::configure_regs(entry, &mut regs);
        self.fd.set_regs(&regs).map_err(VcpuError::kvm("SET_REGS"))
    }

    /// Frequency of the TSC that the guest sees.
    pub fn tsc_khz(&self) -> Result<u32, VcpuError> {
        self.fd.get_tsc_khz().map_err(VcpuError::kvm("GET_TSC_KHZ"))
    }

    /// Guest TSC minus the host's, where the host can say.
    pub fn tsc_offset(&self) -> Option<u64> {
        kvm::get_tsc_offset(&self.fd).ok()
    }

    /// What the destination must be able to give.
    pub fn access(&self) -> &StateAccess {
        &self.access
    }

    /// CPUID as the guest sees it.
    pub fn cpuid(&self) -> &[CpuidV1] {
        &self.cpuid
    }

    /// The whole state. Stopped only.
    pub fn save(&mut self) -> Result<VcpuV1, VcpuError> {
        self.access.save(&self.fd, &self.cpuid)
    }

    /// Is this state possible here?
    pub fn validate(&self, saved: &VcpuV1) -> Result<(), VcpuError> {
        self.access.validate(saved)
    }

    /// Takes over a saved state; see [`StateAccess::restore`]. Before the first run only.
    pub fn restore(&mut self, saved: &VcpuV1, tsc_offset: Option<u64>) -> Result<(), VcpuError> {
        if saved.cpuid != self.cpuid {
            self.fd.set_cpuid2(&to_kvm(&saved.cpuid)?).map_err(VcpuError::kvm("SET_CPUID2"))?;
            self.cpuid.clone_from(&saved.cpuid);
            // Which registers can be read depends on CPUID (Linux 6.13).
            self.access.find_msrs(&self.fd, &self.msr_candidates)?;
        }
        self.access.restore(&self.fd, saved, tsc_offset)
    }

    /// KVM's handle.
    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// It has a dirty ring, one of these: it makes room when its own is full.
    pub(crate) fn fill_rings(&mut self, rings: Arc<DirtyRings>) {
        self.rings = Some(rings);
    }

    /// Tells the guest that it was stopped, so that its watchdogs don't bark (KVM_KVMCLOCK_CTRL). A guest
    /// without kvmclock has no use for it, which is not an error.
    pub fn announce_stop(&self) {
        if let Err(error) = self.fd.kvmclock_ctrl() {
            tracing::debug!(vcpu = self.index, %error, "no kvmclock to tell of the stop");
        }
    }

    /// Enters the guest once and serves its exit.
    #[allow(unsafe_code, reason = "the size of a port access is in the exit's union")]
    pub(super) fn step(&mut self, bus: &dyn Bus) -> Step {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let (start, length) = (data.as_ptr(), data.len());
                // SAFETY: after KVM_EXIT_IO the member `io` is valid, and the data lies in the same mapping
                // of the vCPU, which nobody else touches before the next KVM_RUN.
                let (size, data) = unsafe {
                    let size = self.fd.get_kvm_run().__bindgen_anon_1.io.size;
                    (usize::from(size), std::slice::from_raw_parts(start, length))
                };
                bus.port_write(port, size, data);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let (start, length) = (data.as_mut_ptr(), data.len());
                // SAFETY: as for IoOut; the borrow of `data` has ended, so this is the only reference.
                let (size, data) = unsafe {
                    let size = self.fd.get_kvm_run().__bindgen_anon_1.io.size;
                    (usize::from(size), std::slice::from_raw_parts_mut(start, length))
                };
                bus.port_read(port, size, data);
            }
            Ok(VcpuExit::MmioRead(gpa, data)) => bus.mmio_read(gpa, data),
            Ok(VcpuExit::MmioWrite(gpa, data)) => bus.mmio_write(gpa, data),
            Ok(VcpuExit::Intr) => return Step::Interrupted,
            Ok(VcpuExit::Shutdown) => {
                return Step::Ended(VcpuEvent::Fault(Box::new(fault::triple(
                    &mut self.fd,
                    &self.ram,
                    self.index,
                ))));
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => return self.system_event(kind),
            Ok(VcpuExit::InternalError) => {
                let fault = fault::internal_error(&mut self.fd, &self.ram, self.index);
                return Step::Ended(VcpuEvent::Fault(Box::new(fault)));
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return self.fault(format!(
                    "the processor refused to enter the guest: reason {reason:#x} on CPU {cpu}"
                ));
            }
            Ok(VcpuExit::Unsupported(kvm_bindings::KVM_EXIT_DIRTY_RING_FULL)) => {
                let made = self.rings.as_ref().map_or(Ok(()), |rings| rings.make_room(self.index));
                if let Err(error) = made {
                    return self.fault(format!("its dirty ring is full and can't be emptied: {error}"));
                }
            }
            Ok(other) => {
                let cause = format!("KVM exit that tern does not serve: {other:?}");
                return self.fault(cause);
            }
            Err(error) if error.errno() == libc::EINTR => return Step::Interrupted,
            // A vCPU that waited for SIPI wakes with EAGAIN: it is to be run again.
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) => return self.fault(format!("KVM_RUN failed: {error}")),
        }
        Step::Again
    }

    fn system_event(&mut self, kind: u32) -> Step {
        match kind {
            kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Step::Ended(VcpuEvent::PowerOff),
            kvm_bindings::KVM_SYSTEM_EVENT_RESET => Step::Ended(VcpuEvent::Reset),
            _ => self.fault(format!("KVM system event {kind}")),
        }
    }

    fn fault(&mut self, cause: String) -> Step {
        Step::Ended(VcpuEvent::Fault(Box::new(fault::plain(&mut self.fd, &self.ram, self.index, cause))))
    }
}
