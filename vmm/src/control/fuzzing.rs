//! A client that says anything, for the fuzz targets: the whole way from bytes to answers, with a machine behind
//! it that only remembers.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::connection::Connection;
use super::testing::FakeMachine;

/// What the control socket answers to a client that sends `bytes` (less than a socket holds) and ends. Commands
/// that it took are those with `"return"`.
///
/// # Errors
/// The host has no sockets left.
pub fn talk(bytes: &[u8]) -> io::Result<String> {
    let (mut client, server) = UnixStream::pair()?;
    client.set_nonblocking(true)?;
    client.write_all(bytes)?;
    client.shutdown(Shutdown::Write)?;
    let mut machine = FakeMachine::default();
    let mut connection = Connection::new(server)?;
    let (mut heard, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let served = connection.serve(EventSet::IN, &mut machine);
        while let Ok(count @ 1..) = client.read(&mut piece) {
            heard.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
        if served.is_err() {
            return Ok(String::from_utf8_lossy(&heard).into_owned());
        }
    }
}
