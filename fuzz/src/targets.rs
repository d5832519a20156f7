//! The table of targets.

mod boot;
mod codecs;
mod devices;
mod engine;
mod snapshot;
mod state;
mod text;

use std::sync::OnceLock;

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
pub struct Target {
    /// Name; the folder of its corpus.
    pub name: String,
    /// What its input is.
    pub what: &'static str,
    run: Run,
    seeds: Seeds,
    allowance: Allowance,
}

type Run = Box<dyn Fn(&[u8]) -> Verdict + Send + Sync>;
type Seeds = Box<dyn Fn() -> Vec<Vec<u8>> + Send + Sync>;

/// Most bytes that a run may hold: so many, and so many for each byte of input. Beyond doubt, not tight: code that
/// allocates by a length that an input merely claims is far above.
type Allowance = (usize, usize);

impl Target {
    fn new(
        name: impl Into<String>,
        what: &'static str,
        allowance: Allowance,
        run: impl Fn(&[u8]) -> Verdict + Send + Sync + 'static,
        seeds: impl Fn() -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), what, run: Box::new(run), seeds: Box::new(seeds), allowance }
    }

    /// Takes any bytes. What must hold beyond that is asserted inside.
    pub fn run(&self, bytes: &[u8]) -> Verdict {
        (self.run)(bytes)
    }

    /// Valid inputs of this build, the first ones that a corpus gets.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        (self.seeds)()
    }

    /// Most bytes that a run on so long an input may hold.
    pub fn allowed_bytes(&self, input_bytes: usize) -> usize {
        let (base, factor) = self.allowance;
        base + factor * input_bytes
    }
}

/// All targets.
pub fn all() -> &'static [Target] {
    static ALL: OnceLock<Vec<Target>> = OnceLock::new();
    ALL.get_or_init(|| {
        let tables = [
            engine::targets(),
            codecs::targets(),
            snapshot::targets(),
            state::targets(),
            devices::targets(),
            text::targets(),
        ];
        tables.into_iter().flatten().chain([boot::target()]).collect()
    })
}

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    all().iter().find(|target| target.name == name)
}
