//! `tern console`: this terminal on the guest's serial port.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};

use super::terminal::RawMode;
use super::vm::ControlArgs;
use super::{Exit, Failure};

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// Finds the serial port's socket and attaches to it until Ctrl-], or until the guest's side ends.
pub(super) fn run(args: &ControlArgs) -> Result<Exit, Failure> {
    let list = args.connect()?.execute("query-chardev", json!({}))?;
    let path = serial_socket(&list)?;
    let mut guest = UnixStream::connect(&path).map_err(|error| unreachable_serial(&path, &error))?;
    let input = guest.try_clone().map_err(|error| Failure::new(&error))?;
    let stdin = io::stdin();
    let raw = if stdin.is_terminal() {
        // A failed hint is no reason to stop.
        let _ = writeln!(io::stderr(), "serial port of {}: Ctrl-] leaves", args.control.display());
        Some(RawMode::enter(&stdin).map_err(|error| Failure::new(&error))?)
    } else {
        None
    };
    // Nothing waits for this thread: a read of a terminal can't be interrupted, and the process ends anyhow.
    thread::spawn(move || {
        let end = to_guest(io::stdin().lock(), &input);
        let _ = input.shutdown(end);
    });
    let copied = from_guest(&mut guest, io::stdout().lock());
    drop(raw);
    match copied {
        // A reader that has seen enough (`tern console | head`) is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::text(Exit::Failure, format!("the console broke: {error}")))
        }
        _ => Ok(Exit::Success),
    }
}

fn serial_socket(list: &Value) -> Result<PathBuf, Failure> {
    let serial = &list[0];
    let found = serial["filename"].as_str().unwrap_or("unknown");
    match serial["path"].as_str() {
        Some(path) => Ok(path.into()),
        None => Err(Failure::text(
            Exit::Failure,
            format!(
                "the guest's serial port goes to {found}, and a console needs a socket: start the machine with --serial unix:PATH"
            ),
        )),
    }
}

fn unreachable_serial(path: &Path, error: &io::Error) -> Failure {
    let text = format!(
        "can't attach to the serial port at {}: {error}; is another console attached?",
        path.display()
    );
    Failure::text(Exit::Failure, text)
}

/// Copies what is typed; returns how to close: all at the escape or an error, only our half at the end of a file.
fn to_guest(mut from: impl Read, mut to: &UnixStream) -> Shutdown {
    let mut buffer = [0; 1024];
    loop {
        let typed = match from.read(&mut buffer) {
            Ok(0) => return Shutdown::Write,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Shutdown::Both,
        };
        let (typed, left) = match typed.iter().position(|byte| *byte == ESCAPE) {
            Some(at) => (typed.get(..at).unwrap_or_default(), true),
            None => (typed, false),
        };
        if to.write_all(typed).is_err() || left {
            return Shutdown::Both;
        }
    }
}

fn from_guest(from: &mut UnixStream, mut to: impl Write) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(buffer.get(..count).unwrap_or_default())?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_ends_the_typing_and_is_not_sent() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        assert_eq!(to_guest(&b"ls\n\x1dmore"[..], &ours), Shutdown::Both);
        assert_eq!(to_guest(&b"end"[..], &ours), Shutdown::Write);
        drop(ours);
        let mut text = String::new();
        guest.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ls\nend");
    }

    #[test]
    fn output_is_copied_to_the_end() {
        let (mut ours, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(b"login: ").unwrap();
        drop(guest);
        let mut text = Vec::new();
        from_guest(&mut ours, &mut text).unwrap();
        assert_eq!(text, b"login: ");
    }

    #[test]
    fn a_serial_port_elsewhere_names_the_remedy() {
        let path =
            serial_socket(&json!([{"label": "serial0", "filename": "unix:/s,server=on", "path": "/s"}]))
                .unwrap();
        assert_eq!(path, Path::new("/s"));
        let failure = serial_socket(&json!([{"label": "serial0", "filename": "stdio"}])).unwrap_err();
        assert!(
            failure.text.contains("goes to stdio") && failure.text.contains("--serial unix:PATH"),
            "{failure:?}"
        );
    }
}
