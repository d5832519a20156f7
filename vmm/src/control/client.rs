//! A blocking client of the control socket: for `tern`'s subcommands and for tests.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

use super::{CommandError, ErrorCode};

/// Longest answer that is read: far more than any report, and no more memory than that.
const ANSWER_LIMIT_BYTES: u64 = 16 << 20;
/// Longest wait for an answer. Commands return at once; a busy host may take its time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for the greeting of what may not be tern at all.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Most events that are kept for a caller who doesn't take them; the oldest go first.
const EVENT_LIMIT: usize = 10_000;

/// Why a command could not be run.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is nobody.
    #[error("--control {}: can't connect; is `tern run --control {}` running?", path.display(), path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The connection ended, or nothing came in time.
    #[error("--control {}: the connection broke; has the process ended?", path.display())]
    Broken {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else listens there.
    #[error("--control {}: what answers there doesn't speak QMP ({found}); is it a control socket of tern?", path.display())]
    NotQmp {
        /// The socket's path.
        path: PathBuf,
        /// What it said.
        found: String,
    },
    /// tern refused.
    #[error(transparent)]
    Command(CommandError),
}

/// A connection that has ended the negotiation.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    /// A line that has come in part before a timeout.
    partial: Vec<u8>,
    events: VecDeque<Value>,
}

impl Client {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// Nobody listens at `path`, or not tern.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let mut client = Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
            partial: Vec::new(),
            events: VecDeque::new(),
        };
        let greeting = client.read_message(Instant::now() + GREETING_TIMEOUT)?;
        match greeting {
            Some(message) if message["QMP"].is_object() => {}
            Some(message) => return Err(client.not_qmp(&message.to_string())),
            None => return Err(client.not_qmp("it doesn't greet")),
        }
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Runs a command and returns what it returns. Events that come meanwhile are kept.
    ///
    /// # Errors
    /// tern refuses, or the connection breaks.
    pub fn execute(&mut self, name: &str, arguments: Value) -> Result<Value, ClientError> {
        let command = json!({ "execute": name, "arguments": arguments }).to_string() + "\n";
        let written = self.stream.get_mut().write_all(command.as_bytes());
        written.map_err(|source| self.broken(source))?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let Some(mut message) = self.read_message(deadline)? else {
                return Err(self.broken(io::ErrorKind::TimedOut.into()));
            };
            if message["event"].is_string() {
                self.keep(message);
            } else if let Some(error) = message.get("error") {
                return Err(ClientError::Command(command_error(error)));
            } else if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            } else {
                return Err(self.not_qmp(&message.to_string()));
            }
        }
    }

    /// The next event, or nothing if none comes within `timeout`.
    ///
    /// # Errors
    /// The connection breaks.
    pub fn wait_event(&mut self, timeout: Duration) -> Result<Option<Value>, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        let deadline = Instant::now() + timeout;
        while let Some(message) = self.read_message(deadline)? {
            if message["event"].is_string() {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == EVENT_LIMIT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// One line, or nothing if it isn't complete at the deadline; what has come is kept.
    fn read_message(&mut self, deadline: Instant) -> Result<Option<Value>, ClientError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let set = self.stream.get_ref().set_read_timeout(Some(left));
            set.map_err(|source| self.broken(source))?;
            let room = ANSWER_LIMIT_BYTES.saturating_sub(self.partial.len() as u64);
            let read = self.stream.by_ref().take(room).read_until(b'\n', &mut self.partial);
            match read {
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    let text = || String::from_utf8_lossy(&line).chars().take(60).collect::<String>();
                    return serde_json::from_slice(&line).map(Some).map_err(|_| self.not_qmp(&text()));
                }
                Ok(_) if self.partial.len() as u64 >= ANSWER_LIMIT_BYTES => {
                    return Err(self.not_qmp("an endless line"));
                }
                Ok(_) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(source) => return Err(self.broken(source)),
            }
        }
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken { path: self.path.clone(), source }
    }

    fn not_qmp(&self, found: &str) -> ClientError {
        ClientError::NotQmp { path: self.path.clone(), found: found.trim().to_owned() }
    }
}

/// Reads an error; from a QMP server that isn't tern, too.
fn command_error(error: &Value) -> CommandError {
    let code = serde_json::from_value(error["code"].clone()).unwrap_or(ErrorCode::Failed);
    let text = |name: &str| error[name].as_str().map(str::to_owned);
    CommandError { code, desc: text("desc").unwrap_or_else(|| error.to_string()), cause: text("cause") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A server that says `text` to its first client and closes.
    fn says(text: &'static [u8]) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<()>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(text).unwrap();
        });
        (folder, path, thread)
    }

    #[test]
    fn nobody_there_names_the_remedy() {
        let text = Client::connect(Path::new("/nonexistent/c")).unwrap_err().to_string();
        assert!(text.contains("is `tern run --control /nonexistent/c` running?"), "{text}");
    }

    #[test]
    fn another_server_is_recognised() {
        for hello in [&b"SSH-2.0-x\r\n"[..], b"{}\n", b"\xff\xfe\n"] {
            let (_folder, path, thread) = says(hello);
            let error = Client::connect(&path).unwrap_err();
            assert!(matches!(error, ClientError::NotQmp { .. }), "{error}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_server_that_leaves_is_noticed() {
        let (_folder, path, thread) = says(b"{\"QMP\": {");
        assert!(matches!(Client::connect(&path), Err(ClientError::Broken { .. })));
        thread.join().unwrap();
    }
}
