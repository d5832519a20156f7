//! The figures: measured for both VMMs in turn, shown as a table, written as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::plan::Pair;
use crate::statistics::Samples;

/// What is aimed at. Printed beside the result, never asserted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// tern's median, in the figure's unit.
    Below(f64),
    /// tern's median as a part of QEMU's.
    PartOfQemu(f64),
}

/// One figure of both VMMs.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What is measured.
    pub name: String,
    /// Of what.
    pub unit: &'static str,
    /// What is aimed at.
    pub aim: Option<Aim>,
    /// tern's runs.
    pub tern: Samples,
    /// QEMU's runs; empty where only tern is measured.
    pub qemu: Samples,
}

/// The figures that were measured together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// For the command line and JSON.
    pub name: &'static str,
    /// One line for people: the guest and the settings.
    pub setting: String,
    /// In the order of the table.
    pub figures: Vec<Figure>,
    /// What the figures say, in words.
    pub notes: Vec<String>,
}

impl Aim {
    fn text(self, unit: &str) -> String {
        match self {
            Self::Below(limit) => format!("< {limit} {unit}"),
            Self::PartOfQemu(1.0) => "<= QEMU".to_owned(),
            Self::PartOfQemu(part) => format!("<= {part} of QEMU"),
        }
    }
}

impl Figure {
    /// Of runs taken in turns.
    pub fn new(name: impl Into<String>, unit: &'static str, pair: Pair, aim: Option<Aim>) -> Self {
        Self { name: name.into(), unit, aim, tern: pair.tern, qemu: pair.qemu }
    }

    /// tern's median over QEMU's.
    pub fn ratio(&self) -> Option<f64> {
        let (tern, qemu) = (self.tern.median()?, self.qemu.median()?);
        (qemu > 0.0).then_some(tern / qemu)
    }

    /// Is the aim reached? None where there is none, or nothing to compare with.
    pub fn reached(&self) -> Option<bool> {
        match self.aim? {
            Aim::Below(limit) => Some(self.tern.median()? < limit),
            Aim::PartOfQemu(part) => Some(self.tern.median()? <= part * self.qemu.median()?),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "unit": self.unit,
            "tern": self.tern.to_json(),
            "qemu": self.qemu.to_json(),
            "tern_over_qemu": self.ratio(),
            "aim": self.aim.map(|aim| aim.text(self.unit)),
            "aim_reached": self.reached(),
        })
    }

    fn row(&self) -> [String; 5] {
        let aim = match (self.aim, self.reached()) {
            (Some(aim), Some(true)) => format!("{}: reached", aim.text(self.unit)),
            (Some(aim), Some(false)) => format!("{}: MISSED", aim.text(self.unit)),
            (Some(aim), None) => aim.text(self.unit),
            (None, _) => String::new(),
        };
        let ratio = self.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let name = [&self.name, self.unit].join(if self.unit.is_empty() { "" } else { ", " });
        [name, cell(&self.tern), cell(&self.qemu), ratio, aim]
    }
}

impl Group {
    /// For the JSON file.
    pub fn to_json(&self) -> Value {
        let figures = self.figures.iter().map(Figure::to_json).collect::<Vec<_>>();
        json!({ "name": self.name, "setting": self.setting, "figures": figures, "notes": self.notes })
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut rows = vec![["", "tern", "QEMU", "ratio", "aim"].map(str::to_owned)];
        rows.extend(self.figures.iter().map(Figure::row));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [0, 1, 2, 3].map(width);
        let mut table = format!("{}: {}\n", self.name, self.setting);
        for [name, tern, qemu, ratio, aim] in &rows {
            let [a, b, c, d] = widths;
            let line = format!("  {name:a$}  {tern:>b$}  {qemu:>c$}  {ratio:>d$}  {aim}");
            let _ = writeln!(table, "{}", line.trim_end());
        }
        for note in &self.notes {
            let _ = writeln!(table, "  {note}");
        }
        table
    }
}

/// `median [min - max]`.
fn cell(samples: &Samples) -> String {
    match (samples.median(), samples.range()) {
        (Some(median), Some((least, most))) => {
            format!("{} [{} - {}]", number(median), number(least), number(most))
        }
        _ => "-".to_owned(),
    }
}

/// Three digits that count, or all of a larger number.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(aim: Aim, tern: f64, qemu: f64) -> Figure {
        let samples = |value| Samples(vec![value]);
        Figure {
            name: "total".to_owned(),
            unit: "ms",
            aim: Some(aim),
            tern: samples(tern),
            qemu: samples(qemu),
        }
    }

    #[test]
    fn aims_are_compared_with_medians() {
        assert_eq!(figure(Aim::PartOfQemu(0.2), 10.0, 50.0).reached(), Some(true));
        assert_eq!(figure(Aim::PartOfQemu(0.2), 10.1, 50.0).reached(), Some(false));
        assert_eq!(figure(Aim::Below(8.0), 7.9, 1.0).reached(), Some(true));
        let alone = Figure { qemu: Samples::default(), ..figure(Aim::PartOfQemu(1.0), 1.0, 1.0) };
        assert_eq!((alone.reached(), alone.ratio()), (None, None));
    }

    #[test]
    fn a_missed_aim_can_be_seen() {
        let figures = vec![figure(Aim::PartOfQemu(0.5), 30.0, 40.0)];
        let table =
            Group { name: "idle", setting: "1 GiB".to_owned(), figures, notes: Vec::new() }.to_table();
        assert!(
            table.contains("30.0 [30.0 - 30.0]  40.0 [40.0 - 40.0]   0.75  <= 0.5 of QEMU: MISSED"),
            "{table}"
        );
    }
}
