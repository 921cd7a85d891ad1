//! Bar charts with long labels: one row per bar group, read from top to bottom.

use std::fmt::Write as _;

use super::{COLOURS, escape, key, number};

const WIDTH: f64 = 640.0;
const BAR: f64 = 13.0;
const GAP: f64 = 8.0;
/// Room for labels and for the values behind the bars.
const LABELS: f64 = 270.0;
const VALUES: f64 = 90.0;
/// Characters of a label that fit.
const LABEL_CHARS: usize = 36;

/// One row: a label and its values, one per name of the key.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What the row is about.
    pub label: String,
    /// Values from 0 on; anything else counts as 0.
    pub values: Vec<f64>,
}

/// An SVG of horizontal bars; `names` is the key of the values, `unit` stands behind each.
pub fn bar_chart(rows: &[Bar], names: &[&str], unit: &str) -> String {
    let clean = |v: f64| if v.is_finite() && v > 0.0 { v } else { 0.0 };
    let most = rows.iter().flat_map(|row| row.values.iter().copied().map(clean)).fold(0.0, f64::max);
    let scale = if most > 0.0 { (WIDTH - LABELS - VALUES) / most } else { 0.0 };
    let mut svg = String::new();
    if names.len() > 1 {
        svg.push_str(&key(names.iter().copied(), COLOURS));
    }
    let height: f64 = rows.iter().map(|row| row.values.len() as f64 * BAR + GAP).sum();
    let _ = write!(svg, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    let mut y = 0.0;
    for row in rows {
        let middle = y + row.values.len() as f64 * BAR / 2.0 + 4.0;
        let (end, label) = (LABELS - 8.0, escape(&shortened(&row.label)));
        let _ = write!(svg, "<text x=\"{end}\" y=\"{middle:.1}\" text-anchor=\"end\">{label}</text>");
        for (i, &value) in row.values.iter().enumerate() {
            let (value, width) = (clean(value), clean(value) * scale);
            let (text, base) = (LABELS + width + 5.0, y + BAR - 3.0);
            let _ = write!(
                svg,
                "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" rx=\"1.5\" fill=\"var(--s{i})\"/>\
                 <text class=\"soft\" x=\"{text:.1}\" y=\"{base}\">{} {}</text>",
                BAR - 2.0,
                number(value),
                escape(unit)
            );
            y += BAR;
        }
        y += GAP;
    }
    svg.push_str("</svg>");
    svg
}

/// Both ends of a long label: models differ at the start, layers and cases at the end.
fn shortened(label: &str) -> String {
    let count = label.chars().count();
    if count <= LABEL_CHARS {
        return label.to_string();
    }
    let start = LABEL_CHARS / 3;
    let end = LABEL_CHARS - 1 - start;
    let part = |skip, take| label.chars().skip(skip).take(take).collect::<String>();
    format!("{}…{}", part(0, start), part(count - end, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fills_the_room_and_bad_values_draw_nothing() {
        let rows =
            [Bar { label: "a".into(), values: vec![2.0, 4.0] }, Bar { label: "b".into(), values: vec![f64::NAN] }];
        let svg = bar_chart(&rows, &["x", "y"], "ms");
        assert!(svg.contains(&format!("width=\"{:.1}\"", WIDTH - LABELS - VALUES)));
        assert!(svg.contains("width=\"0.0\"") && svg.contains("4 ms"));
    }

    #[test]
    fn long_labels_keep_both_ends() {
        let label = format!("{}.conv_dw", "blocks.".repeat(10));
        let short = shortened(&label);
        assert_eq!(short.chars().count(), LABEL_CHARS);
        assert!(short.starts_with("blocks.") && short.contains('…') && short.ends_with(".conv_dw"));
    }
}
