//! Compresses groups of pages: by the method that was set, or by the one that is best now (`compress=auto`).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::compress::{CompressError, Compressor, Decompressor, METHODS, Method};
use super::encode::Encoding;
use crate::config::LiveParameters;
use crate::control::Control;
use crate::policy::encoding::chooser::{Chooser, Sent, Trial};
use crate::policy::encoding::{Candidate, Threads};
use crate::vm::PAGE_BYTES;

/// How the groups of a migration are compressed. All threads share it.
#[derive(Debug)]
pub(crate) enum Compression {
    /// By this method and level.
    Fixed(&'static Method, u32),
    Auto(Box<Auto>),
}

/// What decides for all threads.
#[derive(Debug)]
pub(crate) struct Auto {
    chooser: Mutex<Chooser>,
    live: LiveParameters,
    control: Arc<Control>,
}

impl Auto {
    /// Chooses among the methods whose encodings were agreed.
    pub(crate) fn new(encodings: u64, threads: usize, live: &LiveParameters, control: &Arc<Control>) -> Self {
        let agreed = |method: &&Method| encodings & (1 << method.encoding) != 0;
        // zlib is worse than zstd in everything: trying it would be for nothing.
        let zstd = METHODS.iter().filter(agreed).any(|method| method.name == "zstd");
        let worth = |method: &&Method| !zstd || method.name != "zlib";
        let candidates = METHODS.iter().filter(agreed).filter(worth).map(candidate);
        // A thread more than there are processors makes nothing faster, and what the destination has is not known.
        let here = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = Threads { source: threads.clamp(1, here) as f64, destination: here.min(8) as f64 };
        let mut chooser = Chooser::new(candidates, threads);
        chooser.set_cap(live.get().max_bandwidth_bytes_per_s);
        Self { chooser: Mutex::new(chooser), live: live.clone(), control: Arc::clone(control) }
    }

    fn chooser(&self) -> MutexGuard<'_, Chooser> {
        self.chooser.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch has been sent with the guest running.
    pub(crate) fn sent(&self, sent: Sent) {
        let mut chooser = self.chooser();
        chooser.set_cap(self.live.get().max_bandwidth_bytes_per_s);
        chooser.sent(self.control.now_us(), sent);
    }

    /// What is chosen, and why.
    pub(crate) fn reason(&self) -> String {
        self.chooser().choice().to_string()
    }
}

fn candidate(method: &Method) -> Candidate {
    Candidate { name: method.name, encoding: method.encoding, level: method.default_level }
}

/// Compresses groups. Each thread has its own contexts and buffers.
pub(crate) struct GroupEncoder {
    tools: Vec<Tool>,
    /// What trials make.
    block: Vec<u8>,
    pages: Vec<u8>,
    /// Time that trials took since this was last asked.
    trials_us: u64,
}

struct Tool {
    candidate: Candidate,
    encoding: Encoding,
    compressor: Box<dyn Compressor>,
    /// For trials.
    decompressor: Option<Box<dyn Decompressor>>,
}

impl Tool {
    fn new(method: &Method, level: u32, trials: bool) -> Result<Self, CompressError> {
        let reason = || "it has no encoding".to_owned();
        let unknown = || CompressError::Setup { method: method.name, reason: reason() };
        Ok(Self {
            candidate: candidate(method),
            encoding: Encoding::from_number(method.encoding).ok_or_else(unknown)?.encoding,
            compressor: (method.compressor)(level)?,
            decompressor: if trials { Some((method.decompressor)()?) } else { None },
        })
    }
}

impl GroupEncoder {
    pub(crate) fn new(compression: &Compression) -> Result<Self, CompressError> {
        let tools = match compression {
            Compression::Fixed(method, level) => vec![Tool::new(method, *level, false)?],
            Compression::Auto(auto) => {
                let methods: Vec<Candidate> = auto.chooser().methods().collect();
                let method = |candidate: &Candidate| super::compress::method_of(candidate.encoding);
                let methods = methods.iter().filter_map(method);
                methods
                    .map(|method| Tool::new(method, method.default_level, true))
                    .collect::<Result<_, _>>()?
            }
        };
        Ok(Self { tools, block: Vec::new(), pages: Vec::new(), trials_us: 0 })
    }

    /// Appends the block that these pages make to `out` and says what it is, if that is worth it. `live`: the guest runs.
    pub(crate) fn compress(
        &mut self,
        compression: &Compression,
        pages: &[u8],
        live: bool,
        out: &mut Vec<u8>,
    ) -> Option<Encoding> {
        let tool = match compression {
            Compression::Fixed(..) => self.tools.first_mut(),
            Compression::Auto(auto) => {
                let (sample, candidate) = {
                    let mut chooser = auto.chooser();
                    if !live {
                        chooser.stop();
                    }
                    (chooser.wants_sample(), chooser.candidate())
                };
                let candidate = if sample { self.try_all(auto, pages) } else { candidate };
                self.tools.iter_mut().find(|tool| tool.candidate == candidate)
            }
        }?;
        tool.compressor.compress(pages, out).then_some(tool.encoding)
    }

    /// Tries all methods on this group, and says which one is best now.
    fn try_all(&mut self, auto: &Auto, pages: &[u8]) -> Candidate {
        let control = &auto.control;
        let began_us = control.now_us();
        self.pages.resize(pages.len(), 0);
        for Tool { candidate, compressor, decompressor, .. } in &mut self.tools {
            self.block.clear();
            let started_us = control.now_us();
            let shorter = compressor.compress(pages, &mut self.block);
            let encode_us = control.since_us(started_us);
            let mut trial = Trial { bytes: pages.len() as u64, encode_us, decode_us: 0 };
            if shorter && let Some(decompressor) = decompressor {
                let started_us = control.now_us();
                // It is this build's own block; if it were none the method would have no time.
                let _ = decompressor.decompress(&self.block, &mut self.pages);
                trial.decode_us = control.since_us(started_us);
                trial.bytes = self.block.len() as u64;
            }
            auto.chooser().sampled(*candidate, pages.len() as u64 / PAGE_BYTES, trial);
        }
        self.trials_us += control.since_us(began_us);
        auto.chooser().candidate()
    }

    /// Time that trials took since this was last asked.
    pub(crate) fn take_trials_us(&mut self) -> u64 {
        std::mem::take(&mut self.trials_us)
    }
}

impl fmt::Debug for GroupEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupEncoder").field("methods", &self.tools.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Parameters;
    use crate::control::Unobserved;
    use crate::ram::compress::method;
    use crate::stats::Side;

    fn auto(encodings: &[u8], max_bandwidth: u64) -> Compression {
        let parameters = Parameters { max_bandwidth_bytes_per_s: max_bandwidth, ..Parameters::default() };
        let control = Control::new(Side::Source, Box::new(Unobserved)).unwrap();
        let mask = encodings.iter().map(|encoding| 1 << encoding).sum();
        Compression::Auto(Box::new(Auto::new(mask, 2, &LiveParameters::new(parameters), &control)))
    }

    fn compress(compression: &Compression, pages: &[u8], live: bool) -> Option<(Encoding, Vec<u8>)> {
        let mut out = Vec::new();
        let mut encoder = GroupEncoder::new(compression).unwrap();
        let encoding = encoder.compress(compression, pages, live, &mut out);
        assert_eq!(encoding.is_some(), !out.is_empty());
        encoding.map(|encoding| (encoding, out))
    }

    #[test]
    fn a_method_that_was_set_is_used_and_the_choice_is_of_what_was_agreed() {
        let text = b"all work and no play ".repeat(800)[..4 * 4096].to_vec();
        let fixed = Compression::Fixed(method("zlib").unwrap(), 9);
        assert_eq!(compress(&fixed, &text, true).unwrap().0, Encoding::Zlib);
        // Such a limit binds whatever else there is.
        for (agreed, best) in
            [(&[3, 4, 5][..], Encoding::Zstd), (&[3], Encoding::Lz4), (&[5], Encoding::Zlib)]
        {
            let compression = auto(agreed, 262_144);
            let (encoding, block) = compress(&compression, &text, true).unwrap();
            assert!(encoding == best || block.len() < 400, "{encoding:?}");
            let Compression::Auto(auto) = &compression else { unreachable!() };
            assert!(auto.reason().contains("max-bandwidth binds"), "{}", auto.reason());
        }
        assert_eq!(compress(&auto(&[], 262_144), &text, true), None);
        // With the guest stopped no limit holds, and nothing says that the link is slow.
        assert_eq!(compress(&auto(&[3, 4], 262_144), &text, false), None);
    }
}
