//! Which device answers at which port or address.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tern_devices::BusDevice;

use crate::vcpu::Bus;

type Device = Arc<Mutex<dyn BusDevice>>;

/// The ports and addresses of one machine. It never changes once vCPUs run, so that they need no lock on it.
#[derive(Default)]
pub struct SystemBus {
    ports: Vec<(Range<u64>, Device)>,
    mmio: Vec<(Range<u64>, Device)>,
}

impl SystemBus {
    /// Puts a device at `count` ports from `first`.
    pub fn add_port(&mut self, first: u16, count: u8, device: Device) {
        self.ports.push((u64::from(first)..u64::from(first) + u64::from(count), device));
    }

    /// Puts a device at guest-physical addresses `gpa` to `gpa + len`.
    pub fn add_mmio(&mut self, gpa: u64, len: u64, device: Device) {
        self.mmio.push((gpa..gpa + len, device));
    }
}

fn find(list: &[(Range<u64>, Device)], address: u64) -> Option<(u64, &Device)> {
    let (range, device) = list.iter().find(|(range, _)| range.contains(&address))?;
    Some((address - range.start, device))
}

fn read(list: &[(Range<u64>, Device)], address: u64, size: usize, data: &mut [u8]) {
    // What nobody drives reads as ones.
    let Some((offset, device)) = find(list, address) else { return data.fill(0xff) };
    let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
    data.chunks_mut(size.max(1)).for_each(|access| device.read(offset, access));
}

fn write(list: &[(Range<u64>, Device)], address: u64, size: usize, data: &[u8]) {
    let Some((offset, device)) = find(list, address) else { return };
    let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
    data.chunks(size.max(1)).for_each(|access| device.write(offset, access));
}

impl Bus for SystemBus {
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]) {
        read(&self.ports, u64::from(port), size, data);
    }

    fn port_write(&self, port: u16, size: usize, data: &[u8]) {
        write(&self.ports, u64::from(port), size, data);
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        let size = data.len();
        read(&self.mmio, gpa, size, data);
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        write(&self.mmio, gpa, data.len(), data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn a_string_access_is_split_into_accesses_of_its_size() {
        let device = Arc::new(Mutex::new(Recorder::default()));
        let mut bus = SystemBus::default();
        bus.add_port(0x3f8, 8, device.clone());
        bus.port_write(0x3f8, 1, b"abc");
        bus.port_write(0x3fa, 2, &[1, 2]);
        bus.port_write(0x400, 1, &[9]);
        let written = [(0, b"a".to_vec()), (0, b"b".to_vec()), (0, b"c".to_vec()), (2, vec![1, 2])];
        assert_eq!(device.lock().unwrap().0, written);
    }

    #[test]
    fn what_nobody_drives_reads_as_ones() {
        let mut data = [0; 4];
        SystemBus::default().mmio_read(0xd000_0000, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
