//! Numbers that follow from a seed and from nothing else: a failure is repeated by its seed.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

/// Values at which code that counts goes wrong.
const EDGES: [u64; 20] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xfff,
    0x1000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

impl Random {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.any() % (end as u64).max(1)).unwrap_or(0)
    }

    /// True once in `often`.
    pub fn one_in(&mut self, often: usize) -> bool {
        self.below(often) == 0
    }

    /// Something else than `was`: an edge, a neighbour, another bit, or anything.
    pub fn other_than(&mut self, was: u64) -> u64 {
        let new = match self.below(4) {
            0 => EDGES.get(self.below(EDGES.len())).copied().unwrap_or(0),
            1 => was.wrapping_add(if self.one_in(2) { 1 } else { u64::MAX }),
            2 => was ^ 1 << self.below(64),
            _ => self.any(),
        };
        if new == was { was ^ 1 } else { new }
    }

    /// Flips a bit of `bytes`, if there is one.
    pub fn flip(&mut self, bytes: &mut [u8]) {
        let bit = self.below(bytes.len() * 8);
        if let Some(byte) = bytes.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// Drops, doubles or swaps elements of `list`; says what it did.
    pub fn rearrange<T: Clone>(&mut self, list: &mut Vec<T>) -> &'static str {
        let (one, other) = (self.below(list.len()), self.below(list.len()));
        match self.below(3) {
            0 if one < list.len() => {
                list.remove(one);
                "dropped"
            }
            1 => {
                if let Some(found) = list.get(one).cloned() {
                    list.insert(other, found);
                }
                "doubled"
            }
            _ => {
                if one < list.len() && other < list.len() {
                    list.swap(one, other);
                }
                "swapped"
            }
        }
    }
}
