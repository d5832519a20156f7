//! What became of the latest migrations, in and out.

use std::collections::VecDeque;

use tern_migration::{Report, Status};

use crate::control::{MigrationCount, MigrationHistory};

/// Reports that are kept.
const KEPT: usize = 16;

/// The attempts before the present one.
#[derive(Debug, Default)]
pub(super) struct History {
    reports: VecDeque<Report>,
    counts: Vec<MigrationCount>,
}

impl History {
    /// An attempt that is over and makes room for another one.
    pub(super) fn add(&mut self, report: Report) {
        if report.status == Status::None {
            return;
        }
        count(&mut self.counts, &report);
        if self.reports.len() >= KEPT {
            self.reports.pop_front();
        }
        self.reports.push_back(report);
    }

    /// All, with the attempt that runs or was the last.
    pub(super) fn with(&self, last: Option<Report>) -> MigrationHistory {
        let mut counts = self.counts.clone();
        let last = last.filter(|report| report.status != Status::None);
        last.iter().for_each(|report| count(&mut counts, report));
        MigrationHistory { reports: self.reports.iter().cloned().chain(last).collect(), counts }
    }
}

fn count(counts: &mut Vec<MigrationCount>, report: &Report) {
    if !report.status.is_final() {
        return;
    }
    let (side, status) = (report.side, report.status);
    match counts.iter_mut().find(|count| (count.side, count.status) == (side, status)) {
        Some(count) => count.migrations += 1,
        None => counts.push(MigrationCount { side, status, migrations: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use tern_migration::Side;

    use super::*;

    fn report(side: Side, status: Status) -> Report {
        let mut report = Report::new(side);
        report.status = status;
        report
    }

    #[test]
    fn the_oldest_are_forgotten_and_all_are_counted() {
        let mut history = History::default();
        history.add(report(Side::Source, Status::None));
        (0..20).for_each(|_| history.add(report(Side::Source, Status::Failed)));
        history.add(report(Side::Destination, Status::Completed));
        let all = history.with(Some(report(Side::Source, Status::Active)));
        assert_eq!(all.reports.len(), KEPT + 1);
        assert_eq!(all.reports.last().unwrap().status, Status::Active);
        let counts: Vec<_> = all.counts.iter().map(|c| (c.side, c.status, c.migrations)).collect();
        assert_eq!(counts, [(Side::Source, Status::Failed, 20), (Side::Destination, Status::Completed, 1)]);
    }
}
