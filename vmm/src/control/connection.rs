//! One client of the control socket: its input, its output and its place in the negotiation. Never blocks.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use serde_json::{Map, Value, json};
use tern_migration::channel::{Uri, descriptor};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::arguments::shortened;
use super::framer::{Frame, Framer};
use super::operations::Operations;
use super::{CommandError, ErrorCode, commands};

/// Most bytes that wait for a client which doesn't read; beyond, it is dropped.
pub const OUTPUT_LIMIT_BYTES: usize = 1 << 20;
/// With this much waiting, nothing more is read from the client: it shall take its answers first.
const OUTPUT_PAUSE_BYTES: usize = 64 << 10;
/// Bytes read before others have their turn.
const READ_BYTES: usize = 16 << 10;

/// Why a connection ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Gone {
    /// The client has closed it, or the link broke.
    Closed,
    /// It doesn't read what it is sent.
    TooSlow,
}

/// A client.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    framer: Framer,
    output: Vec<u8>,
    sent: usize,
    negotiated: bool,
    /// The descriptor that came last, until `getfd` gives it a name.
    passed: Option<File>,
    /// What the loop waits for now.
    interest: EventSet,
}

impl Connection {
    /// Greets a new client.
    ///
    /// # Errors
    /// The kernel refuses to make the socket non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut connection = Self {
            stream,
            framer: Framer::default(),
            output: Vec::new(),
            sent: 0,
            negotiated: false,
            passed: None,
            interest: EventSet::IN,
        };
        connection.queue(&json!({ "QMP": { "version": commands::version(), "capabilities": [] } }));
        Ok(connection)
    }

    /// Its file descriptor, by which the loop knows it.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// What the loop should wait for, if that has changed since the last call.
    pub fn new_interest(&mut self) -> Option<EventSet> {
        let waiting = self.output.len() - self.sent;
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, waiting < OUTPUT_PAUSE_BYTES);
        interest.set(EventSet::OUT, waiting > 0);
        (interest != self.interest).then(|| {
            self.interest = interest;
            interest
        })
    }

    /// Tells an event, once the client has ended the negotiation.
    ///
    /// # Errors
    /// The connection is to be dropped.
    pub fn tell(&mut self, event: &Value) -> Result<(), Gone> {
        if self.negotiated {
            self.queue(event);
        }
        self.flush()
    }

    /// Reads a piece, runs what it completes and sends the answers.
    ///
    /// # Errors
    /// The connection is to be dropped.
    pub fn serve(&mut self, events: EventSet, vm: &mut dyn Operations) -> Result<(), Gone> {
        if events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
            let mut buffer = [0; READ_BYTES];
            match self.stream.recv_with_fd(&mut buffer).map_err(io::Error::from) {
                Ok((0, _)) => return Err(Gone::Closed),
                Ok((count, passed)) => {
                    self.passed = passed.or(self.passed.take());
                    self.take(buffer.get(..count).unwrap_or_default(), vm)?;
                }
                Err(error) if is_temporary(&error) => {}
                Err(_) => return Err(Gone::Closed),
            }
        }
        self.flush()
    }

    fn take(&mut self, bytes: &[u8], vm: &mut dyn Operations) -> Result<(), Gone> {
        let mut frames = Vec::new();
        self.framer.push(bytes, &mut frames);
        for frame in frames {
            let answer = match frame {
                Frame::Object(bytes) => self.answer(&bytes, vm),
                Frame::Fault(error) => json!({ "error": error.to_json() }),
            };
            self.queue(&answer);
            if self.output.len() - self.sent > OUTPUT_LIMIT_BYTES {
                return Err(Gone::TooSlow);
            }
        }
        Ok(())
    }

    fn answer(&mut self, bytes: &[u8], vm: &mut dyn Operations) -> Value {
        let (id, result) = match Call::parse(bytes) {
            Ok(call) => (call.id, self.run(&call.name, call.arguments, vm)),
            Err(Refused { id, error }) => (id, Err(error)),
        };
        let mut answer = match result {
            Ok(value) => json!({ "return": value }),
            Err(error) => json!({ "error": error.to_json() }),
        };
        if let (Some(id), Some(members)) = (id, answer.as_object_mut()) {
            members.insert("id".to_owned(), id);
        }
        answer
    }

    fn run(
        &mut self,
        name: &str,
        arguments: Map<String, Value>,
        vm: &mut dyn Operations,
    ) -> Result<Value, CommandError> {
        if self.negotiated {
            tracing::debug!(name, "command");
            if name == "getfd"
                && let Some(file) = self.passed.take()
            {
                return keep(file, arguments);
            }
            return commands::run(vm, name, arguments);
        }
        if name != "qmp_capabilities" {
            let name = shortened(name);
            let text = format!(
                "`{name}` came before the negotiation: send {{\"execute\": \"qmp_capabilities\"}} first"
            );
            return Err(CommandError::new(ErrorCode::NotNegotiated, text));
        }
        commands::check_arguments(name, arguments)?;
        self.negotiated = true;
        Ok(json!({}))
    }

    fn queue(&mut self, message: &Value) {
        if self.sent > 0 {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        self.output.extend(message.to_string().into_bytes());
        self.output.extend(b"\r\n");
    }

    /// Sends what the socket takes.
    fn flush(&mut self) -> Result<(), Gone> {
        while let Some(waiting) = self.output.get(self.sent..).filter(|waiting| !waiting.is_empty()) {
            match self.stream.write(waiting) {
                Ok(0) => return Err(Gone::Closed),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Gone::Closed),
            }
        }
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
        if self.output.len() - self.sent > OUTPUT_LIMIT_BYTES { Err(Gone::TooSlow) } else { Ok(()) }
    }
}

/// `getfd`, with its descriptor.
fn keep(file: File, arguments: Map<String, Value>) -> Result<Value, CommandError> {
    let name = arguments.get("fdname").and_then(Value::as_str).unwrap_or_default().to_owned();
    commands::check_arguments("getfd", arguments)?;
    if !matches!(format!("fd:{name}").parse(), Ok(Uri::Fd { .. }))
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        let text = format!(
            "`{}` can't be a descriptor's name: write letters, digits, `-`, `_` and `.`, no digit first",
            shortened(&name)
        );
        return Err(CommandError::invalid(text));
    }
    descriptor::give(&name, file.into()).map_err(|error| CommandError::failed(&error))?;
    Ok(json!({}))
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A command as it came.
struct Call {
    name: String,
    arguments: Map<String, Value>,
    id: Option<Value>,
}

/// An object that is no command; the answer carries its id if it has one.
struct Refused {
    id: Option<Value>,
    error: CommandError,
}

impl Call {
    fn parse(bytes: &[u8]) -> Result<Self, Refused> {
        let malformed =
            |id, text: String| Refused { id, error: CommandError::new(ErrorCode::MalformedInput, text) };
        let parsed =
            serde_json::from_slice(bytes).map_err(|error| malformed(None, format!("not JSON: {error}")))?;
        let Value::Object(mut members) = parsed else {
            return Err(malformed(
                None,
                "a command is an object, such as {\"execute\": \"query-status\"}".into(),
            ));
        };
        let id = members.remove("id");
        let Some(Value::String(name)) = members.remove("execute") else {
            return Err(malformed(id, "`execute` must name a command; query-commands lists them".into()));
        };
        let arguments = match members.remove("arguments") {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(malformed(id, "`arguments` must be an object".into())),
        };
        match members.keys().next() {
            Some(key) => {
                let text =
                    format!("unknown member `{}`: legal are execute, arguments and id", shortened(key));
                Err(malformed(id, text))
            }
            None => Ok(Self { name, arguments, id }),
        }
    }
}

#[cfg(test)]
mod tests;
