//! The network: an address for `eth0`, and a UDP echo.

use crate::sys;

const SIOCGIFFLAGS: usize = 0x8913;
const SIOCSIFFLAGS: usize = 0x8914;
const SIOCSIFADDR: usize = 0x8916;
const SIOCSIFNETMASK: usize = 0x891c;
const IFF_UP: u16 = 1;
const AF_INET: u16 = 2;
/// Datagrams answered in one turn: a flood must not keep the shell waiting.
const BURST: usize = 16;

/// `struct ifreq`: a name, and an address or flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    value: [u8; 24],
}

impl InterfaceRequest {
    fn eth0(value: &[u8]) -> Self {
        let mut request = InterfaceRequest { name: [0; 16], value: [0; 24] };
        request.name[..4].copy_from_slice(b"eth0");
        request.value[..value.len()].copy_from_slice(value);
        request
    }
}

/// `struct sockaddr_in`.
fn address_of(ip: [u8; 4], port: u16) -> [u8; 16] {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&AF_INET.to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&ip);
    address
}

/// `10.0.0.2/24` as an address and a mask.
pub fn parse_address(text: &str) -> Option<([u8; 4], [u8; 4])> {
    let (address, length) = text.split_once('/')?;
    let length: u32 = length.parse().ok().filter(|length| (1..=32).contains(length))?;
    let address: core::net::Ipv4Addr = address.parse().ok()?;
    Some((address.octets(), (u32::MAX << (32 - length)).to_be_bytes()))
}

/// Gives `eth0` an address and brings it up.
pub fn set_address(text: &str) -> sys::Result<()> {
    let (ip, mask) = parse_address(text).ok_or(sys::EINVAL)?;
    let socket = sys::socket_udp()?;
    let result = configure(socket, ip, mask);
    sys::close(socket);
    result
}

fn configure(socket: i32, ip: [u8; 4], mask: [u8; 4]) -> sys::Result<()> {
    sys::ioctl(socket, SIOCSIFADDR, &mut InterfaceRequest::eth0(&address_of(ip, 0)))?;
    sys::ioctl(socket, SIOCSIFNETMASK, &mut InterfaceRequest::eth0(&address_of(mask, 0)))?;
    let mut flags = InterfaceRequest::eth0(&[]);
    sys::ioctl(socket, SIOCGIFFLAGS, &mut flags)?;
    flags.value[0] |= IFF_UP as u8;
    sys::ioctl(socket, SIOCSIFFLAGS, &mut flags)?;
    Ok(())
}

/// A UDP port whose datagrams go back to where they came from.
pub struct Echo {
    pub fd: i32,
    pub answered: u64,
    /// Numbered datagrams that came a second time.
    pub twice: u64,
    seen: Seen,
}

/// Which numbers have come: the highest, and which of those below it.
#[derive(Default)]
pub struct Seen {
    highest: u64,
    /// Bit n: `highest - n` has come.
    window: u64,
}

impl Seen {
    /// Takes note of a number. Has it come before? Of one too far below the highest nothing is known.
    pub fn again(&mut self, number: u64) -> bool {
        if number > self.highest || self.window == 0 {
            let ahead = u32::try_from(number - self.highest).unwrap_or(u32::MAX);
            self.window = self.window.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = number;
            return false;
        }
        let bit = u32::try_from(self.highest - number).ok().and_then(|behind| 1u64.checked_shl(behind));
        let before = bit.is_some_and(|bit| self.window & bit != 0);
        self.window |= bit.unwrap_or(0);
        before
    }
}

/// The number of a datagram of text that begins with `n=123 `.
pub fn number_of(datagram: &[u8]) -> Option<u64> {
    let digits = datagram.strip_prefix(b"n=")?.split(|&byte| byte == b' ').next()?;
    core::str::from_utf8(digits).ok()?.parse().ok()
}

impl Echo {
    pub fn open(port: u16) -> sys::Result<Echo> {
        let fd = sys::socket_udp()?;
        match sys::bind(fd, &address_of([0; 4], port)) {
            Ok(_) => Ok(Echo { fd, answered: 0, twice: 0, seen: Seen::default() }),
            Err(errno) => {
                sys::close(fd);
                Err(errno)
            }
        }
    }

    /// Answers what has arrived, without waiting.
    pub fn answer(&mut self) {
        let mut buffer = [0u8; 2048];
        let mut from = [0u8; 16];
        for _ in 0..BURST {
            let Ok(length) = sys::receive_from(self.fd, &mut buffer, &mut from) else { return };
            if number_of(&buffer[..length]).is_some_and(|number| self.seen.again(number)) {
                self.twice += 1;
            }
            // A full queue drops the answer, as a network may.
            if sys::send_to(self.fd, &buffer[..length], &from).is_ok() {
                self.answered += 1;
            }
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        sys::close(self.fd);
    }
}
