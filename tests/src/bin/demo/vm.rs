//! A `tern run` process of the demo.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tern_tests::Qmp;
use tern_tests::binary::tern_binary;

use crate::network::{End, Network};
use crate::sandbox::spawn;
use crate::{Result, wait};

/// Longest wait for a process that was told to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A running machine. Dropped, it is gone.
#[derive(Debug)]
pub struct Vm {
    end: End,
    child: Child,
    /// Its control socket.
    pub control: PathBuf,
    serial: PathBuf,
    errors: PathBuf,
}

impl Vm {
    /// Starts a process for this end, with `args` besides those that both ends need.
    pub fn start(end: End, args: &[String], directory: &Path, network: Option<&Network>) -> Result<Self> {
        let file = |kind: &str| directory.join(format!("{}.{kind}", end.name()));
        let (control, serial, errors) = (file("control"), file("serial"), file("errors"));
        let mut command = Command::new(tern_binary());
        command.args(["run", "--name", "demo"]).arg("--control").arg(&control);
        command.arg("--serial").arg(format!("file:{}", serial.display())).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?);
        let child = spawn(&mut command, network.map(|network| network.of(end)))
            .map_err(|error| format!("can't run {}: {error}", tern_binary().display()))?;
        Ok(Self { end, child, control, serial, errors })
    }

    /// What the guest printed here.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.serial).unwrap_or_default()).into_owned()
    }

    /// An error, with what the process said, if it has ended.
    pub fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let said = fs::read_to_string(&self.errors).unwrap_or_default();
        let guest = self.printed();
        let from = guest.char_indices().rev().nth(500).map_or(0, |(at, _)| at);
        Err(format!(
            "the {} ended ({status}); it said:\n{}\nand its guest:\n{}",
            self.end.name(),
            said.trim(),
            &guest[from..]
        )
        .into())
    }

    /// Waits until its control socket answers with this state.
    pub fn wait_state(&mut self, wanted: &str) -> Result<()> {
        wait(&format!("a {} that is {wanted}", self.end.name()), END_LIMIT, || {
            self.check()?;
            let found = Qmp::try_connect(&self.control).map(|mut qmp| qmp.state());
            Ok((found.as_deref() == Some(wanted)).then_some(()))
        })
    }

    /// Ends it, in order.
    pub fn stop(mut self) -> Result<()> {
        let mut command = Command::new(tern_binary());
        command.arg("stop").arg("--control").arg(&self.control).stdout(Stdio::null());
        if !spawn(&mut command, None)?.wait()?.success() {
            return Err(format!("the {} does not end by `tern stop`", self.end.name()).into());
        }
        wait("a process that was told to end", END_LIMIT, || Ok(self.child.try_wait()?.map(|_| ())))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
