//! Devices: a saved state is taken, and then a guest does with registers and rings whatever it likes.
//!
//! ```text
//! length of the state u16 | state (none: as after power-on) | steps of 8 bytes
//! step = what u8 | place u24 | value u32
//! ```
//!
//! However a guest has left a device, its state must travel to another one and be the same there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, OnceLock};

use tern_devices::virtio::{Segment, VirtioDevice};
use tern_devices::{
    AcpiPm, Balloon, Blk, BlkConfig, BusDevice, BytePort, Console, EventSource, GuestRam, I8042, MmioDevice,
    MmioTransport, Net, NetConfig, PortTarget, Reclaim, Rng, Rtc, Serial, Stateful,
};
use tern_schema::{decode_record, encode_record};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempfile::TempFile;

use super::{Target, Verdict};

const STEP_BYTES: usize = 8;
/// More teach nothing new, and an input of them all takes too long.
const STEPS_MAX: usize = 512;
const RAM_BYTES: usize = 64 << 10;
/// Rings and buffers, so that a few bytes of input reach them, and as much outside of memory.
const PLACE_MASK: u64 = 0x1_ffff;
const DISK_BYTES: u64 = 64 << 10;
/// Packet buffers and the like.
const ALLOWANCE: (usize, usize) = (1 << 20, 64);

const WRITE: u8 = 0;
const READ: u8 = 1;
const MEMORY: u8 = 2;
const EVENTS: u8 = 3;
const REST: u8 = 4;
const GO_ON: u8 = 5;
const MOVE: u8 = 6;
const KINDS: u8 = 7;

pub(super) fn targets() -> Vec<Target> {
    vec![
        target("device-serial", |bytes| run(&serial, bytes), || chip_seeds(&serial)),
        target("device-i8042", |bytes| run(&i8042, bytes), || chip_seeds(&i8042)),
        target("device-rtc", |bytes| run(&rtc, bytes), || chip_seeds(&rtc)),
        target("device-acpi-pm", |bytes| run(&acpi_pm, bytes), || chip_seeds(&acpi_pm)),
        target("device-virtio-balloon", |bytes| run(&balloon, bytes), || virtio_seeds(3)),
        target("device-virtio-rng", |bytes| run(&rng, bytes), || virtio_seeds(1)),
        target("device-virtio-console", |bytes| run(&console, bytes), || virtio_seeds(2)),
        target("device-virtio-net", |bytes| run(&net, bytes), || virtio_seeds(2)),
        target("device-virtio-blk", |bytes| run(&blk, bytes), || virtio_seeds(1)),
    ]
}

fn target(name: &str, run: fn(&[u8]) -> Verdict, seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target::new(name, "a device's state, and what a guest then does to it", ALLOWANCE, run, seeds)
}

/// What a step can do with a device.
trait Device: Stateful + BusDevice {
    fn events(&mut self) {}
    fn rest(&mut self) {}
    fn go_on(&mut self) {}
}

impl Device for I8042 {}
impl Device for Rtc {}
impl Device for AcpiPm {}
impl Device for Serial {
    fn events(&mut self) {
        self.fds().into_iter().for_each(|(_, token)| self.ready(token));
    }
}
impl<D: VirtioDevice> Device for MmioTransport<D> {
    fn events(&mut self) {
        self.fds().into_iter().for_each(|(_, token)| self.ready(token));
    }
    fn rest(&mut self) {
        self.pause();
    }
    fn go_on(&mut self) {
        self.resume();
    }
}

fn event() -> Option<EventFd> {
    EventFd::new(EFD_NONBLOCK).ok()
}

/// A port to nowhere; it has a thread, so one serves all.
fn port() -> Option<Arc<BytePort>> {
    static PORT: OnceLock<Option<Arc<BytePort>>> = OnceLock::new();
    PORT.get_or_init(|| BytePort::new(PortTarget::Null).ok()).clone()
}

fn serial(_: &GuestRam) -> Option<Serial> {
    Some(Serial::new(port()?, Arc::new(event()?)))
}

fn i8042(_: &GuestRam) -> Option<I8042> {
    Some(I8042::new(event()?))
}

fn rtc(_: &GuestRam) -> Option<Rtc> {
    Some(Rtc::new(64 << 20, 0))
}

fn acpi_pm(_: &GuestRam) -> Option<AcpiPm> {
    Some(AcpiPm::new(Arc::new(event()?), event()?))
}

fn transport<D: VirtioDevice>(device: D, ram: &GuestRam) -> Option<MmioTransport<D>> {
    MmioTransport::new(device, ram.clone(), Arc::new(event()?)).ok()
}

/// Takes nothing: only who is told what is of interest.
struct Nobody;

impl Reclaim for Nobody {
    fn take(&self, _: &GuestRam, _: Segment) {}
}

fn balloon(ram: &GuestRam) -> Option<MmioTransport<Balloon>> {
    transport(Balloon::new(Arc::new(Nobody)), ram)
}

fn rng(ram: &GuestRam) -> Option<MmioTransport<Rng>> {
    transport(Rng::new().ok()?, ram)
}

fn console(ram: &GuestRam) -> Option<MmioTransport<Console>> {
    transport(Console::new(port()?), ram)
}

fn net(ram: &GuestRam) -> Option<MmioTransport<Net>> {
    let (tap, peer) = UnixDatagram::pair().ok()?;
    // A frame waits for the guest.
    let _ = peer.send(&[0x5a; 80]);
    let tap = File::from(OwnedFd::from(tap));
    transport(Net::new(tap, NetConfig { mac: [2, 0, 0, 0, 0, 1] }).ok()?, ram)
}

fn blk(ram: &GuestRam) -> Option<MmioTransport<Blk>> {
    static DISK: OnceLock<Option<File>> = OnceLock::new();
    let disk = DISK.get_or_init(|| {
        let file = TempFile::new().ok()?.into_file();
        file.set_len(DISK_BYTES).ok().map(|()| file)
    });
    let config = BlkConfig { read_only: false, id: "disk".to_owned() };
    transport(Blk::new(disk.as_ref()?.try_clone().ok()?, config).ok()?, ram)
}

/// Did the device take the state, and end at work?
fn run<D: Device>(make: &dyn Fn(&GuestRam) -> Option<D>, bytes: &[u8]) -> Verdict {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Verdict::Refused };
    let (state, steps) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
    let Ok(ram) = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]) else { return Verdict::Refused };
    let Some(mut device) = make(&ram) else { return Verdict::Refused };
    if !state.is_empty() && !restore(&mut device, state) {
        return Verdict::Refused;
    }
    let mut rests = false;
    for [kind, place @ .., v0, v1, v2, v3] in steps.as_chunks::<STEP_BYTES>().0.iter().take(STEPS_MAX) {
        let [p0, p1, p2] = *place;
        let (place, value) = (u64::from(u32::from_le_bytes([p0, p1, p2, 0])), [*v0, *v1, *v2, *v3]);
        let width = if p2 == 0 { 4 } else { usize::from(p2 % 9) };
        match kind % KINDS {
            WRITE => {
                device.write(place & 0xfff, [value, value].concat().get(..width.min(8)).unwrap_or(&value))
            }
            READ => device.read(place & 0xfff, &mut vec![0xa5; width]),
            // Outside of memory there is nothing to write to.
            MEMORY => drop(ram.write_slice(&value, GuestAddress(place & PLACE_MASK))),
            EVENTS => device.events(),
            REST => {
                device.rest();
                rests = true;
            }
            GO_ON => {
                device.go_on();
                rests = false;
            }
            _ if rests => device = moved(&device, make(&ram)),
            _ => {}
        }
    }
    device.rest();
    let _ = moved(&device, make(&ram));
    Verdict::Accepted
}

/// A refused state has changed nothing.
fn restore<D: Device>(device: &mut D, state: &[u8]) -> bool {
    let before = encode_record(&device.save());
    let Ok(saved) = decode_record::<D::Saved>(state) else { return false };
    let checked = device.check(&saved).is_ok();
    let taken = device.restore(saved).is_ok();
    assert!(checked || !taken, "a state was taken that the check refuses");
    assert!(taken || encode_record(&device.save()) == before, "a refused state has changed the device");
    taken
}

/// The state of a device at rest is taken by another one.
fn moved<D: Device>(device: &D, to: Option<D>) -> D {
    let saved = device.save();
    let written = encode_record(&saved);
    let Some(mut next) = to else { panic!("the host has no descriptors left") };
    next.restore(saved).unwrap_or_else(|error| panic!("a device's own state is refused: {error}"));
    assert!(encode_record(&next.save()) == written, "a device's own state has changed on the way");
    next
}

fn step(kind: u8, place: u32, value: u32) -> [u8; STEP_BYTES] {
    let ([p0, p1, p2, _], [v0, v1, v2, v3]) = (place.to_le_bytes(), value.to_le_bytes());
    [kind, p0, p1, p2, v0, v1, v2, v3]
}

/// Its own state, and each of its registers read and written.
fn chip_seeds<D: Device>(make: &dyn Fn(&GuestRam) -> Option<D>) -> Vec<Vec<u8>> {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).ok();
    let device = ram.and_then(|ram| make(&ram));
    let state = device.map(|device| encode_record(&device.save())).unwrap_or_default();
    let mut seed = (state.len() as u16).to_le_bytes().to_vec();
    seed.extend(state);
    let width_1 = 1 << 16;
    for register in 0..8 {
        seed.extend(step(READ, register | width_1, 0));
        seed.extend(step(WRITE, register | width_1, 0x5a));
        seed.extend(step(EVENTS, 0, 0));
    }
    vec![seed]
}

/// A driver as it should be: it negotiates, sets up `queues`, offers a buffer in each and kicks; the device moves
/// and goes on.
fn virtio_seeds(queues: u32) -> Vec<Vec<u8>> {
    let mut steps =
        vec![step(WRITE, 0x70, 3), step(WRITE, 0x24, 1), step(WRITE, 0x20, 1), step(WRITE, 0x70, 0xb)];
    for queue in 0..queues {
        let table = 0x1000 + queue * 0x3000;
        steps.extend([step(WRITE, 0x30, queue), step(WRITE, 0x38, 16)]);
        for (register, at) in [(0x80, 0), (0x90, 0x1000), (0xa0, 0x2000)] {
            steps.extend([step(WRITE, register, table + at), step(WRITE, register + 4, 0)]);
        }
        steps.push(step(WRITE, 0x44, 1));
        // A chain of two: readable, then writable.
        let buffers = [(0xa000, 64, 1u32, 1u32), (0xb000, 600, 2, 0)];
        for (index, (gpa, bytes, flags, next)) in (0u32..).zip(buffers) {
            let descriptor = table + index * 16;
            steps.push(step(MEMORY, descriptor, gpa));
            steps.push(step(MEMORY, descriptor + 8, bytes));
            steps.push(step(MEMORY, descriptor + 12, flags | next << 16));
        }
        steps.push(step(MEMORY, table + 0x1000, 1 << 16));
    }
    steps.push(step(WRITE, 0x70, 0xf));
    for queue in 0..queues {
        steps.extend([step(WRITE, 0x50, queue), step(EVENTS, 0, 0)]);
    }
    steps.extend([step(REST, 0, 0), step(MOVE, 0, 0), step(GO_ON, 0, 0), step(EVENTS, 0, 0)]);
    vec![[vec![0, 0], steps.concat()].concat()]
}
