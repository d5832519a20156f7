//! Start-up: from exec to the guest's first instruction, to pulse's first line, and to the Linux agent.
//!
//! All are measured in the same way for both VMMs: the clock starts just before fork and exec, and ends when the
//! bench has read the awaited bytes of the guest's serial port from a pipe. So they contain a fork, an exit of
//! the guest and the wake-up of a reader, and are upper bounds; the floor, a program that does nothing but
//! print one byte, is shown beside them. "Warm": each program has run before, its file is in the page cache.
//!
//! - First instruction: a guest whose third instruction writes the byte (`first_instruction.rs`). microvm starts
//!   every guest through a firmware, so in QEMU the same instructions are given as the firmware: that is the
//!   first instruction of any guest there. The kernel's first instruction, behind QEMU's own firmware, is a
//!   figure of its own; tern has no firmware, there the two are the same.
//! - pulse and Linux: the same files and the same command line in both.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tern_tests::spawn::spawn;

use crate::contender::{Machine, Programs, Vmm};
use crate::first_instruction;
use crate::plan::Plan;
use crate::table::{Aim, Figure, Group};

/// What the agent prints when user space runs.
const AGENT_READY: &[u8] = b"AGENT ready";
/// A guest that says nothing for so long will not say it any more.
const PATIENCE: Duration = Duration::from_secs(120);

/// Start-up without an operating system.
pub fn bare(plan: &Plan) -> io::Result<Group> {
    let kernel = plan.file("first-instruction", &first_instruction::elf())?;
    let firmware = plan.file("first-instruction.bin", &first_instruction::firmware())?;
    let entry = Machine { memory_mib: 128, ..Machine::pulse(&kernel, "") };
    let first = Machine { kernel: None, firmware: Some(firmware), ..entry.clone() };
    let pulse = Machine { memory_mib: 128, ..Machine::pulse(&plan.pulse, "ws=0") };
    let byte = [first_instruction::BYTE];

    let [floors, firsts, entries, lines] = plan.in_turns("start-up", plan.runs, |vmm| {
        let mut nothing = Command::new("printf");
        nothing.arg("A");
        let start = |machine: &Machine, bytes: &[u8]| until(on_stdio(machine, vmm, &plan.programs), bytes);
        let first = if vmm == Vmm::Tern { &entry } else { &first };
        Ok([
            until(nothing, b"A")?,
            start(first, &byte)?,
            start(&entry, &byte)?,
            start(&pulse, b"A tern-pulse")?,
        ])
    })?;
    Ok(Group {
        name: "start-up",
        setting: "from exec, warm, 128 MiB".to_owned(),
        figures: vec![
            Figure::new("floor: a program that prints a byte", "ms", floors, None),
            Figure::new("guest's first instruction", "ms", firsts, Some(Aim::Below(5.0))),
            Figure::new("kernel's first instruction", "ms", entries, None),
            Figure::new("pulse's first line", "ms", lines, None),
        ],
        notes: Vec::new(),
    })
}

/// Linux up to the agent in user space.
pub fn linux(plan: &Plan, image: &str) -> io::Result<Option<Group>> {
    let Some(found) = tern_guest_images::path(image).map_err(io::Error::other)? else { return Ok(None) };
    let machine = Machine {
        kernel: Some(found.kernel),
        firmware: None,
        initrd: found.initramfs,
        cmdline: format!("{} {}", found.cmdline, host_words(plan)?),
        memory_mib: 256,
        cpus: 1,
        devices: None,
        namespace: None,
        log: None,
    };
    let [times] = plan.in_turns(&format!("boot of {image}"), plan.slow_runs, |vmm| {
        Ok([until(on_stdio(&machine, vmm, &plan.programs), AGENT_READY)? / 1000.0])
    })?;
    Ok(Some(Group {
        name: "boot",
        setting: format!("image {image} from exec to its agent, 256 MiB, 1 vCPU"),
        figures: vec![Figure::new("boot", "s", times, None)],
        notes: Vec::new(),
    }))
}

/// The kernel parameters that this host needs: tern adds them by itself, QEMU must be given them.
fn host_words(plan: &Plan) -> io::Result<String> {
    let asked = Command::new(&plan.programs.tern).args(["host", "--json"]).output()?;
    let answer: Value = serde_json::from_slice(&asked.stdout)?;
    let words = answer["needs"]["kernel_words"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
}

/// With the serial port on the standard output, and no control socket.
fn on_stdio(machine: &Machine, vmm: Vmm, programs: &Programs) -> Command {
    let mut command = machine.command(vmm, programs);
    command.args(if vmm == Vmm::Tern { ["--serial", "stdio"] } else { ["-serial", "stdio"] });
    command
}

/// Milliseconds from just before fork and exec until `wanted` has come out of the program, or anything if that is
/// empty. Ends it then.
pub fn until(mut command: Command, wanted: &[u8]) -> io::Result<f64> {
    // A socket in place of a pipe, for its read timeout.
    let (mut output, its_end) = UnixStream::pair()?;
    output.set_read_timeout(Some(PATIENCE))?;
    command.stdin(Stdio::piped()).stdout(OwnedFd::from(its_end)).stderr(Stdio::piped());
    let begin = Instant::now();
    let mut child = spawn(command)?;
    let heard = listen(&mut output, wanted);
    let time_ms = begin.elapsed().as_secs_f64() * 1e3;
    // It may have ended by itself.
    let _ = child.kill();
    let said = child.wait_with_output()?;
    heard.map(|()| time_ms).map_err(|heard| {
        let (wanted, heard) = (String::from_utf8_lossy(wanted), String::from_utf8_lossy(&heard));
        let stderr = String::from_utf8_lossy(&said.stderr);
        io::Error::other(format!(
            "{wanted:?} did not come; the guest said {heard:?}, the program said: {stderr}"
        ))
    })
}

/// Reads until `wanted` is there. The error has what came instead.
fn listen(output: &mut UnixStream, wanted: &[u8]) -> Result<(), Vec<u8>> {
    let mut heard = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match output.read(&mut piece) {
            Ok(count @ 1..) => heard.extend_from_slice(piece.get(..count).unwrap_or_default()),
            _ => return Err(heard),
        }
        if wanted.is_empty() || heard.windows(wanted.len()).any(|part| part == wanted) {
            return Ok(());
        }
    }
}
