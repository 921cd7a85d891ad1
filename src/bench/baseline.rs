//! An earlier run to compare with.

use std::path::{Path, PathBuf};

use super::row::Row;
use crate::{Error, Result};

/// A change below this part is none, however quiet the board.
const LEAST: f64 = 0.05;

/// Rows of an earlier run, from its JSON lines.
#[derive(Debug, Clone)]
pub struct Baseline {
    path: PathBuf,
    rows: Vec<Row>,
}

/// A row beside its earlier one.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The row, by its place.
    pub row: usize,
    /// Median before, in ms.
    pub before_ms: f64,
    /// Median now, in ms.
    pub now_ms: f64,
    /// The relative change that noise can explain.
    pub tolerance: f64,
}

impl Comparison {
    /// Whether it got slower beyond noise.
    pub fn regressed(&self) -> bool {
        self.now_ms > self.before_ms * (1.0 + self.tolerance)
    }
}

impl Baseline {
    /// Reads the JSON lines that `bench --json` wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Usage`] naming file and line of what is no such row, or if there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let row = |(index, line): (usize, &str)| {
            serde_json::from_str::<Row>(line).map_err(|e| {
                Error::Usage(format!("{}: line {}: not a row of `bench --json`: {e}", path.display(), index + 1))
            })
        };
        let rows = lines.map(row).collect::<Result<Vec<Row>>>()?;
        if rows.is_empty() {
            return Err(Error::Usage(format!("{}: expected rows of `bench --json`, got none", path.display())));
        }
        Ok(Self { path: path.to_path_buf(), rows })
    }

    /// Rows that both runs have. Tells of the others, and of a baseline from another board.
    pub fn compare(&self, rows: &[Row]) -> Vec<Comparison> {
        let mut found = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let same = |other: &&Row| {
                (&other.model, other.precision, other.threads, other.batch)
                    == (&row.model, row.precision, row.threads, row.batch)
            };
            let Some(before) = self.rows.iter().find(same) else {
                log::warn!("{}: no row for {}", self.path.display(), row.case());
                continue;
            };
            if before.board.name != row.board.name || before.isa != row.isa {
                log::warn!("{}: {} was measured on another board", self.path.display(), row.case());
            }
            found.push(Comparison {
                row: index,
                before_ms: before.median_ms,
                now_ms: row.median_ms,
                tolerance: LEAST.max(before.noise + row.noise),
            });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_no_regression() {
        let compared = |before_ms, now_ms, tolerance| Comparison { row: 0, before_ms, now_ms, tolerance };
        assert!(compared(1.0, 1.2, 0.1).regressed());
        assert!(!compared(1.0, 1.2, 0.25).regressed());
        assert!(!compared(1.0, 0.5, 0.05).regressed());
    }
}
