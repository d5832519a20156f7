//! What the command line asks of pulse. Words that are not ours are ignored, so that a
//! kernel's usual ones do no harm; a bad value of one of ours is an error.

pub(crate) const PAGE_BYTES: u64 = 4096;
pub(crate) const MAX_CPUS: u32 = 4;

/// The order in which pages are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Seq,
    Random,
    /// Nine visits of ten go to the first tenth of the pages.
    Hot,
}

/// What the pages hold behind their header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// One byte, repeated; it changes with the generation.
    Constant,
    /// Words of a small vocabulary: compresses well.
    Text,
    /// Does not compress.
    Random,
    /// Text, but every other generation is all zero, header included.
    Zero,
}

/// What a test spoils on purpose, to see that the checks notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poke {
    Content,
    Generation,
    Number,
    Table,
    /// A page fault.
    Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// All vCPUs together; 0 = idle.
    pub(crate) ws_bytes: u64,
    /// All vCPUs together; `None` = as fast as it goes.
    pub(crate) rate_pages_per_s: Option<u64>,
    pub(crate) pattern: Pattern,
    /// Written at each visit: 1, 64 or 4096.
    pub(crate) changed_bytes: u64,
    pub(crate) content: Content,
    /// Guest-physical address of the first page.
    pub(crate) start: u64,
    pub(crate) cpus: u32,
    pub(crate) interval_ms: u64,
    /// The longest sleep; `None` = until the next thing to do.
    pub(crate) nap_ms: Option<u64>,
    pub(crate) quit_beats: Option<u64>,
    pub(crate) poke_beat: Option<u64>,
    pub(crate) poke: Poke,
    /// Registers, timers and accesses instead of pages.
    pub(crate) torture: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ws_bytes: 32 << 20,
            rate_pages_per_s: None,
            pattern: Pattern::Seq,
            changed_bytes: 64,
            content: Content::Text,
            start: 16 << 20,
            cpus: 1,
            interval_ms: 100,
            nap_ms: None,
            quit_beats: None,
            poke_beat: None,
            poke: Poke::Content,
            torture: false,
        }
    }
}

impl Options {
    /// Reads `word=value` pairs; the error is the word that has a bad value.
    pub(crate) fn parse(command_line: &str) -> Result<Self, &str> {
        let mut options = Self::default();
        for word in command_line.split_ascii_whitespace() {
            if let Some((name, value)) = word.split_once('=') {
                options.set(name, value).ok_or(word)?;
            }
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "ws" => self.ws_bytes = size(value)?,
            "rate" if value == "max" => self.rate_pages_per_s = None,
            "rate" => self.rate_pages_per_s = Some(within(value, 1, 1_000_000_000)?),
            "pattern" => {
                let known = [Pattern::Seq, Pattern::Random, Pattern::Hot];
                self.pattern = known.into_iter().find(|pattern| pattern.name() == value)?;
            }
            "bytes" => self.changed_bytes = choose(value, &[("1", 1), ("64", 64), ("4096", 4096)])?,
            "content" => {
                let known = [Content::Constant, Content::Text, Content::Random, Content::Zero];
                self.content = known.into_iter().find(|content| content.name() == value)?;
            }
            "start" => self.start = size(value).filter(|start| start % PAGE_BYTES == 0)?,
            "cpus" => self.cpus = u32::try_from(within(value, 1, u64::from(MAX_CPUS))?).ok()?,
            "interval" => self.interval_ms = within(value, 1, 3_600_000)?,
            "nap" => self.nap_ms = Some(within(value, 2, 3_600_000)?),
            "quit" => self.quit_beats = Some(within(value, 1, u64::MAX)?),
            "poke" => self.poke_beat = Some(within(value, 1, u64::MAX)?),
            "torture" => self.torture = choose(value, &[("on", true), ("off", false)])?,
            "poke-at" => {
                let known = [
                    ("content", Poke::Content),
                    ("generation", Poke::Generation),
                    ("number", Poke::Number),
                    ("table", Poke::Table),
                    ("fault", Poke::Fault),
                ];
                self.poke = choose(value, &known)?;
            }
            _ => {}
        }
        Some(())
    }
}

fn choose<T: Copy>(value: &str, known: &[(&str, T)]) -> Option<T> {
    known.iter().find(|(name, _)| *name == value).map(|(_, meaning)| *meaning)
}

fn within(value: &str, least: u64, most: u64) -> Option<u64> {
    value.parse().ok().filter(|number| (least..=most).contains(number))
}

/// Bytes, with K, M or G as people write them.
fn size(value: &str) -> Option<u64> {
    let (digits, shift) = match value.as_bytes().last()? {
        b'K' | b'k' => (&value[..value.len() - 1], 10),
        b'M' | b'm' => (&value[..value.len() - 1], 20),
        b'G' | b'g' => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

impl Pattern {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Seq => "seq",
            Self::Random => "random",
            Self::Hot => "hot",
        }
    }
}

impl Content {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Text => "text",
            Self::Random => "random",
            Self::Zero => "zero",
        }
    }
}
