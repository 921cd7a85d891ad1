//! Means and spreads over seeds, as tables for people.

use super::method::Method;
use super::outcome::Outcome;
use super::settings::Settings;
use super::validation::{Judged, Validation};
use super::worst::{self, WorstOutcome};
use crate::plot::{Page, number};

const HEADER: [&str; 9] =
    ["task", "method", "removed", "accuracy", "seeds", "parameters", "MACs", "latency ms", "gate"];

/// The seeds of one method on one task.
struct Group<'a>(Vec<&'a Outcome>);

impl Group<'_> {
    fn mean(&self, value: impl Fn(&Outcome) -> f64) -> f64 {
        self.0.iter().map(|o| value(o)).sum::<f64>() / self.0.len() as f64
    }

    /// Sample standard deviation; nothing for a single seed.
    fn spread(&self) -> Option<f64> {
        let mean = self.mean(|o| o.accuracy);
        let squares: f64 = self.0.iter().map(|o| (o.accuracy - mean).powi(2)).sum();
        (self.0.len() > 1).then(|| (squares / (self.0.len() - 1) as f64).sqrt())
    }

    fn cells(&self) -> Vec<String> {
        let first = &self.0[0].trial;
        let spread = self.spread().map_or_else(String::new, |spread| format!(" ± {spread:.2}"));
        let accepted = self.0.iter().filter(|o| o.gate.accepted).count();
        vec![
            first.task.clone(),
            first.method.to_string(),
            if first.method.prunes() { format!("{:.0} %", 100.0 * first.removed) } else { "–".to_string() },
            format!("{:.2}{spread}", self.mean(|o| o.accuracy)),
            self.0.len().to_string(),
            format!("{:.3} M", self.mean(|o| o.params as f64) / 1e6),
            format!("{:.2} M", self.mean(|o| o.macs as f64) / 1e6),
            number(self.mean(|o| o.latency_ms)),
            if first.method == Method::Source { "–".to_string() } else { format!("{accepted}/{}", self.0.len()) },
        ]
    }
}

/// By task in the order of the outcomes, method and fraction.
fn groups(outcomes: &[Outcome]) -> Vec<Group<'_>> {
    let mut tasks: Vec<&str> = Vec::new();
    for outcome in outcomes {
        if !tasks.contains(&outcome.trial.task.as_str()) {
            tasks.push(&outcome.trial.task);
        }
    }
    let key = |o: &Outcome| (tasks.iter().position(|task| *task == o.trial.task), o.trial.removed, o.trial.method);
    let mut sorted: Vec<&Outcome> = outcomes.iter().collect();
    sorted.sort_by(|a, b| {
        let ((a_task, a_removed, a_method), (b_task, b_removed, b_method)) = (key(a), key(b));
        a_task.cmp(&b_task).then(a_removed.total_cmp(&b_removed)).then(a_method.cmp(&b_method))
    });
    sorted.chunk_by(|a, b| key(a) == key(b)).map(|seeds| Group(seeds.to_vec())).collect()
}

/// Points that `method` at `removed` lies above the adapted teacher of the same task and seed, on average over tasks and
/// seeds that have both; and over how many.
fn gain(outcomes: &[Outcome], method: Method, removed: f64) -> Option<(f64, usize)> {
    let differences: Vec<f64> = (outcomes.iter())
        .filter(|o| o.trial.method == method && o.trial.removed == removed)
        .filter_map(|o| {
            let same = |a: &&Outcome| {
                a.trial.method == Method::Adapted && a.trial.task == o.trial.task && a.trial.seed == o.trial.seed
            };
            Some(o.accuracy - outcomes.iter().find(same)?.accuracy)
        })
        .collect();
    let count = differences.len();
    (count > 0).then(|| (differences.iter().sum::<f64>() / count as f64, count))
}

/// Every method's mean difference to the adapted teacher.
fn gains(outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let mut fractions: Vec<f64> = outcomes.iter().map(|o| o.trial.removed).collect();
    fractions.sort_by(f64::total_cmp);
    fractions.dedup();
    let rows = Method::ALL.into_iter().flat_map(|method| fractions.iter().map(move |&removed| (method, removed)));
    rows.filter_map(|(method, removed)| {
        let (mean, count) = gain(outcomes, method, removed)?;
        let removed = if method.prunes() { format!("{:.0} %", 100.0 * removed) } else { "–".to_string() };
        Some(vec![method.to_string(), removed, format!("{mean:+.2}"), count.to_string()])
    })
    .collect()
}

const NO_GAINS: &str = "Nothing to compare with: the method adapted was not run.";
const GAIN_HEADER: [&str; 4] = ["method", "removed", "points beside the adapted teacher", "runs"];

/// The gate's worth on pruned students, on trained teachers and on new statistics alone.
fn validations(outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let kind = |method: Method| match method {
        Method::Source => None,
        Method::Statistics => Some("statistics"),
        Method::Adapted | Method::PruneThenAdapt => Some("trained teachers"),
        _ => Some("students"),
    };
    let rows = ["students", "trained teachers", "statistics"].map(|name| {
        let judged: Vec<Judged> = (outcomes.iter())
            .filter(|o| kind(o.trial.method) == Some(name))
            .map(|o| Judged { verdict: &o.gate, gain: o.accuracy - o.reference_accuracy })
            .collect();
        Validation::of(&judged).cells(name)
    });
    rows.into()
}

/// What is behind the gate's verdicts.
const GATE_REMARK: &str = "Which classes come is asked when the teacher is adapted, not of its students. ρ: rank correlation \
                           of a signal with the gain or loss.";

fn markdown_table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    let rule = vec!["---".to_string(); header.len()];
    std::iter::once(header).chain([rule]).chain(rows).map(|cells| line(&cells)).collect()
}

/// The settings and three Markdown tables: every task and method, what methods are worth on average, and what the gate is.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let rows = groups(outcomes).iter().map(Group::cells).collect();
    let gains = match gains(outcomes) {
        rows if rows.is_empty() => format!("{NO_GAINS}\n"),
        rows => markdown_table(&GAIN_HEADER, rows),
    };
    let gate = markdown_table(&Validation::HEADER, validations(outcomes));
    format!(
        "{}\n\n{}\n{gains}\n{gate}\n{GATE_REMARK}\n",
        Settings::told(outcomes.first().map(|o| &o.settings)),
        markdown_table(&HEADER, rows)
    )
}

/// The settings and two Markdown tables: every bad case, and what the gate is worth in them.
pub fn worst_markdown(outcomes: &[WorstOutcome]) -> String {
    let rows = outcomes.iter().map(WorstOutcome::cells).collect();
    let gate = markdown_table(&Validation::HEADER, vec![worst::validation(outcomes).cells("students")]);
    format!(
        "{}\n\n{}\n{gate}",
        Settings::told(outcomes.first().map(|o| &o.settings)),
        markdown_table(&WorstOutcome::HEADER, rows)
    )
}

/// The same as a page.
pub fn worst_page(title: &str, outcomes: &[WorstOutcome]) -> String {
    let mut page = Page::new(title);
    page.remark(
        "Accuracy on all images of the task of what was in use and of the student adapted to a bad sample of them",
    );
    page.remark(&Settings::told(outcomes.first().map(|o| &o.settings)));
    page.table(&WorstOutcome::HEADER, &outcomes.iter().map(WorstOutcome::cells).collect::<Vec<_>>());
    page.heading("The gate beside the labels");
    page.table(&Validation::HEADER, &[worst::validation(outcomes).cells("students")]);
    page.finish()
}

/// The same as a page.
pub fn page(title: &str, outcomes: &[Outcome]) -> String {
    let mut page = Page::new(title);
    page.remark("Accuracy on all target images, mean ± standard deviation over seeds; labels serve this column alone");
    page.remark(&Settings::told(outcomes.first().map(|o| &o.settings)));
    page.table(&HEADER, &groups(outcomes).iter().map(Group::cells).collect::<Vec<_>>());
    page.heading("Beside the adapted teacher");
    match gains(outcomes) {
        rows if rows.is_empty() => page.remark(NO_GAINS),
        rows => page.table(&GAIN_HEADER, &rows),
    }
    page.heading("The gate beside the labels");
    page.table(&Validation::HEADER, &validations(outcomes));
    page.remark(GATE_REMARK);
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accuracy::Trial;
    use crate::adapt::gate::{Signals, Verdict};

    fn outcome(method: Method, seed: u64, accuracy: f64) -> Outcome {
        let signals = Signals { entropy: 1.0, diversity: 1.0, information: 1.0, stability: None };
        Outcome {
            trial: Trial { task: "a-to-b".into(), method, removed: if method.prunes() { 0.6 } else { 0.0 }, seed },
            accuracy,
            reference_accuracy: accuracy - 2.0,
            channels: 10,
            params: 1_000_000,
            macs: 2_000_000,
            bytes: 4_000_000,
            latency_ms: 1.5,
            gate: Verdict {
                accepted: seed == 0,
                reason: String::new(),
                agreement: 1.0,
                kinship: None,
                candidate: signals,
                reference: signals,
                images: 10,
            },
            wall_s: 1.0,
            peak_rss_mb: 1,
            settings: Settings::here(Vec::new(), String::new()),
        }
    }

    #[test]
    fn statistics_are_no_trained_teacher_and_what_came_was_not_judged() {
        let outcomes = [outcome(Method::Source, 0, 70.0), outcome(Method::Statistics, 0, 71.0)];
        let text = markdown(&outcomes);
        assert!(text.starts_with("secateur "), "{text}");
        assert!(text.contains("| trained teachers | 0 |") && text.contains("| statistics | 1 |"), "{text}");
        let source = text.lines().find(|line| line.contains("| source |")).unwrap();
        assert!(source.ends_with("| – |"), "{source}");
    }

    #[test]
    fn seeds_are_averaged_and_compared_with_their_own_teacher() {
        let outcomes = [
            outcome(Method::Admp, 0, 81.0),
            outcome(Method::Adapted, 0, 80.0),
            outcome(Method::Adapted, 1, 90.0),
            outcome(Method::Admp, 1, 88.0),
        ];
        let text = markdown(&outcomes);
        assert!(text.contains("| a-to-b | adapted | – | 85.00 ± 7.07 | 2 | 1.000 M | 2.00 M | 1.5 | 1/2 |"), "{text}");
        assert!(text.contains("| a-to-b | admp | 60 % | 84.50 ± 4.95 | 2 |"), "{text}");
        assert!(text.contains("| admp | 60 % | -0.50 | 2 |"), "{text}");
        assert!(text.contains("| students | 2 |") && text.contains("| trained teachers | 2 |"), "{text}");
        assert!(text.contains("| – | – | – | – | 1 | 0 | 1 |"), "seed 1 was refused: {text}");
        let page = page("accuracy", &outcomes[..1]);
        assert!(page.contains("<td>81.00</td>") && !page.contains('±'.to_string().repeat(2).as_str()), "{page}");
    }
}
