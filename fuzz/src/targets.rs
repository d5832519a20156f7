//! The table of targets.

mod boot;
mod devices;
mod engine;
mod snapshot;
mod state;
mod text;

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken, as a whole.
    Accepted,
    /// It was refused, or only a part of it was taken.
    Refused,
}

impl Verdict {
    fn accepted(yes: bool) -> Self {
        if yes { Self::Accepted } else { Self::Refused }
    }
}

/// A place where hostile bytes come in.
#[derive(Debug)]
pub struct Target {
    /// Name; the folder of its corpus.
    pub name: &'static str,
    /// What its input is.
    pub what: &'static str,
    /// Takes any bytes. What must hold beyond that is asserted inside.
    pub run: fn(&[u8]) -> Verdict,
    /// Valid inputs of this build, the first ones that a corpus gets.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Most bytes that a run may hold: so many, and so many for each byte of input. Beyond doubt, not tight: an
    /// input that makes the code allocate by a length it merely claims is far above.
    pub allowance: (usize, usize),
}

impl Target {
    /// Most bytes that a run on so long an input may hold.
    pub fn allowed_bytes(&self, input_bytes: usize) -> usize {
        let (base, factor) = self.allowance;
        base + factor * input_bytes
    }
}

/// All targets.
static TARGETS: &[&[Target]] =
    &[engine::TARGETS, snapshot::TARGETS, state::TARGETS, devices::TARGETS, text::TARGETS, boot::TARGETS];

/// All targets, one after the other.
pub fn all() -> impl Iterator<Item = &'static Target> {
    TARGETS.iter().copied().flatten()
}

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    all().find(|target| target.name == name)
}
