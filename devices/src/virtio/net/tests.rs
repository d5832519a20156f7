//! The network device on a datagram socket in place of a TAP.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use super::*;
use crate::Stateful;
use crate::virtio::mmio::MmioDevice;
use crate::virtio::testing::{ALL_FEATURES, DATA, Driver};

const MAC: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];
const WITHOUT_MERGING: u64 = !(1 << VIRTIO_NET_F_MRG_RXBUF);

fn net() -> (Net, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let net = Net::new(File::from(OwnedFd::from(near)), NetConfig { mac: MAC }).unwrap();
    (net, far)
}

fn packet(frame_bytes: usize) -> Vec<u8> {
    let frame = (0..frame_bytes).map(|at| (at % 251) as u8);
    [0; HEADER_BYTES].into_iter().chain(frame).collect()
}

fn with_buffers(packet: &[u8], count: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[HEADER_BUFFERS] = count;
    packet
}

#[test]
fn frames_leave_in_order_whatever_their_descriptors() {
    let (net, host) = net();
    let mut driver = Driver::started(net, ALL_FEATURES);
    let first = packet(60);
    let second = packet(1514);
    driver.put(DATA, &first);
    driver.put(DATA + 0x1000, &second);
    driver.add(TRANSMIT, &[(DATA, 12, false), (DATA + 12, 60, false)]);
    driver.add(TRANSMIT, &[(DATA + 0x1000, 1, false), (DATA + 0x1001, 1525, false)]);
    driver.kick(TRANSMIT);
    assert_eq!(driver.wait_used(TRANSMIT, 2), [(0, 0), (2, 0)]);
    let mut found = [0; 4096];
    for expected in [first, second] {
        let count = host.recv(&mut found).unwrap();
        assert_eq!(found[..count], expected);
    }
}

#[test]
fn frames_that_are_none_are_dropped() {
    let (net, host) = net();
    let mut driver = Driver::started(net, ALL_FEATURES);
    driver.add(TRANSMIT, &[(DATA, 12 + 13, false)]);
    driver.add(TRANSMIT, &[(DATA, 100_000, false)]);
    driver.add(TRANSMIT, &[(DATA, 100, true)]);
    driver.kick(TRANSMIT);
    assert_eq!(driver.wait_used(TRANSMIT, 3).len(), 3);
    assert!(host.recv(&mut [0; 16]).is_err());
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let (net, host) = net();
    let mut driver = Driver::started(net, ALL_FEATURES);
    for at in 0..3 {
        driver.add(RECEIVE, &[(DATA + at * 0x1000, 600, true)]);
    }
    let packet = packet(1514);
    host.send(&packet).unwrap();
    assert_eq!(driver.wait_used(RECEIVE, 3), [(0, 600), (1, 600), (2, 326)]);
    let found = [driver.bytes(DATA, 600), driver.bytes(DATA + 0x1000, 600), driver.bytes(DATA + 0x2000, 326)];
    assert_eq!(found.concat(), with_buffers(&packet, 3));
    assert!(driver.interrupted());
}

#[test]
fn without_merging_a_frame_that_does_not_fit_is_dropped_and_the_buffer_kept() {
    let (net, host) = net();
    let mut driver = Driver::started(net, WITHOUT_MERGING);
    driver.add(RECEIVE, &[(DATA, 600, true)]);
    host.send(&packet(1000)).unwrap();
    host.send(&packet(100)).unwrap();
    assert_eq!(driver.wait_used(RECEIVE, 1), [(0, 112)]);
    assert_eq!(driver.bytes(DATA, 112), with_buffers(&packet(100), 1));
}

#[test]
fn a_frame_without_a_buffer_waits_travels_and_arrives() {
    let (net, host) = net();
    let mut source = Driver::started(net, ALL_FEATURES);
    let packet = packet(200);
    host.send(&packet).unwrap();
    source.run();
    // A first buffer, too small alone.
    source.add(RECEIVE, &[(DATA, 100, true)]);
    source.kick(RECEIVE);
    assert_eq!(source.used(RECEIVE), None);
    source.transport.pause();
    let saved = source.transport.save();
    assert_eq!(saved.waiting.as_deref(), Some(&packet[..]));

    let (other, _host) = self::net();
    let mut destination = source.moved_to(other);
    destination.transport.restore(saved.clone()).unwrap();
    assert_eq!(destination.transport.save(), saved);
    destination.add(RECEIVE, &[(DATA + 100, 500, true)]);
    destination.transport.resume();
    assert_eq!(destination.wait_used(RECEIVE, 2), [(0, 100), (1, 112)]);
    assert_eq!(destination.bytes(DATA, 212), with_buffers(&packet, 2));
}

#[test]
fn a_paused_interface_leaves_frames_with_the_host() {
    let (net, host) = net();
    let mut driver = Driver::started(net, ALL_FEATURES);
    for at in 0..4 {
        driver.add(RECEIVE, &[(DATA + at * 0x1000, 2048, true)]);
    }
    driver.kick(RECEIVE);
    driver.transport.pause();
    host.send(&packet(64)).unwrap();
    driver.run();
    assert_eq!(driver.used(RECEIVE), None);
    driver.transport.resume();
    assert_eq!(driver.used(RECEIVE), Some((0, 76)));
}

#[test]
fn a_flood_is_taken_in_batches() {
    let (net, host) = net();
    let mut driver = Driver::started(net, ALL_FEATURES);
    let mut sent = 0;
    while sent < 1000 {
        for _ in 0..64 {
            driver.add(RECEIVE, &[(DATA, 2048, true)]);
        }
        driver.kick(RECEIVE);
        for _ in 0..64 {
            while host.send(&packet(64)).is_err() {
                driver.run();
            }
        }
        assert_eq!(driver.wait_used(RECEIVE, 64).len(), 64);
        sent += 64;
    }
}

#[test]
fn the_announcement_is_a_rarp_request_with_the_address_that_the_guest_took_along() {
    let (first, _host) = net();
    let mut source = Driver::started(first, ALL_FEATURES);
    source.transport.pause();
    let (near, host) = UnixDatagram::pair().unwrap();
    let other = Net::new(File::from(OwnedFd::from(near)), NetConfig { mac: [2; 6] }).unwrap();
    let mut destination = source.moved_to(other);
    destination.transport.restore(source.transport.save()).unwrap();
    destination.transport.device().self_announce().unwrap();
    let mut found = [0; 200];
    let count = host.recv(&mut found).unwrap();
    let frame = &found[HEADER_BYTES..count];
    assert_eq!(frame.len(), 60);
    assert_eq!(frame[..6], [0xff; 6]);
    assert_eq!(frame[6..12], MAC);
    assert_eq!(frame[12..14], [0x80, 0x35]);
    assert_eq!(frame[20..22], [0, 3]);
    assert_eq!((&frame[22..28], &frame[32..38]), (&MAC[..], &MAC[..]));
    let mut config = [0; 8];
    crate::BusDevice::read(&mut destination.transport, 0x100, &mut config);
    assert_eq!(config, config_space(MAC));
}

#[test]
fn another_address_is_told_to_the_driver_and_saved() {
    let (net, _host) = net();
    let mut driver = Driver::started(net, ALL_FEATURES);
    let (generation, config) = (0xfc, 0x100);
    let before = driver.read(generation);
    let other = [0x02, 9, 8, 7, 6, 5];
    driver.transport.reconfigure(|net| net.set_mac(other));
    assert_ne!(driver.read(generation), before);
    assert_eq!(driver.read(config), u32::from_le_bytes([0x02, 9, 8, 7]));
    assert!(driver.interrupted());
    assert_eq!(driver.transport.save().mac, other);
}
