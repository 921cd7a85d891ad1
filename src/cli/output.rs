//! Results on stdout: a table for people, one JSON object for machines.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::adapt::gate::Verdict;
use crate::adapt::{ModelFigures, Report};
use crate::{Error, Result};

/// Writes `text` and a line feed to stdout. A closed pipe is no error: whoever read has seen enough.
pub(super) fn print(text: &str) -> Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("write to", "stdout", e)),
        _ => Ok(()),
    }
}

/// The short form of a report for machines.
pub(super) fn summary(report: &Report) -> Value {
    let mut summary = json!({
        "teacher": report.teacher,
        "adapted": report.adapted,
        "student": report.student,
        "wall_s": (report.wall_s * 100.0).round() / 100.0,
        "peak_rss_mb": report.peak_rss_mb,
        "gate": verdict(&report.gate),
    });
    if let Some(latency) = &report.latency {
        summary["latency"] = json!(latency);
    }
    if let Some(int8) = &report.int8 {
        summary["int8"] = verdict(int8);
    }
    summary
}

fn verdict(verdict: &Verdict) -> Value {
    json!({ "accepted": verdict.accepted, "reason": verdict.reason })
}

/// The report as a table.
pub(super) fn table(report: &Report) -> String {
    let mut lines = vec![format!(
        "{:<16} {:>9} {:>9} {:>10} {:>10} {:>9} {:>11}",
        "model", "accuracy", "channels", "params", "MACs", "f32 size", "latency"
    )];
    let rows = [("teacher", &report.teacher), ("adapted teacher", &report.adapted), ("student", &report.student)];
    lines.extend(rows.iter().map(|(name, figures)| row(name, figures)));
    let left = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let (s, t) = (&report.student, &report.teacher);
    lines.push(format!(
        "{:<16} {:>9} {:>8.1}% {:>9.1}% {:>9.1}% {:>8.1}% {:>10.1}%",
        "  of the teacher",
        "",
        left(s.channels, t.channels),
        left(s.params, t.params),
        left(s.macs, t.macs),
        left(s.bytes, t.bytes),
        100.0 * s.latency_ms / t.latency_ms.max(f64::MIN_POSITIVE)
    ));
    if let Some(l) = &report.latency {
        lines.push(format!(
            "latency budget: {:.2} ms, predicted {:.2} ms, measured {:.2} ms ({} threads, {})",
            l.budget_ms, l.predicted_ms, l.measured_ms, l.identity.threads, l.identity.precision
        ));
    }
    for (name, verdict) in [("gate", Some(&report.gate)), ("int8", report.int8.as_ref())] {
        let Some(verdict) = verdict else { continue };
        let word = if verdict.accepted { "accepted" } else { "REFUSED" };
        lines.push(format!("{name}: {word}: {}", verdict.reason));
    }
    if t.accuracy.is_some() {
        lines.push("accuracy: on all readable target images; their labels are used for nothing else".to_string());
    }
    lines.push(format!("{:.1} s, peak memory {} MB", report.wall_s, report.peak_rss_mb));
    lines.join("\n")
}

fn row(name: &str, figures: &ModelFigures) -> String {
    let accuracy = figures.accuracy.map_or_else(|| "-".to_string(), |a| format!("{a:.2} %"));
    format!(
        "{name:<16} {accuracy:>9} {:>9} {:>10} {:>10} {:>9} {:>8.2} ms",
        figures.channels,
        short(figures.params),
        short(figures.macs),
        format!("{}B", short(figures.bytes)),
        figures.latency_ms
    )
}

/// A count with three significant digits and k, M or G.
pub(super) fn short(count: u64) -> String {
    let count = count as f64;
    let (value, unit) = match count {
        c if c >= 1e9 => (c / 1e9, "G"),
        c if c >= 1e6 => (c / 1e6, "M"),
        c if c >= 1e3 => (c / 1e3, "k"),
        c => return format!("{c}"),
    };
    match value {
        v if v >= 100.0 => format!("{v:.0} {unit}"),
        v if v >= 10.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.2} {unit}"),
    }
}
