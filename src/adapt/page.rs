//! The record of a run as one page.

use super::config::AdaptConfig;
use super::gate::Verdict;
use super::report::{AdaptedBy, GroupWidth, Inputs, ModelFigures, PhaseReport, Report};
use crate::plot::{Bar, Page, Series, bar_chart, line_chart, number};
use crate::prune::importance::Criterion;

/// Metrics of steps that are no loss: other units, charts of their own or none.
pub const NO_LOSSES: [&str; 4] = ["gradient_norm", "primal_residual", "entries_kept", "soft_mask_mean"];
/// Broken images that are listed one by one.
const MOST_BROKEN: usize = 50;
/// Classes whose shares are drawn.
const MOST_CLASSES: usize = 40;

/// A self-contained HTML page.
pub fn page(report: &Report) -> String {
    let mut page = Page::new("secateur adapt");
    page.remark(&inputs(report));
    page.remark(&facts(report));
    verdicts(&mut page, report);
    page.heading("Models");
    models(&mut page, report);
    for phase in &report.phases {
        losses(&mut page, phase);
    }
    if report.groups.iter().any(|group| group.after < group.before) {
        page.heading("Channels of every group of layers");
        let bar = |group: &GroupWidth| Bar {
            label: group.name.clone(),
            values: vec![group.before as f64, group.after as f64],
        };
        let bars: Vec<Bar> = report.groups.iter().map(bar).collect();
        page.figure(
            &bar_chart(&bars, &["before", "after"], ""),
            "Layers that lose channels together bear the first one's name",
        );
    }
    classes(&mut page, report);
    broken(&mut page, &report.images.broken);
    page.finish()
}

/// Whose report it is.
fn inputs(report: &Report) -> String {
    let Inputs { version, teacher, target, source, .. } = &report.inputs;
    let replayed = source.as_ref().map_or_else(String::new, |source| format!(", with {source} replayed"));
    format!("{teacher}, adapted to {target}{replayed}, by secateur {version}")
}

/// What was done, in one line.
fn facts(report: &Report) -> String {
    let how = config(report).map_or_else(|| vec!["nothing removed".to_string()], |config| removal(&config));
    let facts = [
        format!("{} images to learn from, {} to judge by", report.images.train, report.images.held_out),
        format!("{:.0} s", report.wall_s),
        format!("peak memory {} MB", report.peak_rss_mb),
    ];
    how.into_iter().chain(facts).collect::<Vec<_>>().join(", ")
}

fn config(report: &Report) -> Option<AdaptConfig> {
    serde_json::from_value(report.config.clone()).ok()
}

/// How channels were chosen and what the student learnt by.
fn removal(config: &AdaptConfig) -> Vec<String> {
    let Some(budget) = config.budget else { return vec!["nothing removed".to_string()] };
    let ranking = match config.mask.criterion {
        Criterion::Fisher => "Fisher information",
        Criterion::Magnitude => "the norm of weights",
        Criterion::Transfer => "the Taylor term of phase 1's loss",
    };
    let chosen = match &config.mask {
        mask if mask.admp && mask.use_admm => "by ADMP".to_string(),
        mask if mask.admp => format!("at once by {ranking}, with ADMP's soft mask"),
        mask if mask.steps == 0 => format!("at once by {ranking}"),
        _ => format!("in rounds by {ranking}"),
    };
    let updates = config.mask.steps.saturating_add(config.fine_tune.steps);
    let trained = match (updates, config.distillation) {
        (0, _) => "not trained",
        (_, true) => "trained by distillation",
        (_, false) => "trained by phase 1's loss",
    };
    vec![format!("budget {budget}"), format!("channels chosen {chosen}"), format!("student {trained}")]
}

fn verdicts(page: &mut Page, report: &Report) {
    let verdict = |page: &mut Page, name: &str, verdict: &Verdict| {
        let word = if verdict.accepted { "accepted" } else { "refused" };
        page.verdict(verdict.accepted, &format!("{name} {word}"), &verdict.reason);
    };
    verdict(page, "Student", &report.gate);
    if let Some(int8) = &report.int8 {
        verdict(page, "int8", int8);
    }
    if let Some(latency) = &report.latency {
        let miss = 100.0 * (latency.measured_ms / latency.budget_ms - 1.0);
        let identity = &latency.identity;
        let text = format!(
            "{:.3} ms of {:.3} ms ({miss:+.1} %), predicted {:.3} ms; {}, {}, {} threads, {}",
            latency.measured_ms,
            latency.budget_ms,
            latency.predicted_ms,
            identity.device,
            identity.isa,
            identity.threads,
            identity.precision
        );
        page.verdict(miss <= 10.0, "Latency", &text);
    }
    let untrained = config(report).is_some_and(|config| config.teacher.steps == 0);
    let text = match report.adapted_by {
        AdaptedBy::Source if untrained => {
            "was not trained in this run and stayed as it came: the images' statistics were not shown to be better"
        }
        AdaptedBy::Source => "stayed as it came: neither training nor the images' statistics were shown to be better",
        AdaptedBy::Statistics if untrained => "was not trained in this run and took the images' batch-norm statistics",
        AdaptedBy::Statistics => "took the images' batch-norm statistics; training was not shown to be better",
        AdaptedBy::Training if report.survey.as_ref().is_some_and(|survey| survey.trains_by_source()) => {
            "was trained on the images with the batch-norm statistics that it came with"
        }
        AdaptedBy::Training => "was trained on the images with their batch-norm statistics",
    };
    page.remark(&format!("The teacher {text}. Beside the one that came: {}.", report.teacher_gate.reason));
}

fn models(page: &mut Page, report: &Report) {
    let rows = [("teacher", &report.teacher), ("adapted teacher", &report.adapted), ("student", &report.student)];
    let cells = |(name, f): &(&str, &ModelFigures)| {
        let accuracy = f.accuracy.map_or_else(|| "–".to_string(), |a| format!("{a:.2} %"));
        let million = |count: u64| format!("{} M", number(count as f64 / 1e6));
        vec![
            (*name).to_string(),
            accuracy,
            f.channels.to_string(),
            million(f.params),
            million(f.macs),
            format!("{} MB", number(f.bytes as f64 / 1e6)),
            format!("{} ms", number(f.latency_ms)),
        ]
    };
    let mut table: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let (s, t) = (&report.student, &report.teacher);
    let left = |part: f64, whole: f64| format!("{:.1} %", 100.0 * part / whole.max(f64::MIN_POSITIVE));
    let counts = [(s.channels, t.channels), (s.params, t.params), (s.macs, t.macs), (s.bytes, t.bytes)];
    let mut last = vec!["student ÷ teacher".to_string(), String::new()];
    last.extend(counts.map(|(part, whole)| left(part as f64, whole as f64)));
    last.push(left(s.latency_ms, t.latency_ms));
    table.push(last);
    page.table(&["model", "accuracy", "channels", "parameters", "MACs", "f32 size", "latency"], &table);
    if t.accuracy.is_some() {
        page.remark("Accuracy on all readable target images; their labels are used for nothing else.");
    }
    let bars = [
        ("channels", s.channels as f64, t.channels as f64),
        ("parameters", s.params as f64, t.params as f64),
        ("MACs", s.macs as f64, t.macs as f64),
        ("latency", s.latency_ms, t.latency_ms),
    ];
    let bar = |(label, part, whole): (&str, f64, f64)| Bar {
        label: label.to_string(),
        values: vec![100.0 * part / whole.max(f64::MIN_POSITIVE)],
    };
    page.figure(&bar_chart(&bars.map(bar), &["student"], "%"), "The student in percent of the teacher");
}

fn losses(page: &mut Page, phase: &PhaseReport) {
    page.heading(&format!("Phase: {}", phase.phase.name()));
    page.remark(&format!("{} steps in {:.0} s", phase.steps, phase.wall_s));
    let series = |wanted: &dyn Fn(&str) -> bool| -> Vec<Series> {
        let named = |(name, values): (&String, &Vec<f64>)| Series { name: words(name), points: points(phase, values) };
        phase.metrics.iter().filter(|(name, _)| wanted(name)).map(named).collect()
    };
    page.figure(&line_chart(&series(&|name| !NO_LOSSES.contains(&name)), "step"), "Losses");
    let kept = series(&|name| name == "entries_kept");
    if !kept.is_empty() {
        page.figure(&line_chart(&kept, "step"), "Channels left; in rounds, the last ones go after the last step");
    }
}

/// A metric's values at their steps; one that is not taken in every step is taken in every so many.
fn points(phase: &PhaseReport, values: &[f64]) -> Vec<(f64, f64)> {
    let every = phase.at.len().div_ceil(values.len().max(1));
    phase.at.iter().step_by(every.max(1)).zip(values).map(|(at, value)| (*at as f64, *value)).collect()
}

fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// Which classes the images seem to be of, the rarest first.
fn classes(page: &mut Page, report: &Report) {
    let Some(survey) = &report.survey else { return };
    let mut shares: Vec<(&String, f64)> =
        report.inputs.class_names.iter().zip(survey.class_shares.iter().copied()).collect();
    if shares.is_empty() {
        return;
    }
    shares.sort_by(|a, b| a.1.total_cmp(&b.1));
    page.heading("Classes among the images, as the teacher that came sees them");
    let bar =
        |(name, share): &(&String, f64)| Bar { label: (*name).clone(), values: vec![(share * 1e3).round() / 1e3] };
    let bars: Vec<Bar> = shares.iter().take(MOST_CLASSES).map(bar).collect();
    page.figure(&bar_chart(&bars, &["share"], ""), "Images of a class, in parts of an even share; the rarest first");
    if shares.len() > MOST_CLASSES {
        page.remark(&format!("and {} more, in the JSON report", shares.len() - MOST_CLASSES));
    }
}

fn broken(page: &mut Page, images: &[(String, String)]) {
    if images.is_empty() {
        return;
    }
    page.heading(&format!("{} images that could not be read", images.len()));
    let listed = images.iter().take(MOST_BROKEN);
    let rows: Vec<Vec<String>> = listed.map(|(name, why)| vec![name.clone(), why.clone()]).collect();
    page.table(&["image", "reason"], &rows);
    if images.len() > MOST_BROKEN {
        page.remark(&format!("and {} more, in the JSON report", images.len() - MOST_BROKEN));
    }
}
