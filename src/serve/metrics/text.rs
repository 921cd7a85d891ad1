//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write as _};

use super::Histogram;

/// Metric families, one after the other.
#[derive(Debug, Default)]
pub struct Text(String);

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    /// A sample of the family `name`.
    pub fn sample(&mut self, name: &str, labels: Labels, value: impl Display) {
        self.line(format_args!("{name}{} {value}", braces(labels, None)));
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, (name, kind): (&str, &str), help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The samples of a histogram.
    pub fn histogram(&mut self, name: &str, labels: Labels, histogram: &Histogram) {
        for (bound, count) in histogram.buckets() {
            let bound = if bound.is_infinite() { "+Inf".to_string() } else { bound.to_string() };
            self.line(format_args!("{name}_bucket{} {count}", braces(labels, Some(&bound))));
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum());
        self.sample(&format!("{name}_count"), labels, histogram.count());
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }

    fn line(&mut self, line: std::fmt::Arguments) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

fn braces(labels: Labels, bound: Option<&str>) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let all = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
    let all: Vec<String> = all.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_labels_and_histograms_their_buckets() {
        let mut text = Text::default();
        text.family("a_total", "counter", "Things.");
        text.sample("a_total", &[("kind", "x\"y\\z\n")], 3);
        let histogram = Histogram::new(&[0.5]);
        histogram.observe(0.25);
        histogram.observe(2.0);
        text.family("h", "histogram", "More.");
        text.histogram("h", &[("m", "n")], &histogram);
        let want = "# HELP a_total Things.\n# TYPE a_total counter\na_total{kind=\"x\\\"y\\\\z\\n\"} 3\n\
            # HELP h More.\n# TYPE h histogram\nh_bucket{m=\"n\",le=\"0.5\"} 1\nh_bucket{m=\"n\",le=\"+Inf\"} 2\n\
            h_sum{m=\"n\"} 2.25\nh_count{m=\"n\"} 2\n";
        assert_eq!(text.finish(), want);
    }
}
