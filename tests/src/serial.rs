//! What a guest prints, and the lines that a person types to it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::limit::wait_for;

/// The other end of a guest's serial port.
#[derive(Debug)]
pub enum Serial {
    /// Nobody listens.
    Null,
    /// A file that grows.
    File(PathBuf),
    /// A connection both ways.
    Unix(Client),
}

/// A connection to a serial port; a thread reads all that comes.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Client {
    /// Attaches to the socket at `path`, as soon as it is there.
    pub fn connect(path: &Path) -> Self {
        Self::connect_after(path, Vec::new())
    }

    /// As [`Self::connect`], to the port of a guest that has printed `told` elsewhere.
    pub fn connect_after(path: &Path, told: Vec<u8>) -> Self {
        let stream =
            wait_for(&format!("the serial socket {}", path.display()), || UnixStream::connect(path).ok());
        let heard = Arc::new(Mutex::new(told));
        let (mut from, into) = match stream.try_clone() {
            Ok(clone) => (clone, Arc::clone(&heard)),
            Err(error) => panic!("serial socket: {error}"),
        };
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut piece) {
                into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..count]);
            }
        });
        Self { stream, heard }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the thread that reads.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Serial {
    /// All that was printed so far in this process; of a guest that came booted, the boot's output too.
    pub fn text(&self) -> String {
        let bytes = match self {
            Self::Null => Vec::new(),
            Self::File(path) => std::fs::read(path).unwrap_or_default(),
            Self::Unix(client) => client.heard.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Types `text`.
    pub fn write(&self, text: &str) {
        let Self::Unix(client) = self else { panic!("this serial port takes no input: {self:?}") };
        if let Err(error) = (&client.stream).write_all(text.as_bytes()) {
            panic!("typing {text:?}: {error}");
        }
    }

    /// Waits until `look` finds something in what was printed.
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut(&str) -> Option<T>) -> T {
        wait_for(what, || look(&self.text()))
    }

    /// Waits until `wanted` was printed.
    pub fn wait_text(&self, wanted: &str) {
        self.wait(&format!("{wanted:?} on the serial port"), |text| text.contains(wanted).then_some(()));
    }
}
