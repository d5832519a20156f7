//! A blocking client of the control socket, with its own eyes: it shares nothing with tern's own client.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::limit::{limit, wait_for};

/// A connection that has ended the negotiation.
#[derive(Debug)]
pub struct Qmp {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects to a socket that is there, and negotiates.
    ///
    /// # Panics
    /// Nobody is there, or it isn't QMP.
    pub fn connect(path: &Path) -> Self {
        let name = path.display();
        Self::try_connect(path).unwrap_or_else(|| panic!("{name}: no control socket of tern answers"))
    }

    /// As [`Self::connect`]; none if nobody is there.
    pub fn try_connect(path: &Path) -> Option<Self> {
        let stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(limit())).ok()?;
        let mut qmp = Self { path: path.to_owned(), stream: BufReader::new(stream), events: VecDeque::new() };
        qmp.read()?["QMP"].as_object()?;
        qmp.try_execute("qmp_capabilities", json!({})).ok()?;
        Some(qmp)
    }

    /// Runs a command and returns what it returns.
    ///
    /// # Panics
    /// tern refuses.
    pub fn execute(&mut self, name: &str, arguments: Value) -> Value {
        self.try_execute(name, arguments).unwrap_or_else(|error| panic!("`{name}` failed: {error}"))
    }

    /// Passes a descriptor (SCM_RIGHTS) under a name: `getfd`.
    ///
    /// # Panics
    /// tern refuses, or the connection breaks.
    pub fn pass(&mut self, name: &str, descriptor: BorrowedFd<'_>) {
        let line = json!({ "execute": "getfd", "arguments": { "fdname": name } }).to_string() + "\n";
        let sent = self.stream.get_ref().send_with_fd(line.as_bytes(), descriptor.as_raw_fd());
        assert!(
            sent.is_ok_and(|sent| sent == line.len()),
            "{}: a descriptor can't be sent",
            self.path.display()
        );
        self.answer("getfd").unwrap_or_else(|error| panic!("`getfd` failed: {error}"));
    }

    /// Runs a command.
    ///
    /// # Errors
    /// The error object: `class`, `desc`, `code`, `cause`.
    ///
    /// # Panics
    /// The connection breaks.
    pub fn try_execute(&mut self, name: &str, arguments: Value) -> Result<Value, Value> {
        let line = json!({ "execute": name, "arguments": arguments }).to_string() + "\n";
        if let Err(error) = self.stream.get_mut().write_all(line.as_bytes()) {
            panic!("{}: `{name}`: {error}", self.path.display());
        }
        self.answer(name)
    }

    /// The answer to what was sent; events before it are kept.
    fn answer(&mut self, name: &str) -> Result<Value, Value> {
        loop {
            let mut message = self.read().unwrap_or_else(|| {
                panic!("{}: the connection ended before `{name}` was answered", self.path.display())
            });
            if message["event"].is_string() {
                self.events.push_back(message);
            } else if message["error"].is_object() {
                return Err(message["error"].take());
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// The next event of that name, as soon as it comes; events before it are dropped.
    ///
    /// # Panics
    /// None comes within the limit, or the connection ends.
    pub fn wait_event(&mut self, name: &str) -> Value {
        self.wait_event_where(name, |event| event["event"] == name)
    }

    /// The next event that fits; events before it are dropped.
    ///
    /// # Panics
    /// As [`Self::wait_event`].
    pub fn wait_event_where(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + limit();
        let mut seen = Vec::new();
        while Instant::now() < deadline {
            let next = self.events.pop_front().or_else(|| self.read());
            let Some(event) = next else { break };
            if fits(&event) {
                return event;
            }
            seen.push(event["event"].to_string());
        }
        panic!("{}: no event {what}; there were: {seen:?}", self.path.display());
    }

    /// Waits for the event that the migration has one of these states.
    pub fn wait_status_event(&mut self, wanted: &[&str]) -> String {
        let is = |event: &Value| {
            event["event"] == "MIGRATION" && wanted.iter().any(|status| event["data"]["status"] == *status)
        };
        let event = self.wait_event_where(&format!("MIGRATION {wanted:?}"), is);
        event["data"]["status"].as_str().unwrap_or_default().to_owned()
    }

    /// `query-migrate`'s `status`; empty before the first migration.
    pub fn migrate_status(&mut self) -> String {
        self.execute("query-migrate", json!({}))["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the migration has one of these states; returns all of `query-migrate`.
    ///
    /// # Panics
    /// It reaches another final state, or none within the limit.
    pub fn wait_migrate(&mut self, wanted: &[&str]) -> Value {
        wait_for(&format!("a migration that is {wanted:?}"), || {
            let answer = self.execute("query-migrate", json!({}));
            let status = answer["status"].as_str().unwrap_or_default().to_owned();
            if wanted.contains(&status.as_str()) {
                return Some(answer);
            }
            // A doubt may settle by itself.
            let over = ["completed", "failed", "cancelled"].contains(&status.as_str());
            assert!(!over, "the migration is {status}, not {wanted:?}: {answer:#}");
            None
        })
    }

    /// `query-status`'s `status`, or `detail` where there is one.
    pub fn state(&mut self) -> String {
        let answer = self.execute("query-status", json!({}));
        let name = answer["detail"].as_str().or(answer["status"].as_str());
        name.unwrap_or_default().to_owned()
    }

    /// Waits until the machine has one of these states.
    pub fn wait_state(&mut self, wanted: &[&str]) -> String {
        wait_for(&format!("a machine that is {wanted:?}"), || {
            Some(self.state()).filter(|state| wanted.contains(&state.as_str()))
        })
    }

    /// Sends bytes that need not be QMP, and returns the next message; none if the connection ends.
    pub fn raw(&mut self, bytes: &[u8]) -> Option<Value> {
        // A server that has closed already is seen by the read.
        let _ = self.stream.get_mut().write_all(bytes);
        self.read()
    }

    fn read(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(1..) => serde_json::from_str(&line).ok(),
            _ => None,
        }
    }
}
