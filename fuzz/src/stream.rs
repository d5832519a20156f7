//! What a source sends, as frames that can be changed and written again. Written from
//! `migration/PROTOCOL.md`, without the engine's code: that would refuse to write what is wrong here.

/// The eight bytes in front.
pub const MAGIC: [u8; 8] = *b"TERN-MIG";

/// Bytes of a header.
pub const HEADER_BYTES: usize = 24;
/// Bytes of it that the checksum covers.
const COVERED_BYTES: usize = 20;

/// A side introduces itself.
pub const HELLO: u8 = 1;
/// What is to be moved.
pub const OFFER: u8 = 2;
/// A batch of pages.
pub const PAGES: u8 = 5;
/// The end of a round.
pub const ROUND_END: u8 = 6;
/// The sections.
pub const STATE: u8 = 7;
/// The guest changes hands.
pub const COMMIT: u8 = 9;

/// One frame, its header as it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// 0 where it is right.
    pub reserved: u16,
    /// How many rounds have ended before it.
    pub round: u32,
    /// How many frames came before it.
    pub number: u32,
    /// Claimed length.
    pub length: u32,
    /// How much of it the checksum covers.
    pub covered: u32,
    /// Checksum.
    pub crc32: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame of this type; [`seal`] does the rest.
    pub fn new(kind: u8, payload: Vec<u8>) -> Self {
        let covered = payload.len() as u32;
        Self { kind, flags: 0, reserved: 0, round: 0, number: 0, length: covered, covered, crc32: 0, payload }
    }

    fn header(&self) -> [u8; COVERED_BYTES] {
        let mut header = [0; COVERED_BYTES];
        let numbers = [self.round, self.number, self.length, self.covered];
        let start = [self.kind, self.flags].into_iter().chain(self.reserved.to_le_bytes());
        let bytes = start.chain(numbers.into_iter().flat_map(u32::to_le_bytes));
        header.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        header
    }

    /// Makes the checksum right for what is there now.
    pub fn seal(&mut self) {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.header());
        let covered = (self.covered as usize).min(self.payload.len());
        crc.update(self.payload.get(..covered).unwrap_or_default());
        self.crc32 = crc.finalize();
    }

    /// Lengths that follow from the payload; all of a message is covered, of pages what was before.
    pub fn measure(&mut self) {
        self.length = self.payload.len() as u32;
        self.covered = if self.kind == PAGES { self.covered.min(self.length) } else { self.length };
    }

    /// Header and payload.
    pub fn bytes(&self) -> Vec<u8> {
        [&self.header()[..], &self.crc32.to_le_bytes(), &self.payload].concat()
    }
}

/// The frames behind the magic. What is no frame is made into one: a payload ends with the bytes.
pub fn parse(bytes: &[u8]) -> Vec<Frame> {
    let mut rest = bytes.get(MAGIC.len()..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let [kind, flags, reserved0, reserved1, words @ ..] = header;
        let mut numbers = [0; 5];
        numbers.iter_mut().zip(words.as_chunks::<4>().0).for_each(|(n, b)| *n = u32::from_le_bytes(*b));
        let [round, number, length, covered, crc32] = numbers;
        let (payload, behind) = behind.split_at(behind.len().min(length as usize));
        let reserved = u16::from_le_bytes([*reserved0, *reserved1]);
        let (kind, flags, payload) = (*kind, *flags, payload.to_vec());
        frames.push(Frame { kind, flags, reserved, round, number, length, covered, crc32, payload });
        rest = behind;
    }
    frames
}

/// The bytes of a connection with these frames, as they are.
pub fn write(frames: &[Frame]) -> Vec<u8> {
    frames.iter().fold(MAGIC.to_vec(), |mut out, frame| {
        out.extend(frame.bytes());
        out
    })
}

/// Makes numbers, rounds and checksums right; whether the lengths are is left to the caller.
pub fn seal(frames: &mut [Frame]) {
    let mut round = 0;
    for (number, frame) in (0u32..).zip(frames) {
        (frame.number, frame.round) = (number, round);
        frame.seal();
        round += u32::from(frame.kind == ROUND_END);
    }
}

/// The same for a destination's frames: each has the round that the source is in, which it has from the recording.
pub fn seal_answers(frames: &mut [Frame]) {
    for (number, frame) in (0u32..).zip(frames) {
        frame.number = number;
        frame.seal();
    }
}
