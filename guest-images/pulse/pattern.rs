//! Which page comes next.

use crate::options::Pattern;
use crate::page::Random;

pub(crate) struct Walk {
    pattern: Pattern,
    pages: u64,
    next: u64,
    random: Random,
}

impl Walk {
    /// A walk over pages `0..pages`; `pages` is not 0.
    pub(crate) fn new(pattern: Pattern, pages: u64, seed: u64) -> Self {
        Self { pattern, pages, next: 0, random: Random::new(seed) }
    }

    pub(crate) fn next(&mut self) -> u64 {
        match self.pattern {
            Pattern::Seq => {
                let page = self.next;
                self.next = if page + 1 == self.pages { 0 } else { page + 1 };
                page
            }
            Pattern::Random => self.random.below(self.pages),
            Pattern::Hot => {
                let hot = self.pages.div_ceil(10);
                if self.pages == hot || self.random.below(10) != 0 {
                    self.random.below(hot)
                } else {
                    hot + self.random.below(self.pages - hot)
                }
            }
        }
    }
}
