//! The network device (virtio 1.2, section 5.1): one queue pair on a TAP.
//!
//! ```text
//! guest -- queue 1 --> header + frame -- write(2) --> TAP --> host
//! guest <- queue 0 --- header + frame <-- read(2) --- TAP <-- host
//! ```
//!
//! Frames may leave checksums and segmentation to the other side, where the driver and the TAP agree. What
//! neither side has room for is dropped, as on a wire; only the one frame that has been read from the TAP
//! and has no buffer yet waits, and travels.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use tern_schema::record;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::mmio::VirtioMmioV1;
use super::{Broken, Chain, Queues, VirtioDevice};
use crate::RestoreError;

mod tap;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the tests' numbers are small, or wrap on purpose")]
mod tests;

pub use tap::{TapError, open_tap};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// `struct virtio_net_hdr_v1`.
const HEADER_BYTES: usize = 12;
/// Offset of `num_buffers` in it.
const HEADER_BUFFERS: usize = 10;
const ETHERNET_BYTES: usize = 14;
/// The largest IP packet, with Ethernet's and a VLAN's header.
const FRAME_MAX_BYTES: usize = 65_535 + ETHERNET_BYTES + 4;
const PACKET_MAX_BYTES: usize = HEADER_BYTES + FRAME_MAX_BYTES;
/// Frames that one call takes from the TAP before other devices get their turn.
const RECEIVE_BATCH: usize = 128;
/// MAC address and link status.
const CONFIG_BYTES: usize = 8;

const RECORD: &str = "NetV1";

record! {
    /// Saved state of [`Net`].
    pub struct NetV1 = "virtio-net" 1 {
        /// Registers and queues.
        [1] transport: VirtioMmioV1,
        /// The guest's MAC address, which it takes along.
        [2] mac: [u8; 6],
        /// Header and frame that have come for the guest and had no buffer yet.
        [3] waiting: Option<Vec<u8>>,
    }
}

/// How the interface is shown to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    /// MAC address; not a group's.
    pub mac: [u8; 6],
}

/// A network interface.
#[derive(Debug)]
pub struct Net {
    // Configuration.
    has_offloads: bool,
    // Glue.
    tap: File,
    outgoing: Vec<u8>,
    // State.
    /// Its first `waiting_bytes` are header and frame for the guest.
    packet: Vec<u8>,
    mac: [u8; 6],
    config: [u8; CONFIG_BYTES],
    waiting_bytes: usize,
    // From the negotiated features.
    merges_buffers: bool,
}

/// What happened to a frame for the guest.
enum Delivery {
    Done,
    NoBuffers,
}

impl Net {
    /// An interface on `tap`, from [`open_tap`]; a datagram socket that carries frames with virtio headers
    /// does as well, without offloads. Errors: the descriptor can't be made non-blocking.
    pub fn new(tap: File, config: NetConfig) -> io::Result<Self> {
        tap::set_nonblocking(&tap)?;
        let NetConfig { mac } = config;
        Ok(Self {
            has_offloads: tap::set_offload(&tap, 0).is_ok(),
            tap,
            outgoing: vec![0; PACKET_MAX_BYTES],
            packet: vec![0; PACKET_MAX_BYTES],
            mac,
            config: config_space(mac),
            waiting_bytes: 0,
            merges_buffers: false,
        })
    }

    /// The guest's MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Gives the interface another address. A driver that is at work has read the old one, and keeps it until it
    /// starts anew.
    pub fn set_mac(&mut self, mac: [u8; 6]) {
        (self.mac, self.config) = (mac, config_space(mac));
    }

    /// Tells the switches on the way where the guest is now: a RARP request that carries its MAC address.
    /// Frames get lost, so send it a few times.
    pub fn self_announce(&self) -> io::Result<()> {
        (&self.tap).write(&announcement(self.mac)).map(|_| ())
    }

    fn transmit(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        while let Some(chain) = queues.pop(TRANSMIT)? {
            let bytes = chain.readable_bytes();
            if (HEADER_BYTES + ETHERNET_BYTES..=PACKET_MAX_BYTES).contains(&bytes) {
                chain.read(queues.ram(), 0, &mut self.outgoing)?;
                // A full or downed interface drops frames, and so it does those with a senseless header.
                if let Err(error) = (&self.tap).write(self.outgoing.get(..bytes).unwrap_or_default()) {
                    tracing::debug!(%error, bytes, "a frame of the guest was dropped");
                }
            }
            queues.push(TRANSMIT, chain.head, 0)?;
        }
        Ok(())
    }

    fn receive(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        for _ in 0..RECEIVE_BATCH {
            if self.waiting_bytes == 0 && !self.read_tap() {
                return Ok(());
            }
            match self.deliver(queues)? {
                Delivery::Done => self.waiting_bytes = 0,
                Delivery::NoBuffers => return Ok(()),
            }
        }
        queues.come_back(RECEIVE);
        Ok(())
    }

    fn read_tap(&mut self) -> bool {
        match (&self.tap).read(&mut self.packet) {
            Ok(bytes) => self.waiting_bytes = bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::debug!(%error, "no frame could be read"),
        }
        self.waiting_bytes > 0
    }

    /// Puts the waiting frame into the guest's buffers, several if they may be merged.
    fn deliver(&mut self, queues: &mut Queues<'_>) -> Result<Delivery, Broken> {
        let packet = self.packet.get_mut(..self.waiting_bytes).unwrap_or_default();
        if packet.len() < HEADER_BYTES + ETHERNET_BYTES {
            return Ok(Delivery::Done);
        }
        let most = if self.merges_buffers { queues.size(RECEIVE) } else { 1 };
        let mut chains: Vec<Chain> = Vec::new();
        let (mut room, mut count) = (0, 0);
        while room < packet.len() && count < most {
            let Some(chain) = queues.pop(RECEIVE)? else {
                queues.undo_pop(RECEIVE, count);
                return Ok(Delivery::NoBuffers);
            };
            room += chain.writable_bytes();
            count += 1;
            chains.push(chain);
        }
        if room < packet.len() {
            // Too long for what the driver chose to provide.
            queues.undo_pop(RECEIVE, count);
            return Ok(Delivery::Done);
        }
        for (to, byte) in packet.iter_mut().skip(HEADER_BUFFERS).zip(count.to_le_bytes()) {
            *to = byte;
        }
        let mut done = 0;
        for chain in chains {
            let written = chain.write(queues.ram(), 0, packet.get(done..).unwrap_or_default())?;
            done += written;
            queues.push(RECEIVE, chain.head, written)?;
        }
        Ok(Delivery::Done)
    }
}

/// `struct virtio_net_config` (5.1.4), up to `status`.
fn config_space(mac: [u8; 6]) -> [u8; CONFIG_BYTES] {
    let [a, b, c, d, e, f] = mac;
    let [low, high, ..] = VIRTIO_NET_S_LINK_UP.to_le_bytes();
    [a, b, c, d, e, f, low, high]
}

/// RFC 903: "who is `mac`?", asked by `mac` itself; behind an empty virtio header.
fn announcement(mac: [u8; 6]) -> Vec<u8> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    /// EtherType RARP; Ethernet, IPv4, their address lengths; operation 3, reverse request.
    const RARP: [u8; 10] = [0x80, 0x35, 0, 1, 0x08, 0x00, 6, 4, 0, 3];
    const NO_ADDRESS: [u8; 4] = [0; 4];
    const SHORTEST_FRAME_BYTES: usize = 60;
    let mut packet = vec![0; HEADER_BYTES];
    for part in [&BROADCAST[..], &mac, &RARP, &mac, &NO_ADDRESS, &mac, &NO_ADDRESS] {
        packet.extend_from_slice(part);
    }
    packet.resize(HEADER_BYTES + SHORTEST_FRAME_BYTES, 0);
    packet
}

impl VirtioDevice for Net {
    type Saved = NetV1;
    const DEVICE_TYPE: u32 = 1;
    const QUEUE_MAX_SIZES: &'static [u16] = &[QUEUE_SIZE, QUEUE_SIZE];

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
        if !self.has_offloads {
            return common;
        }
        let to_host = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6;
        let to_guest =
            1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
        common | to_host | to_guest
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        let has = |bit: u32| features & 1 << bit != 0;
        self.merges_buffers = has(VIRTIO_NET_F_MRG_RXBUF);
        if !self.has_offloads {
            return Ok(());
        }
        let wanted = [
            (VIRTIO_NET_F_GUEST_CSUM, tap::OFFLOAD_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, tap::OFFLOAD_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, tap::OFFLOAD_TSO6),
        ];
        let mut offloads = wanted.iter().filter(|(bit, _)| has(*bit)).fold(0, |all, (_, flag)| all | flag);
        // Large segments have no checksums yet (5.1.3.1): without the one, the kernel refuses the other.
        if offloads & tap::OFFLOAD_CSUM == 0 {
            offloads = 0;
        }
        tap::set_offload(&self.tap, offloads)
    }

    fn reset(&mut self) {
        let Self {
            has_offloads: _,
            tap: _,
            outgoing: _,
            packet: _,
            mac: _,
            config: _,
            waiting_bytes,
            merges_buffers,
        } = self;
        (*waiting_bytes, *merges_buffers) = (0, false);
    }

    fn process_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        if queue == TRANSMIT { self.transmit(queues) } else { self.receive(queues) }
    }

    fn event_fds(&self) -> Vec<RawFd> {
        vec![self.tap.as_raw_fd()]
    }

    fn process_event(&mut self, _event: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        self.receive(queues)
    }

    fn drain(&mut self, _queues: &mut Queues<'_>) -> Result<(), Broken> {
        Ok(())
    }

    fn save(&self, transport: VirtioMmioV1) -> NetV1 {
        let Self {
            has_offloads: _,
            tap: _,
            outgoing: _,
            packet,
            mac,
            config: _,
            waiting_bytes,
            merges_buffers: _,
        } = self;
        let waiting = packet.get(..*waiting_bytes).filter(|packet| !packet.is_empty());
        NetV1 { transport, mac: *mac, waiting: waiting.map(<[u8]>::to_vec) }
    }

    fn transport(saved: &NetV1) -> &VirtioMmioV1 {
        &saved.transport
    }

    fn check(&self, saved: &NetV1) -> Result<(), RestoreError> {
        let NetV1 { transport: _, mac: _, waiting } = saved;
        let bytes = waiting.as_ref().map(Vec::len);
        match bytes.filter(|bytes| !(1..=PACKET_MAX_BYTES).contains(bytes)) {
            Some(found) => Err(RestoreError::Field {
                record: RECORD,
                field: "waiting",
                found: found as u64,
                expected: "one frame with its header",
            }),
            None => Ok(()),
        }
    }

    fn restore(&mut self, saved: &NetV1) {
        let NetV1 { transport: _, mac, waiting } = saved;
        (self.mac, self.config) = (*mac, config_space(*mac));
        let waiting = waiting.as_deref().unwrap_or_default();
        for (to, byte) in self.packet.iter_mut().zip(waiting) {
            *to = *byte;
        }
        self.waiting_bytes = waiting.len().min(PACKET_MAX_BYTES);
    }
}
