//! What was found of one thing, and what to do about it.

use serde::Serialize;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be, or all the same.
    Good,
    /// It works, and could work better.
    Advice,
    /// Something will not work.
    Problem,
}

impl Level {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Advice => "advice",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub level: Level,
    pub found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// Nothing to do.
    pub fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Good, found: found.into(), advice: None }
    }

    /// This finding with advice.
    pub fn advise(self, advice: impl Into<String>) -> Self {
        Self { level: Level::Advice, advice: Some(advice.into()), ..self }
    }

    /// This finding as a problem, with what solves it.
    pub fn problem(self, advice: impl Into<String>) -> Self {
        Self { level: Level::Problem, advice: Some(advice.into()), ..self }
    }
}

/// A line for each finding, below it its advice.
pub fn table(findings: &[Finding]) -> String {
    let lines = findings.iter().flat_map(|f| {
        let advice = f.advice.as_ref().map(|advice| format!("{:21}→ {advice}", ""));
        std::iter::once(format!("{:<8} {:<11} {}", f.level.name(), f.check, f.found)).chain(advice)
    });
    lines.collect::<Vec<_>>().join("\n")
}
