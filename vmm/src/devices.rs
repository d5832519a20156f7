//! Which devices a machine has, where each is, and what it is connected to.

mod error;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kvm_ioctls::{IoEventAddress, VmFd};
use tern_devices::virtio::VirtioDevice as VirtioModel;
use tern_devices::{
    AcpiPm, Balloon, BalloonSize, Blk, BlkConfig, BytePort, Console, DiskActivity, DiskFailures, EventSource,
    GuestRam, I8042, Interrupt, MmioDevice, MmioTransport, Net, NetConfig, Part, QUEUE_NOTIFY_OFFSET, Rng,
    Rtc, Serial, Stateful, VmGenId, chip_parts, open_tap, part,
};
use uuid::Uuid;
use vm_memory::{GuestAddress, GuestMemoryError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::balloon::Air;
use crate::bus::SystemBus;
use crate::config::{self, DiskConfig, Incoming, VirtioDevice, VmConfig};
use crate::control::EventSink;
use crate::disk_locks::DiskLocks;
use crate::layout::{self, VirtioSlot};
use crate::lines::Lines;
use crate::memory::Behind;
use crate::platform::DeviceFactV1;

pub use self::error::DeviceError;

/// One file as two disks: each would be written behind the other's back. Readers alone do no harm.
fn check_shared(config: &VmConfig, files: &[File]) -> Result<(), DeviceError> {
    let mut seen: Vec<((u64, u64), &DiskConfig)> = Vec::new();
    for (disk, file) in config.disks.iter().zip(files) {
        let failed = |source| DeviceError::Disk { path: disk.path.clone(), source };
        let found = file.metadata().map_err(failed)?;
        // A block device may have many nodes.
        let device = found.file_type().is_block_device();
        let identity = if device { (u64::MAX, found.rdev()) } else { (found.dev(), found.ino()) };
        let other = seen.iter().find(|(id, other)| *id == identity && !(disk.readonly && other.readonly));
        if let Some((_, other)) = other {
            return Err(DeviceError::DiskTwice { path: disk.path.clone(), other: other.path.clone() });
        }
        seen.push((identity, disk));
    }
    Ok(())
}

/// Opens the disks and interfaces of `config`. Errors name the flag.
fn open_backends(config: &VmConfig) -> Result<(Vec<File>, Vec<File>), DeviceError> {
    let open_disk = |disk: &DiskConfig| {
        let opened = File::options().read(true).write(!disk.readonly).open(&disk.path);
        opened.map_err(|source| DeviceError::Disk { path: disk.path.clone(), source })
    };
    let disks = config.disks.iter().map(open_disk).collect::<Result<Vec<_>, _>>()?;
    check_shared(config, &disks)?;
    let taps = config.nets.iter().map(|net| open_tap(&net.tap)).collect::<Result<_, _>>()?;
    Ok((disks, taps))
}

/// A disk of one machine, on the file that is open already.
fn disk_device(file: &File, disk: &DiskConfig) -> Result<Blk, DeviceError> {
    let id = disk.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let made = file.try_clone().and_then(|file| Blk::new(file, BlkConfig { read_only: disk.readonly, id }));
    made.map_err(|source| DeviceError::Disk { path: disk.path.clone(), source })
}

/// An interface of one machine, on the TAP that is open already.
fn net_device(tap: &File, net: &config::NetConfig) -> Result<Net, DeviceError> {
    let made = tap.try_clone().and_then(|tap| Net::new(tap, NetConfig { mac: net.mac.0 }));
    made.map_err(|source| DeviceError::Tap { name: net.tap.clone(), source })
}

/// The host's ends of a machine's devices, which outlive the machine: after a reset or a failed attempt to
/// receive a guest, the next machine is plugged into the same.
pub struct Plugs {
    /// The serial port's terminal, file or socket.
    pub serial: Arc<BytePort>,
    /// The virtio console's.
    pub console: Arc<BytePort>,
    /// The disks' files.
    disks: Vec<File>,
    /// Who owns the guest has them.
    locks: Arc<DiskLocks>,
    /// The interfaces' TAPs, which can be open only once.
    taps: Vec<File>,
    /// Written when the guest pulls its reset line.
    pub reset: Arc<EventFd>,
    /// Written when the guest switches itself off.
    pub power_off: Arc<EventFd>,
    /// Looks at the two lines.
    pub lines: Lines,
    /// Who is told what the balloon does.
    pub told: Option<EventSink>,
}

/// How long the last output may take at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

impl Plugs {
    /// Opens the disks and interfaces of `config`, and makes two fresh lines.
    pub fn new(
        config: &VmConfig,
        serial: Arc<BytePort>,
        console: Arc<BytePort>,
    ) -> Result<Self, DeviceError> {
        let (disks, taps) = open_backends(config)?;
        let pairs = config.disks.iter().zip(&disks);
        let locks = DiskLocks::new(
            pairs.map(|(disk, file)| Ok((file.try_clone()?, disk.path.clone(), disk.readonly))),
        );
        let locks = locks.map_err(|source| DeviceError::Virtio { device: "a disk's lock", source })?;
        // Whoever is to receive a guest takes them when it is this side's.
        if matches!(config.incoming, None | Some(Incoming::File(_))) {
            locks.take()?;
        }
        let locks = Arc::new(locks);
        let (reset, power_off) = (Arc::new(eventfd("i8042")?), Arc::new(eventfd("acpi-pm")?));
        let lines = Lines::new(Arc::clone(&reset), Arc::clone(&power_off));
        Ok(Self { serial, console, disks, locks, taps, reset, power_off, lines, told: None })
    }

    /// Forgets what the guest of the machine before did to its lines.
    pub fn renew(&mut self) {
        self.lines.take_reset();
        self.lines.take_power_off();
        self.lines = Lines::new(Arc::clone(&self.reset), Arc::clone(&self.power_off));
    }

    /// Lets the last output out.
    pub fn flush(&self) {
        for port in [&self.serial, &self.console] {
            if !port.flush(FLUSH_TIMEOUT) {
                tracing::warn!("output of the guest was left unread at the end");
            }
        }
    }
}

/// A device that the event loop serves.
pub type Source = Arc<Mutex<dyn EventSource>>;

/// What both sides of a migration must have alike.
#[derive(Debug, Clone)]
pub struct DeviceFact {
    /// As it travels.
    pub fact: DeviceFactV1,
    /// A destination takes the detail from the state, whatever it is.
    pub adopts: bool,
}

/// All devices of one machine.
pub struct DeviceSet {
    pm: Arc<Mutex<AcpiPm>>,
    generation: Arc<Mutex<VmGenId>>,
    virtio: Vec<Arc<Mutex<dyn MmioDevice>>>,
    nets: Vec<Arc<Mutex<MmioTransport<Net>>>>,
    balloon: Option<Arc<Mutex<MmioTransport<Balloon>>>>,
    disks: Vec<File>,
    disk_requests: Vec<DiskActivity>,
    locks: Arc<DiskLocks>,
    sources: Vec<Source>,
    parts: Vec<Box<dyn Part>>,
    facts: Vec<DeviceFact>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn eventfd(device: &'static str) -> Result<EventFd, DeviceError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| DeviceError::EventFd { device, source })
}

/// An edge-triggered line into the interrupt controllers.
fn line(vm: &VmFd, device: &'static str, gsi: u32) -> Result<Arc<dyn Interrupt>, DeviceError> {
    let event = eventfd(device)?;
    vm.register_irqfd(&event, gsi).map_err(|source| DeviceError::Irqfd { device, gsi, source })?;
    Ok(Arc::new(event))
}

fn share(event: &EventFd, device: &'static str) -> Result<EventFd, DeviceError> {
    event.try_clone().map_err(|source| DeviceError::EventFd { device, source })
}

/// A machine that waits for a guest learns its ID with it.
fn generation(config: &VmConfig, ram: &GuestRam, sci: &Arc<dyn Interrupt>) -> VmGenId {
    let id = config.incoming.is_none().then(|| config.generation_id.to_bytes_le());
    VmGenId::new(ram.clone(), GuestAddress(layout::VM_GENERATION_ID), Arc::clone(sci), id)
}

impl DeviceSet {
    /// Makes all devices of `config` and the bus they answer on.
    pub fn build(
        vm: &VmFd,
        config: &VmConfig,
        ram: &GuestRam,
        behind: &Behind,
        plugs: &Plugs,
    ) -> Result<(Self, SystemBus), DeviceError> {
        let mut bus = SystemBus::default();
        let serial = Serial::new(Arc::clone(&plugs.serial), line(vm, "serial", layout::SERIAL_GSI)?);
        let serial = Arc::new(Mutex::new(serial));
        bus.add_port(layout::SERIAL_PORT, layout::SERIAL_PORT_COUNT, serial.clone());
        let i8042 = Arc::new(Mutex::new(I8042::new(share(&plugs.reset, "i8042")?)));
        bus.add_port(layout::I8042_DATA_PORT, 5, i8042.clone());
        let below = config.memory_bytes.min(layout::HOLE_START);
        let rtc = Arc::new(Mutex::new(Rtc::new(below, config.memory_bytes - below)));
        bus.add_port(layout::RTC_PORT, 2, rtc.clone());
        let sci = line(vm, "acpi-pm", layout::SCI_GSI)?;
        let generation = Arc::new(Mutex::new(generation(config, ram, &sci)));
        bus.add_port(layout::GPE0_PORT, layout::GPE0_PORT_COUNT, generation.clone());
        let pm = Arc::new(Mutex::new(AcpiPm::new(sci, share(&plugs.power_off, "acpi-pm")?)));
        let pm_ports = layout::PM1A_EVENT_PORT_COUNT + layout::PM1A_CONTROL_PORT_COUNT;
        bus.add_port(layout::PM1A_EVENT_PORT, pm_ports, pm.clone());
        let mut parts = chip_parts(serial.clone(), i8042, rtc, pm.clone());
        parts.push(part(generation.clone(), 0));
        let (virtio, nets, disks, facts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let locks = Arc::clone(&plugs.locks);
        let (disk_requests, balloon, sources): (_, _, Vec<Source>) = (Vec::new(), None, vec![serial]);
        let set = Self {
            pm,
            generation,
            virtio,
            nets,
            balloon,
            disks,
            disk_requests,
            locks,
            sources,
            parts,
            facts,
        };
        let mut builder = Builder { vm, ram, behind, set, bus };
        for (device, slot) in config.virtio_slots() {
            builder.add(device, slot, config, plugs)?;
        }
        Ok((builder.set, builder.bus))
    }

    /// What the event loop serves.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// What migrates, in order.
    pub fn parts(&self) -> &[Box<dyn Part>] {
        &self.parts
    }

    /// What both sides of a migration must have alike.
    pub fn facts(&self) -> &[DeviceFact] {
        &self.facts
    }

    /// Presses the power button; `false` if the guest doesn't listen to it.
    pub fn press_power_button(&self) -> bool {
        lock(&self.pm).press_power_button()
    }

    /// The guest's VM generation ID; none if the tern that booted it had none.
    pub fn generation_id(&self) -> Option<Uuid> {
        lock(&self.generation).id().map(Uuid::from_bytes_le)
    }

    /// Tells a guest that goes on from a file that it does: gives it a new VM generation ID, in its memory and by
    /// an event. To be called behind the load of its state and before it starts; not for a guest that moves.
    pub fn new_generation(&self) -> Result<(), GuestMemoryError> {
        lock(&self.generation).change(Uuid::new_v4().to_bytes_le())
    }

    /// Stops all use of guest memory; returns when nothing is under way.
    pub fn pause(&self) {
        self.virtio.iter().for_each(|device| lock(device).pause());
    }

    /// Goes on, looking at every queue once: a buffer that came just before the stop gets no second kick.
    pub fn resume(&self) {
        self.virtio.iter().for_each(|device| lock(device).resume());
    }

    /// Has it any disk?
    pub fn has_disks(&self) -> bool {
        !self.disks.is_empty()
    }

    /// The locks of its disks.
    pub fn locks(&self) -> &DiskLocks {
        &self.locks
    }

    /// Requests that failed on this host, of all disks.
    pub fn disk_failures(&self) -> DiskFailures {
        let mut all = DiskFailures::default();
        for DiskFailures { count, latest } in self.disk_requests.iter().map(DiskActivity::failures) {
            all.count = all.count.saturating_add(count);
            all.latest = latest.or(all.latest);
        }
        all
    }

    /// Puts what the guest has written on its disks where another host can read it: the destination's page
    /// cache knows nothing of this host's. Waits for the requests that are under way.
    pub fn sync_disks(&self) -> io::Result<()> {
        self.disk_requests.iter().for_each(DiskActivity::wait_for_present);
        self.disks.iter().try_for_each(File::sync_data)
    }

    /// Can each disk be read now, in the order of the configuration? A share can have gone since it was opened.
    pub fn disks_readable(&self) -> Vec<io::Result<()>> {
        let first = |disk: &File| disk.read_at(&mut [0; 512], 0).map(drop);
        self.disks.iter().map(first).collect()
    }

    /// Forgets what this host's page cache holds of the disks: another host has written them since.
    #[allow(unsafe_code, reason = "posix_fadvise(2) takes a descriptor and three numbers")]
    pub fn forget_disk_caches(&self) {
        for disk in &self.disks {
            // SAFETY: touches no memory of ours.
            let error = unsafe { libc::posix_fadvise(disk.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            if error != 0 {
                let error = io::Error::from_raw_os_error(error);
                tracing::warn!(%error, "the page cache of a disk can't be dropped");
            }
        }
    }

    /// How large the balloon is; none: there is none.
    pub fn balloon(&self) -> Option<BalloonSize> {
        self.balloon.as_ref().map(|balloon| lock(balloon).device().size())
    }

    /// Asks the guest for so many pages. False: there is no balloon.
    pub fn set_balloon(&self, pages: u32) -> bool {
        let balloon = self.balloon.as_ref();
        balloon.inspect(|balloon| lock(balloon).reconfigure(|balloon| balloon.want(pages))).is_some()
    }

    /// The interfaces' addresses, which a guest that came brought along.
    pub fn macs(&self) -> Vec<[u8; 6]> {
        self.nets.iter().map(|net| lock(net).device().mac()).collect()
    }

    /// Gives interface `index` another address: before the guest starts. False: there is no such interface.
    pub fn set_mac(&self, index: usize, mac: [u8; 6]) -> bool {
        let net = self.nets.get(index);
        net.inspect(|net| lock(net).reconfigure(|net| net.set_mac(mac))).is_some()
    }

    /// Tells the networks where the guest is now, a few times, from a thread of its own.
    pub fn announce(&self) {
        if self.nets.is_empty() {
            return;
        }
        let nets: Vec<_> = self.nets.iter().map(Arc::downgrade).collect();
        let started = std::thread::Builder::new().name("announce".into()).spawn(move || announce(&nets));
        if let Err(error) = started {
            tracing::warn!(%error, "the guest's new place can't be announced to its networks");
        }
    }
}

/// When the announcements are sent, after the one before: QEMU's rhythm of 50 ms and 100 ms more each time,
/// since a switch may take a while to bring up a port.
const ANNOUNCE_PAUSES_MS: [u64; 5] = [0, 50, 150, 250, 350];

/// The interfaces are held weakly: a machine that ends meanwhile must be able to close its TAPs.
fn announce(nets: &[Weak<Mutex<MmioTransport<Net>>>]) {
    for pause_ms in ANNOUNCE_PAUSES_MS {
        std::thread::sleep(Duration::from_millis(pause_ms));
        for net in nets.iter().filter_map(Weak::upgrade) {
            if let Err(error) = lock(&net).device().self_announce() {
                tracing::warn!(%error, "the guest's new place could not be announced");
            }
        }
    }
}

/// Adds virtio devices to a set.
struct Builder<'a> {
    vm: &'a VmFd,
    ram: &'a GuestRam,
    behind: &'a Behind,
    set: DeviceSet,
    bus: SystemBus,
}

impl Builder<'_> {
    fn add(
        &mut self,
        device: VirtioDevice,
        slot: VirtioSlot,
        config: &VmConfig,
        plugs: &Plugs,
    ) -> Result<(), DeviceError> {
        match device {
            VirtioDevice::Rng => {
                let rng =
                    Rng::new().map_err(|source| DeviceError::Virtio { device: "virtio-rng", source })?;
                self.virtio("virtio-rng", rng, 0, slot)?;
            }
            VirtioDevice::Console => {
                self.virtio("virtio-console", Console::new(Arc::clone(&plugs.console)), 0, slot)?;
            }
            VirtioDevice::Balloon => {
                self.fact("virtio-balloon", 0, "free page reporting".to_owned(), false);
                let air = Air::new(self.behind.reclaimer(), config.memory_bytes, plugs.told.clone());
                let balloon = self.virtio("virtio-balloon", Balloon::new(Arc::new(air)), 0, slot)?;
                self.set.balloon = Some(balloon);
            }
            VirtioDevice::Disk(index) => {
                let (Some(disk), Some(file)) = (config.disks.get(index), plugs.disks.get(index)) else {
                    return Ok(());
                };
                let blk = disk_device(file, disk)?;
                let clone = file.try_clone();
                self.set
                    .disks
                    .push(clone.map_err(|source| DeviceError::Disk { path: disk.path.clone(), source })?);
                let access = if disk.readonly { "read-only" } else { "writable" };
                let detail = format!("{} sectors, {access}", blk.sectors());
                self.set.disk_requests.push(blk.activity());
                self.fact("virtio-blk", index, detail, false);
                self.virtio("virtio-blk", blk, index, slot)?;
            }
            VirtioDevice::Net(index) => {
                let (Some(net), Some(tap)) = (config.nets.get(index), plugs.taps.get(index)) else {
                    return Ok(());
                };
                self.fact("virtio-net", index, format!("mac {}", net.mac), !net.mac_given);
                let net = self.virtio("virtio-net", net_device(tap, net)?, index, slot)?;
                self.set.nets.push(net);
            }
        }
        Ok(())
    }

    fn fact(&mut self, name: &str, index: usize, detail: String, adopts: bool) {
        let fact = DeviceFactV1 { name: name.to_owned(), instance: index as u32, detail };
        self.set.facts.push(DeviceFact { fact, adopts });
    }

    fn virtio<D: VirtioModel>(
        &mut self,
        device: &'static str,
        model: D,
        instance: usize,
        slot: VirtioSlot,
    ) -> Result<Arc<Mutex<MmioTransport<D>>>, DeviceError>
    where
        MmioTransport<D>: MmioDevice + Stateful,
    {
        let interrupt = line(self.vm, device, slot.gsi)?;
        let transport = MmioTransport::new(model, self.ram.clone(), interrupt)
            .map_err(|source| DeviceError::Virtio { device, source })?;
        let gpa = slot.gpa + QUEUE_NOTIFY_OFFSET;
        for (queue, event) in (0u32..).zip(transport.queue_events()) {
            let registered = self.vm.register_ioevent(event, &IoEventAddress::Mmio(gpa), queue);
            registered.map_err(|source| DeviceError::Ioeventfd { device, gpa, source })?;
        }
        let transport = Arc::new(Mutex::new(transport));
        self.bus.add_mmio(slot.gpa, slot.len, transport.clone());
        self.set.virtio.push(transport.clone());
        self.set.sources.push(transport.clone());
        self.set.parts.push(part(transport.clone(), instance as u32));
        Ok(transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_is_no_two_disks_unless_nobody_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a"), [0; 512]).unwrap();
        std::fs::write(path("b"), [0; 512]).unwrap();
        std::fs::hard_link(path("a"), path("linked")).unwrap();
        let open = |disks: [(&str, bool); 2]| {
            let disks = disks.map(|(name, readonly)| DiskConfig { path: path(name), readonly }).to_vec();
            open_backends(&VmConfig { disks, ..VmConfig::new(64 << 20) }).map(|_| ())
        };
        open([("a", false), ("b", false)]).unwrap();
        open([("a", true), ("linked", true)]).unwrap();
        for readonly in [false, true] {
            let text = open([("a", readonly), ("linked", false)]).unwrap_err().to_string();
            assert!(
                text.contains("/linked: it is the same file as --disk") && text.contains("/a,"),
                "{text}"
            );
        }
    }
}
