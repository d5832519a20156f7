//! Medians and spreads of a few runs.

use serde_json::{Value, json};

/// The runs of one figure of one VMM, in the order they were made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The middle one, or the mean of the middle two.
    pub fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            count if count % 2 == 1 => sorted.get(middle).copied(),
            _ => Some((sorted.get(middle - 1)? + sorted.get(middle)?) / 2.0),
        }
    }

    /// Smallest and largest.
    pub fn range(&self) -> Option<(f64, f64)> {
        let sorted = self.sorted();
        Some((*sorted.first()?, *sorted.last()?))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// For the JSON file: everything.
    pub fn to_json(&self) -> Value {
        let (least, most) = self.range().unzip();
        json!({ "median": self.median(), "min": least, "max": most, "runs": self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        let median = |runs: &[f64]| Samples(runs.to_vec()).median();
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
