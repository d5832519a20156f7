//! `tern dump`: a guest's memory and registers for a debugger.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tern_migration::snapshot::SnapshotFile;

use super::{Exit, Failure, print, print_json, save};
use crate::control::chain;
use crate::dump::{self, DumpError};

pub(super) const EXAMPLES: &str = "\
Examples:
  tern dump --elf web.core web.snap
  tern dump --elf web.core --control /tmp/a.sock
  gdb vmlinux web.core
  crash vmlinux web.core

Physical memory is at its own addresses; what the first vCPU's page tables map in the upper half of \
the address space, the kernel, is there too. Each vCPU is a thread. Only you can read the core: all of \
the guest's memory is in it.

crash needs a release that knows the guest's kernel (8.0.6 or later of Linux 6.12), and a vmlinux with \
CONFIG_DEBUG_INFO, CONFIG_X86_MCE and CONFIG_AMD_MEM_ENCRYPT and without CONFIG_SLUB_TINY, as distributions' are; where one is \
missing, --minimal still shows the kernel's log, symbols and memory.";

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("from").required(true))]
pub struct DumpArgs {
    /// The core to make, or to replace: an ELF file for gdb and crash
    #[arg(long, value_name = "CORE")]
    elf: PathBuf,
    /// A file made by `tern save`
    #[arg(value_name = "FILE", group = "from")]
    file: Option<PathBuf>,
    /// Control socket of a running guest, in place of FILE: it is saved next to the core, and goes on
    #[arg(long, value_name = "PATH", group = "from")]
    control: Option<PathBuf>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DumpArgs) -> Result<Exit, Failure> {
    let DumpArgs { elf, file, control, json } = args;
    match (file, control) {
        (Some(file), _) => convert(file, elf, *json),
        (None, Some(control)) => {
            dump::require_free(elf).map_err(|error| Failure::new(&error))?;
            // Beside the core: there is room for one of them, so most likely for both.
            let mut beside = elf.as_os_str().to_owned();
            beside.push(".snapshot");
            let beside = PathBuf::from(beside);
            if beside.exists() {
                let text = format!("{} exists: move it away, it is needed here", beside.display());
                return Err(Failure::text(Exit::Failure, text));
            }
            save::and_go_on(control, &beside)?;
            let converted = convert(&beside, elf, *json);
            let removed = std::fs::remove_file(&beside);
            removed.map_err(|error| Failure::new(&error))?;
            converted
        }
        (None, None) => Err(Failure::text(Exit::Usage, "give a FILE or --control PATH")),
    }
}

fn convert(from: &Path, to: &Path, json: bool) -> Result<Exit, Failure> {
    let snapshot = SnapshotFile::open(from).map_err(|error| Failure::new(&error))?;
    let style = ProgressStyle::with_template("writing {percent:>3} % {wide_bar} {eta}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut progress = |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let wrong = |error: DumpError| match error {
        DumpError::Snapshot(_) | DumpError::State(_) => {
            Failure::text(Exit::Failure, format!("snapshot {}: {}", from.display(), chain(&error)))
        }
        DumpError::InTheWay { .. } | DumpError::Write { .. } => Failure::new(&error),
    };
    let dumped = dump::write(&snapshot, to, &mut progress).map_err(wrong)?;
    bar.finish_and_clear();
    if json {
        return print_json(&dumped);
    }
    let dump::Dumped { cpus, memory_bytes, mappings } = dumped;
    let memory = crate::config::ByteSize(memory_bytes);
    print(&format!("{}: {cpus} vCPUs, {memory} of memory, {mappings} kernel mappings\n", to.display()))
}
