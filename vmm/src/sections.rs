//! The table of what migrates, in the order in which it is saved, and how it is taken back.
//!
//! | order | section | why there |
//! |---|---|---|
//! | 1 | `vcpu` each | first: reading them may run pending APIC events |
//! | 2 | `clock` | right behind the vCPUs' TSCs |
//! | 3 | `pit`, `pic` 0 and 1, `ioapic` | behind the vCPUs' LAPICs, into which they deliver |
//! | 4 | chips, then virtio devices in slot order | last: saving one may still raise an interrupt |
//!
//! Back: all is parsed, then all is checked, then applied: the clock first, because the vCPUs' TSC offsets
//! follow from it, then vCPUs, then the chips, and the devices last, which raise their interrupts again.
//! Nothing of a machine is left out silently: a section that is missing or left over is an error.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_ioctls::VmFd;
use tern_devices::{Apply, Part, RestoreError};
use tern_migration::SectionOffer;
use tern_schema::{Section, SectionRange, StateError, StateSet};
use thiserror::Error;

use crate::kvm::{ChipError, ClockV1, IoapicV1, PicV1, PitV1};
use crate::laps::{Laps, Step};
use crate::vcpu::{VcpuError, VcpuSet, VcpuV1};

/// Why a machine's state could not be saved or taken.
#[derive(Debug, Error)]
pub enum SectionError {
    /// A section is missing, doubled, damaged or left over.
    #[error(transparent)]
    State(#[from] StateError),
    /// A vCPU.
    #[error("section vcpu/{instance}")]
    Vcpu {
        /// Which.
        instance: usize,
        /// Why.
        #[source]
        source: VcpuError,
    },
    /// An in-kernel chip.
    #[error("section {name}/{instance}")]
    Chip {
        /// Section's name.
        name: &'static str,
        /// Which.
        instance: u32,
        /// Why.
        #[source]
        source: ChipError,
    },
    /// A device.
    #[error("section {name}/{instance}")]
    Device {
        /// Section's name.
        name: &'static str,
        /// Which.
        instance: u32,
        /// Why.
        #[source]
        source: RestoreError,
    },
}

const PICS: [u32; 2] = [0, 1];

/// All sections of a machine.
pub fn offers(vcpus: usize, devices: &[Box<dyn Part>]) -> Vec<SectionOffer> {
    let mut ranges: Vec<_> = (0..vcpus as u32).map(SectionRange::of::<VcpuV1>).collect();
    ranges.extend([SectionRange::of::<ClockV1>(0), SectionRange::of::<PitV1>(0)]);
    ranges.extend(PICS.map(SectionRange::of::<PicV1>));
    ranges.push(SectionRange::of::<IoapicV1>(0));
    ranges.extend(devices.iter().map(|part| part.offer()));
    ranges.into_iter().map(offer).collect()
}

fn offer(range: SectionRange) -> SectionOffer {
    let SectionRange { name, instance, oldest, newest, optional } = range;
    // What is as an older reader assumes needs no field.
    let oldest = (oldest != newest).then_some(oldest);
    SectionOffer {
        name: name.to_owned(),
        instance,
        version: newest,
        oldest,
        optional: optional.then_some(true),
    }
}

/// Why a machine can't be moved or saved now: what each part says that has state which no section holds.
pub fn blocked_reasons(devices: &[Box<dyn Part>]) -> Vec<String> {
    devices.iter().filter_map(|part| part.blocked()).collect()
}

fn chip(name: &'static str, instance: u32) -> impl Fn(ChipError) -> SectionError {
    move |source| SectionError::Chip { name, instance, source }
}

/// Saves a machine that stands still.
pub fn save(
    vm: &VmFd,
    vcpus: &VcpuSet,
    devices: &[Box<dyn Part>],
    state: &mut StateSet,
    laps: &mut Laps,
) -> Result<(), SectionError> {
    laps.start();
    let mut saved = |name, instance| laps.end(Step::Save, name, instance);
    for (instance, mut vcpu) in vcpus.iter().enumerate() {
        let vcpu = vcpu.save().map_err(|source| SectionError::Vcpu { instance, source })?;
        state.put(instance as u32, &vcpu)?;
        saved(VcpuV1::NAME, instance as u32);
    }
    state.put(0, &ClockV1::save(vm).map_err(chip(ClockV1::NAME, 0))?)?;
    saved(ClockV1::NAME, 0);
    state.put(0, &PitV1::save(vm).map_err(chip(PitV1::NAME, 0))?)?;
    saved(PitV1::NAME, 0);
    for instance in PICS {
        state.put(instance, &PicV1::save(vm, instance).map_err(chip(PicV1::NAME, instance))?)?;
        saved(PicV1::NAME, instance);
    }
    state.put(0, &IoapicV1::save(vm).map_err(chip(IoapicV1::NAME, 0))?)?;
    saved(IoapicV1::NAME, 0);
    for part in devices {
        part.put(state)?;
        let SectionRange { name, instance, .. } = part.offer();
        saved(name, instance);
    }
    Ok(())
}

/// A state that was parsed and checked, and can be applied.
pub struct Prepared {
    vcpus: Vec<VcpuV1>,
    clock: ClockV1,
    pit: PitV1,
    pics: Vec<(u32, PicV1)>,
    ioapic: IoapicV1,
    devices: Vec<(&'static str, u32, Apply)>,
}

/// Parses and checks a whole state. Changes nothing.
pub fn prepare(
    vcpus: &VcpuSet,
    devices: &[Box<dyn Part>],
    mut state: StateSet,
    laps: &mut Laps,
) -> Result<Prepared, SectionError> {
    laps.start();
    let mut checked = |name, instance| laps.end(Step::Check, name, instance);
    let mut parsed = Vec::with_capacity(vcpus.len());
    for (instance, vcpu) in vcpus.iter().enumerate() {
        let saved: VcpuV1 = state.take(instance as u32)?;
        vcpu.validate(&saved).map_err(|source| SectionError::Vcpu { instance, source })?;
        parsed.push(saved);
        checked(VcpuV1::NAME, instance as u32);
    }
    let clock = state.take(0)?;
    checked(ClockV1::NAME, 0);
    let pit: PitV1 = state.take(0)?;
    pit.validate().map_err(chip(PitV1::NAME, 0))?;
    checked(PitV1::NAME, 0);
    let mut pics = Vec::new();
    for instance in PICS {
        pics.push((instance, state.take(instance)?));
        checked(PicV1::NAME, instance);
    }
    let ioapic: IoapicV1 = state.take(0)?;
    ioapic.validate().map_err(chip(IoapicV1::NAME, 0))?;
    checked(IoapicV1::NAME, 0);
    let mut applies = Vec::with_capacity(devices.len());
    for part in devices {
        let SectionRange { name, instance, .. } = part.offer();
        let apply =
            part.prepare(&mut state).map_err(|source| SectionError::Device { name, instance, source })?;
        applies.push((name, instance, apply));
        checked(name, instance);
    }
    let skipped = state.finish()?;
    if skipped.fields + skipped.sections > 0 {
        tracing::info!(?skipped, "a newer tern sent optional state that this one does not know");
    }
    Ok(Prepared { vcpus: parsed, clock, pit, pics, ioapic, devices: applies })
}

impl Prepared {
    /// Applies the state to a machine that has never run.
    pub fn apply(self, vm: &VmFd, vcpus: &VcpuSet, laps: &mut Laps) -> Result<(), SectionError> {
        let mut applied = |name, instance| laps.end(Step::Apply, name, instance);
        let Self { vcpus: saved, clock, pit, pics, ioapic, devices } = self;
        let here = clock.restore(vm, now_ns()).map_err(chip(ClockV1::NAME, 0))?;
        applied(ClockV1::NAME, 0);
        // Where a host's TSC isn't known, vCPU 0 goes on from its TSC's value, and the others follow it exactly:
        // values written one after another would give each another offset.
        let mut shift = None;
        for (instance, (mut vcpu, saved)) in vcpus.iter().zip(&saved).enumerate() {
            let moved = |offset| clock.moved_tsc_offset(&here, offset, saved.tsc_khz);
            let shifted = |offset: u64| shift.map(|shift| offset.wrapping_add(shift));
            let tsc_offset = saved.tsc_offset.and_then(|offset| moved(offset).or_else(|| shifted(offset)));
            vcpu.restore(saved, tsc_offset).map_err(|source| SectionError::Vcpu { instance, source })?;
            let here = vcpu.tsc_offset().zip(saved.tsc_offset);
            shift = shift.or(here.map(|(here, there): (u64, u64)| here.wrapping_sub(there)));
            applied(VcpuV1::NAME, instance as u32);
        }
        pit.restore(vm).map_err(chip(PitV1::NAME, 0))?;
        applied(PitV1::NAME, 0);
        for (instance, pic) in pics {
            pic.restore(vm, instance).map_err(chip(PicV1::NAME, instance))?;
            applied(PicV1::NAME, instance);
        }
        ioapic.restore(vm).map_err(chip(IoapicV1::NAME, 0))?;
        applied(IoapicV1::NAME, 0);
        for (name, instance, apply) in devices {
            apply().map_err(|source| SectionError::Device { name, instance, source })?;
            applied(name, instance);
        }
        Ok(())
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
