//! Batches of pages as they are sent: at once, or piece by piece under a limit.

use super::{FrameType, HEADER_BYTES, Wire};
use crate::channel::span::OutSpan;
use crate::error::MigrationError;
use crate::ram::Batch;

/// A bandwidth limit.
pub(crate) struct Limit<'l> {
    /// Most bytes that may go at once.
    pub(crate) piece_bytes: usize,
    /// Waits until so many bytes may go.
    pub(crate) pass: &'l dyn Fn(u64) -> Result<(), MigrationError>,
}

impl Wire {
    /// Sends a batch of pages: its records, then its data; under a limit piece by piece.
    pub(crate) fn send_pages(
        &mut self,
        batch: &mut Batch<'_>,
        limit: Option<&Limit<'_>>,
    ) -> Result<(), MigrationError> {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        out.resize(HEADER_BYTES, 0);
        batch.records.iter().for_each(|record| record.put(&mut out));
        let length = out.len() - HEADER_BYTES + batch.data_bytes;
        let result = self
            .seal(FrameType::Pages, 0, &mut out, length)
            .and_then(|()| self.send_records_and_data(&out, &mut batch.data, limit));
        self.out = out;
        result
    }

    fn send_records_and_data(
        &mut self,
        records: &[u8],
        data: &mut [OutSpan<'_>],
        limit: Option<&Limit<'_>>,
    ) -> Result<(), MigrationError> {
        const STATE: &str = "sending memory";
        self.count(HEADER_BYTES);
        if let Some(limit) = limit {
            (limit.pass)(records.len() as u64)?;
        }
        self.send_spans(&mut [OutSpan::bytes(records)], !data.is_empty(), STATE)?;
        self.cut_sending = !data.is_empty();
        match limit {
            Some(limit) => self.send_in_pieces(data, limit, STATE)?,
            None => self.send_spans(data, false, STATE)?,
        }
        self.frame_sent();
        Ok(())
    }

    fn send_in_pieces(
        &mut self,
        data: &[OutSpan<'_>],
        limit: &Limit<'_>,
        state: &'static str,
    ) -> Result<(), MigrationError> {
        for span in data {
            for piece in span.pieces(limit.piece_bytes) {
                (limit.pass)(piece.len() as u64)?;
                self.send_spans(&mut [piece], false, state)?;
                // The frame isn't over.
                self.cut_sending = true;
            }
        }
        self.cut_sending = false;
        Ok(())
    }
}
