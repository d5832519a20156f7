//! What is to be measured, and with what.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use crate::contender::{BOTH, Programs, Vmm};
use crate::interrupt;
use crate::statistics::Samples;

/// How memory moves between the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// A unix socket.
    Unix,
    /// TCP over 127.0.0.1.
    Tcp,
}

/// The settings of one bench.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Runs of each figure and VMM.
    pub runs: usize,
    /// Runs of what takes long.
    pub slow_runs: usize,
    /// Of all migrations.
    pub transport: Transport,
    /// Both VMMs.
    pub programs: Programs,
    /// pulse as a file.
    pub pulse: PathBuf,
    /// Files of the bench.
    pub folder: Arc<TempDir>,
    /// A folder on a disk, for guests that are saved.
    pub on_disk: Arc<TempDir>,
}

/// The runs of one figure: tern's and QEMU's.
#[derive(Debug, Clone, Default)]
pub struct Pair {
    /// tern's.
    pub tern: Samples,
    /// QEMU's.
    pub qemu: Samples,
}

impl Plan {
    /// The same over another transport.
    pub fn over(&self, transport: Transport) -> Self {
        Self { transport, ..self.clone() }
    }

    /// Writes a file of the bench's own.
    pub fn file(&self, name: &str, content: &[u8]) -> io::Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }

    /// Takes `N` figures of each VMM, in turns (A B A B), after one turn of each that is not counted: it
    /// brings files and memory to where they are for all later ones.
    pub fn in_turns<const N: usize>(
        &self,
        what: &str,
        runs: usize,
        measure: impl FnMut(Vmm) -> io::Result<[f64; N]>,
    ) -> io::Result<[Pair; N]> {
        self.turns_of(&BOTH, what, runs, measure)
    }

    /// As [`Self::in_turns`], where only these have a turn.
    pub fn turns_of<const N: usize>(
        &self,
        vmms: &[Vmm],
        what: &str,
        runs: usize,
        mut measure: impl FnMut(Vmm) -> io::Result<[f64; N]>,
    ) -> io::Result<[Pair; N]> {
        let mut pairs = std::array::from_fn(|_| Pair::default());
        for run in 0..=runs {
            for &vmm in vmms {
                interrupt::check()?;
                eprint!("\r{what}: run {run} of {runs}, {vmm:?}    ");
                let figures = measure(vmm)?;
                if run > 0 {
                    pairs
                        .iter_mut()
                        .zip(figures)
                        .for_each(|(pair, figure): (&mut Pair, f64)| pair.push(vmm, figure));
                }
            }
        }
        eprint!("\r\x1b[K");
        Ok(pairs)
    }
}

impl Pair {
    fn push(&mut self, vmm: Vmm, figure: f64) {
        match vmm {
            Vmm::Tern => self.tern.0.push(figure),
            Vmm::Qemu => self.qemu.0.push(figure),
        }
    }
}
