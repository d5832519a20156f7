//! The console shell, and the kernel command line, which sets the same things.

use crate::{
    agent::Agent,
    net::{self, Echo},
    pages::Load,
    power, print, sys, text,
};

const HELP: &str = "\
help               this text
status             all figures, as one record
pages SIZE RATE    check SIZE of memory at RATE pages/s, or max; pages off
disk DEV           check the start of a disk, destroying what is there; disk off
ip ADDR/LEN        give eth0 an address
echo PORT          answer UDP datagrams
heartbeat MS       print a record every MS milliseconds; 0 stops
clock              monotonic and boot time
mem                memory, total and free
cat FILE           print a file
ls DIR             list a directory
poweroff, reboot
";

/// What went wrong with a command, for the person who typed it.
enum Failure {
    Unknown,
    Usage(&'static str),
    System(&'static str, sys::Errno),
}

type Outcome = Result<(), Failure>;

fn system<T>(what: &'static str, result: sys::Result<T>) -> Result<T, Failure> {
    result.map_err(|errno| Failure::System(what, errno))
}

fn need<T>(value: Option<T>, usage: &'static str) -> Result<T, Failure> {
    value.ok_or(Failure::Usage(usage))
}

/// Collects console input into lines.
pub struct Lines {
    bytes: [u8; 512],
    length: usize,
    /// Too long a line is dropped whole.
    overflow: bool,
}

impl Lines {
    pub fn new() -> Self {
        Lines { bytes: [0; 512], length: 0, overflow: false }
    }

    /// Reads what has come and runs the lines that are complete.
    pub fn read(&mut self, agent: &mut Agent) {
        let mut input = [0u8; 256];
        let count = match sys::read(0, &mut input) {
            Ok(count) if count > 0 => count,
            Err(sys::EINTR | sys::EAGAIN) => return,
            // The console has gone: polling it further would spin.
            _ => return agent.shell = false,
        };
        for &byte in &input[..count] {
            if byte == b'\r' || byte == b'\n' {
                agent.prompt_due = true;
                self.finish(agent);
            } else if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            } else {
                self.overflow = true;
            }
        }
    }

    fn finish(&mut self, agent: &mut Agent) {
        let length = core::mem::take(&mut self.length);
        if core::mem::take(&mut self.overflow) {
            return print!("error: line longer than {} bytes\n", self.bytes.len());
        }
        match core::str::from_utf8(&self.bytes[..length]) {
            Ok(line) => run_line(agent, line),
            Err(_) => print!("error: not text\n"),
        }
    }
}

fn run_line(agent: &mut Agent, line: &str) {
    let mut words = line.split_ascii_whitespace();
    let Some(command) = words.next() else { return };
    let arguments = [words.next().unwrap_or(""), words.next().unwrap_or("")];
    if words.next().is_some() {
        return print!("error: too many words; try help\n");
    }
    report(command, run(agent, command, arguments));
}

fn report(command: &str, outcome: Outcome) {
    match outcome {
        Ok(()) => {}
        Err(Failure::Unknown) => print!("error: {command}: no such command; try help\n"),
        Err(Failure::Usage(usage)) => print!("error: {command}: usage: {usage}\n"),
        Err(Failure::System(what, errno)) => print!("error: {command}: cannot {what} (errno {})\n", errno.0),
    }
}

fn run(agent: &mut Agent, command: &str, [first, second]: [&str; 2]) -> Outcome {
    match command {
        "help" => text::write_all(HELP.as_bytes()),
        "status" => agent.beat(),
        "pages" if first == "off" => agent.stop_pages(),
        "pages" => {
            let load = need(Load::parse(first, second), "pages SIZE RATE, such as: pages 16M max")?;
            system("start the page checker", agent.start_pages(load))?;
        }
        "disk" if first == "off" => agent.stop_disk(),
        "disk" => {
            let path =
                need(text::path(first).filter(|_| !first.is_empty()), "disk DEV, such as: disk /dev/vda")?;
            system("start the disk checker", agent.start_disk(&path))?;
        }
        "ip" => system("set it: is it ADDR/LEN, and is there a network card?", net::set_address(first))?,
        "echo" => {
            let port = need(first.parse().ok().filter(|&port| port > 0), "echo PORT, such as: echo 7")?;
            agent.echo = None;
            agent.echo = Some(system("open the port", Echo::open(port))?);
        }
        "heartbeat" => {
            let ms = first.parse().ok().filter(|&ms| ms <= 86_400_000);
            agent.set_heartbeat(need(ms, "heartbeat MS, 0 to 86400000")?);
        }
        "clock" => {
            agent.clock.look();
            let (monotonic_ns, boot_ns) = agent.clock.last_ns();
            print!(
                "mono_us={} boot_us={} vdso={}\n",
                monotonic_ns / 1000,
                boot_ns / 1000,
                agent.clock.is_fast()
            );
        }
        "mem" => {
            let (total, free) = system("ask the kernel", sys::memory_kib())?;
            print!("total_kib={total} free_kib={free}\n");
        }
        "cat" => cat(first)?,
        "ls" => list(if first.is_empty() { "/" } else { first })?,
        "poweroff" => {
            agent.stop_checks();
            power::off();
        }
        "reboot" => {
            agent.stop_checks();
            power::reset();
        }
        _ => return Err(Failure::Unknown),
    }
    Ok(())
}

/// An open file that closes itself.
struct File(i32);

impl Drop for File {
    fn drop(&mut self) {
        sys::close(self.0);
    }
}

fn open(path: &str, flags: usize) -> Result<File, Failure> {
    let path = need(text::path(path), "a path of at most 255 bytes")?;
    system("open it", sys::open(&path, flags)).map(File)
}

fn cat(path: &str) -> Outcome {
    // Never waits: `cat /dev/kmsg` prints the kernel's messages and ends.
    let file = open(path, sys::O_RDONLY | sys::O_NONBLOCK)?;
    let mut buffer = [0u8; 8192];
    loop {
        match sys::read(file.0, &mut buffer) {
            Ok(0) | Err(sys::EAGAIN) => return Ok(()),
            Ok(count) => text::write_all(&buffer[..count]),
            Err(errno) => return Err(Failure::System("read it", errno)),
        }
    }
}

/// Names of a directory, as `struct linux_dirent64` brings them.
fn list(path: &str) -> Outcome {
    let directory = open(path, sys::O_RDONLY | sys::O_DIRECTORY)?;
    let mut buffer = [0u8; 2048];
    loop {
        let count = system("read it", sys::getdents(directory.0, &mut buffer))?;
        let mut entries = &buffer[..count];
        if entries.is_empty() {
            return Ok(());
        }
        while let [_, .., _] = entries {
            let length = usize::from(u16::from_le_bytes([entries[16], entries[17]]));
            let (entry, rest) = entries.split_at(length);
            let name = entry[19..].split(|&byte| byte == 0).next().unwrap_or(&[]);
            if name != b"." && name != b".." {
                print!("{}\n", core::str::from_utf8(name).unwrap_or("?"));
            }
            entries = rest;
        }
    }
}

/// Does what the `tern.` words of `/proc/cmdline` ask for; others belong to the kernel.
pub fn run_command_line(agent: &mut Agent) {
    let mut buffer = [0u8; 2048];
    let Ok(file) = open("/proc/cmdline", sys::O_RDONLY) else { return };
    let count = sys::read(file.0, &mut buffer).unwrap_or(0);
    let Ok(line) = core::str::from_utf8(&buffer[..count]) else { return };
    let mut pages = "0";
    let mut rate = "max";
    for (key, value) in
        line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("tern.")?.split_once('='))
    {
        let command = match key {
            "pages" => {
                pages = value;
                continue;
            }
            "rate" => {
                rate = value;
                continue;
            }
            "shell" => {
                agent.shell = value != "off";
                continue;
            }
            "heartbeat" | "disk" | "ip" | "echo" => key,
            _ => {
                print!("error: tern.{key}: unknown word on the kernel command line\n");
                continue;
            }
        };
        report(command, run(agent, command, [value, ""]));
    }
    if pages != "0" {
        report("pages", run(agent, "pages", [pages, rate]));
    }
}
