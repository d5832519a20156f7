//! The plan of `tern run --dry-run`: everything that would be run, as data and for a person. Made by the
//! loader itself, into memory that no machine will see.

use std::error::Error;
use std::fmt;
use std::ops::Range;

use serde::Serialize;
use vm_memory::GuestMemoryMmap;

use crate::boot::{self, BootImage, BootSource};
use crate::config::{ByteSize, VirtioDevice, VmConfig};
use crate::host::{KvmKind, Needs, needs};
use crate::layout;
use crate::machine;

/// The plan.
#[derive(Debug, Serialize)]
pub struct Plan {
    config: VmConfig,
    kvm: KvmKind,
    host_needs: Needs,
    boot: Option<BootPlan>,
    memory_map: Vec<Area>,
    devices: Vec<Device>,
}

#[derive(Debug, Serialize)]
struct BootPlan {
    kernel: String,
    kind: String,
    entry_gpa: u64,
    initrd: Option<String>,
    cmdline: String,
}

/// A piece of the guest-physical address space.
#[derive(Debug, Serialize)]
struct Area {
    start: u64,
    end: u64,
    what: String,
}

#[derive(Debug, Serialize)]
struct Device {
    what: String,
    place: String,
    gsi: Option<u32>,
}

impl Plan {
    /// Loads the kernel as for a run, and notes what went where.
    ///
    /// # Errors
    /// Whatever would stop the run before KVM is asked.
    pub fn of(config: &VmConfig) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let kvm = KvmKind::detect();
        let host_needs = needs(kvm);
        let mut memory_map = fixed_areas(config);
        let boot = plan_boot(config, &host_needs, &mut memory_map)?;
        memory_map.sort_unstable_by_key(|area| (area.start, u64::MAX - area.end));
        Ok(Self { config: config.clone(), kvm, host_needs, boot, memory_map, devices: devices(config) })
    }
}

fn plan_boot(
    config: &VmConfig,
    host_needs: &Needs,
    map: &mut Vec<Area>,
) -> Result<Option<BootPlan>, Box<dyn Error + Send + Sync>> {
    let Some(boot) = &config.boot else { return Ok(None) };
    let files = machine::plan(boot, &host_needs.kernel_words)?;
    let slots: Vec<_> = config.virtio_slots().into_iter().map(|(_, slot)| slot).collect();
    let memory = GuestMemoryMmap::<()>::from_ranges(&layout::ram_regions(config.memory_bytes))
        .map_err(|error| format!("--memory {}: can't be mapped: {error}", ByteSize(config.memory_bytes)))?;
    let (kernel_name, kernel) = match &files.kernel {
        Some(path) => (path.display().to_string(), BootImage::File(path)),
        None => (
            "pulse (inside tern)".to_owned(),
            BootImage::Bytes { name: "pulse", bytes: tern_guest_images::PULSE },
        ),
    };
    let source = BootSource {
        kernel,
        initrd: files.initrd.as_deref().map(BootImage::File),
        cmdline: &files.cmdline,
        host_words: &files.host_words,
        cpus: config.cpus,
        virtio: &slots,
        generation_id: config.generation_id,
    };
    let loaded = boot::load(&memory, &source)?;
    let area =
        |range: &Range<u64>, what: &str| Area { start: range.start, end: range.end, what: what.to_owned() };
    map.push(area(&loaded.kernel_range, "  kernel"));
    if let Some(range) = &loaded.initrd_range {
        map.push(area(range, "  initrd"));
    }
    Ok(Some(BootPlan {
        kernel: kernel_name,
        kind: loaded.kernel.to_string(),
        entry_gpa: loaded.entry.rip,
        initrd: files.initrd.as_deref().map(|path| path.display().to_string()),
        cmdline: loaded.cmdline,
    }))
}

fn fixed_areas(config: &VmConfig) -> Vec<Area> {
    let area = |start, end, what: &str| Area { start, end, what: what.to_owned() };
    let ram = |(start, bytes): (vm_memory::GuestAddress, usize)| area(start.0, start.0 + bytes as u64, "RAM");
    let mut map: Vec<Area> = layout::ram_regions(config.memory_bytes).into_iter().map(ram).collect();
    let virtio_bytes = config.virtio_slots().len() as u64 * layout::VIRTIO_MMIO_BYTES;
    map.extend([
        area(layout::LOW_RAM_END, layout::KERNEL_START, "  tables: MP, ACPI (reserved)"),
        area(layout::CMDLINE, layout::CMDLINE + layout::CMDLINE_MAX_BYTES as u64 + 1, "  command line"),
        area(layout::VIRTIO_MMIO, layout::VIRTIO_MMIO + virtio_bytes, "virtio-mmio"),
        area(layout::IOAPIC, layout::IOAPIC + layout::PAGE_BYTES, "IOAPIC"),
        area(layout::LAPIC, layout::LAPIC + layout::PAGE_BYTES, "local APIC"),
        area(
            layout::KVM_IDENTITY_MAP,
            layout::KVM_IDENTITY_MAP + layout::KVM_PAGES_BYTES,
            "KVM's own (reserved)",
        ),
    ]);
    map
}

fn devices(config: &VmConfig) -> Vec<Device> {
    let port = |what: &str, first: u16, count: u8, gsi| {
        let place = format!("port {first:#05x}-{:#05x}", u32::from(first) + u32::from(count) - 1);
        Device { what: what.to_owned(), place, gsi }
    };
    let serial = format!("serial ({})", serde_json::json!(config.serial).to_string().replace('"', ""));
    let mut all = vec![
        port(&serial, layout::SERIAL_PORT, layout::SERIAL_PORT_COUNT, Some(layout::SERIAL_GSI)),
        port("RTC", layout::RTC_PORT, 2, Some(layout::RTC_GSI)),
        port("i8042 (reset)", layout::I8042_COMMAND_PORT, 1, None),
        port("ACPI events", layout::PM1A_EVENT_PORT, layout::PM1A_EVENT_PORT_COUNT, Some(layout::SCI_GSI)),
        port("ACPI control", layout::PM1A_CONTROL_PORT, layout::PM1A_CONTROL_PORT_COUNT, None),
    ];
    let virtio = |(device, slot): (VirtioDevice, layout::VirtioSlot)| Device {
        what: virtio_name(config, device),
        place: format!("mmio {:#x}", slot.gpa),
        gsi: Some(slot.gsi),
    };
    all.extend(config.virtio_slots().into_iter().map(virtio));
    all
}

fn virtio_name(config: &VmConfig, device: VirtioDevice) -> String {
    match device {
        VirtioDevice::Rng => "virtio-rng".to_owned(),
        VirtioDevice::Balloon => "virtio-balloon".to_owned(),
        VirtioDevice::Console => "virtio-console".to_owned(),
        VirtioDevice::Disk(index) => match config.disks.get(index) {
            Some(disk) if disk.readonly => format!("virtio-blk ({}, read-only)", disk.path.display()),
            Some(disk) => format!("virtio-blk ({})", disk.path.display()),
            None => "virtio-blk".to_owned(),
        },
        VirtioDevice::Net(index) => match config.nets.get(index) {
            Some(net) => format!("virtio-net (tap {}, {})", net.tap, net.mac),
            None => "virtio-net".to_owned(),
        },
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        writeln!(f, "machine      {} ({})", config.name, config.uuid)?;
        let model = serde_json::json!(config.cpu).to_string().replace('"', "");
        writeln!(f, "CPU          {} x {model}, {}", config.cpus, self.kvm)?;
        writeln!(f, "memory       {} ({})", ByteSize(config.memory_bytes), config.memory_kind)?;
        match (&self.boot, &config.incoming) {
            (Some(boot), _) => {
                writeln!(f, "kernel       {}: {}, at {:#x}", boot.kernel, boot.kind, boot.entry_gpa)?;
                writeln!(f, "initrd       {}", boot.initrd.as_deref().unwrap_or("none"))?;
                writeln!(f, "cmdline      {}", boot.cmdline)?;
            }
            (None, incoming) => writeln!(f, "incoming     {}", serde_json::json!(incoming))?,
        }
        if !self.host_needs.reason.is_empty() {
            let hidden: Vec<String> = self.host_needs.hidden.iter().map(ToString::to_string).collect();
            writeln!(f, "added here   {}", self.host_needs.kernel_words.join(" "))?;
            writeln!(f, "hidden       {}", hidden.join(" "))?;
            writeln!(f, "because      {}", self.host_needs.reason)?;
        }
        if let Some(path) = &config.control {
            writeln!(f, "control      {}", path.display())?;
        }
        writeln!(f, "\nmemory map")?;
        for Area { start, end, what } in &self.memory_map {
            writeln!(f, "  {start:#012x}-{:#012x} {what}", end.saturating_sub(1))?;
        }
        writeln!(f, "\ndevices")?;
        for Device { what, place, gsi } in &self.devices {
            let gsi = gsi.map_or_else(|| "-".to_owned(), |gsi| gsi.to_string());
            writeln!(f, "  {place:<18} GSI {gsi:<3} {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BootConfig, DiskConfig, KernelSource};

    fn pulse() -> VmConfig {
        let kernel = KernelSource::Image("pulse".into());
        let boot = BootConfig { kernel, initrd: None, cmdline: "rate=max".into() };
        let disks = vec![DiskConfig { path: "d.img".into(), readonly: true }];
        VmConfig { boot: Some(boot), disks, cpus: 2, ..VmConfig::new(64 << 20) }
    }

    #[test]
    fn the_plan_of_pulse_is_whole() {
        let plan = Plan::of(&pulse()).unwrap();
        let text = plan.to_string();
        for part in [
            "rate=max",
            "PVH",
            "64 MiB",
            "virtio-blk (d.img, read-only)",
            "port 0x3f8-0x3ff",
            "GSI 4",
            "kernel",
        ] {
            assert!(text.contains(part), "no {part} in:\n{text}");
        }
        let json = serde_json::to_value(&plan).unwrap();
        assert_eq!(json["config"]["memory_bytes"], 64 << 20);
        assert_eq!(json["devices"].as_array().map(Vec::len), Some(5 + 3));
    }

    #[test]
    fn a_missing_kernel_is_found_before_the_run() {
        let kernel = KernelSource::File("/nonexistent/vmlinux".into());
        let boot = Some(BootConfig { kernel, initrd: None, cmdline: String::new() });
        let error = Plan::of(&VmConfig { boot, ..pulse() }).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/vmlinux"), "{error}");
    }

    #[test]
    fn a_destination_has_a_plan_without_a_kernel() {
        let incoming = Some("tcp:localhost:1".parse().unwrap());
        let plan = Plan::of(&VmConfig { boot: None, incoming, ..pulse() }).unwrap();
        assert!(plan.to_string().contains("tcp:localhost:1"));
    }
}
