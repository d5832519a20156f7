//! Which devices a machine has, where each is, and what it is connected to.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_ioctls::VmFd;
use tern_devices::{
    AcpiPm, BytePort, EventSource, GuestRam, I8042, Interrupt, Part, Rtc, Serial, part,
};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::SystemBus;
use crate::config::VmConfig;
use crate::layout;
use crate::lines::Lines;
use crate::platform::DeviceFactV1;

/// Why a device could not be made.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// No event descriptor.
    #[error("an eventfd for {device} can't be had")]
    EventFd {
        /// For which device.
        device: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// KVM doesn't take an interrupt line.
    #[error("KVM refuses interrupt line {gsi} of {device}")]
    Irqfd {
        /// Of which device.
        device: &'static str,
        /// The line.
        gsi: u32,
        /// KVM's reason.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// The host's ends of a machine's devices, which outlive the machine: after a reset or a failed attempt to
/// receive a guest, the next machine is plugged into the same.
pub struct Plugs {
    /// The serial port's terminal, file or socket.
    pub serial: Arc<BytePort>,
    /// The virtio console's.
    pub console: Arc<BytePort>,
    /// Written when the guest pulls its reset line.
    pub reset: Arc<EventFd>,
    /// Written when the guest switches itself off.
    pub power_off: Arc<EventFd>,
    /// Looks at the two lines.
    pub lines: Lines,
}

/// How long the last output may take at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

impl Plugs {
    /// Two ports and two fresh lines. Errors: no more file descriptors.
    pub fn new(serial: Arc<BytePort>, console: Arc<BytePort>) -> io::Result<Self> {
        let reset = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let power_off = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let lines = Lines::new(Arc::clone(&reset), Arc::clone(&power_off));
        Ok(Self { serial, console, reset, power_off, lines })
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

/// All devices of one machine.
pub struct DeviceSet {
    pm: Arc<Mutex<AcpiPm>>,
    sources: Vec<Source>,
    parts: Vec<Box<dyn Part>>,
    facts: Vec<DeviceFactV1>,
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

impl DeviceSet {
    /// Makes all devices of `config` and the bus they answer on.
    pub fn build(
        vm: &VmFd,
        config: &VmConfig,
        ram: &GuestRam,
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
        let pm = Arc::new(Mutex::new(AcpiPm::new(sci, share(&plugs.power_off, "acpi-pm")?)));
        let pm_ports = layout::PM1A_EVENT_PORT_COUNT + layout::PM1A_CONTROL_PORT_COUNT;
        bus.add_port(layout::PM1A_EVENT_PORT, pm_ports, pm.clone());
        let parts = vec![part(serial.clone(), 0), part(i8042, 0), part(rtc, 0), part(pm.clone(), 0)];
        let set = Self { pm, sources: vec![serial], parts, facts: Vec::new() };
        let _ = ram;
        Ok((set, bus))
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
    pub fn facts(&self) -> &[DeviceFactV1] {
        &self.facts
    }

    /// Presses the power button; `false` if the guest doesn't listen to it.
    pub fn press_power_button(&self) -> bool {
        self.pm.lock().unwrap_or_else(std::sync::PoisonError::into_inner).press_power_button()
    }

    /// Stops all use of guest memory; returns when nothing is under way.
    pub fn pause(&self) {}

    /// Goes on, looking at every queue once: a buffer that came just before the stop gets no second kick.
    pub fn resume(&self) {}

    /// Tells the networks where the guest is now.
    pub fn announce(&self) {}
}
