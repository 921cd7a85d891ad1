//! Line charts.

use std::fmt::Write as _;

use super::{escape, number};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
/// Space around the plot: left, right, top, bottom.
const MARGIN: [f64; 4] = [56.0, 12.0, 12.0, 34.0];
/// Points beyond this add nothing to see.
const MOST_POINTS: usize = 400;
/// Colours of the style sheet.
const COLOURS: usize = 5;

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the key.
    pub name: String,
    /// x and y; points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// An SVG of the curves over a common axis, with a key above; empty if there is no finite point.
pub fn line_chart(series: &[Series], x_label: &str) -> String {
    let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    let points: Vec<(f64, f64)> = series.iter().flat_map(|s| s.points.iter().filter(finite).copied()).collect();
    if points.is_empty() {
        return String::new();
    }
    let x = range(points.iter().map(|p| p.0));
    let y = range(points.iter().map(|p| p.1));
    let at = |p: &(f64, f64)| {
        let px = MARGIN[0] + (p.0 - x.0) / (x.1 - x.0) * (WIDTH - MARGIN[0] - MARGIN[1]);
        let py = HEIGHT - MARGIN[3] - (p.1 - y.0) / (y.1 - y.0) * (HEIGHT - MARGIN[2] - MARGIN[3]);
        (px, py)
    };
    let mut svg = String::new();
    for (i, s) in series.iter().enumerate() {
        let _ =
            write!(svg, "<span class=\"key\" style=\"background:var(--s{})\"></span>{}", i % COLOURS, escape(&s.name));
    }
    let _ = write!(svg, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for i in 0..=4 {
        let value = y.0 + (y.1 - y.0) * f64::from(i) / 4.0;
        let (left, py) = at(&(x.0, value));
        let (right, text, label) = (WIDTH - MARGIN[1], left - 6.0, number(value));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{py:.1}\" y2=\"{py:.1}\"/>\
             <text class=\"soft\" x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            py + 4.0
        );
    }
    for (value, anchor) in [(x.0, "start"), (x.1, "end")] {
        let (px, _) = at(&(value, y.0));
        let (below, label) = (HEIGHT - 16.0, number(value));
        let _ = write!(svg, "<text class=\"soft\" x=\"{px:.1}\" y=\"{below}\" text-anchor=\"{anchor}\">{label}</text>");
    }
    let (middle, below, label) = (WIDTH / 2.0, HEIGHT - 4.0, escape(x_label));
    let _ = write!(svg, "<text class=\"soft\" x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{label}</text>");
    for (i, s) in series.iter().enumerate() {
        let kept: Vec<&(f64, f64)> = s.points.iter().filter(finite).collect();
        let step = kept.len().div_ceil(MOST_POINTS).max(1);
        let path: Vec<String> = (kept.iter().step_by(step))
            .map(|p| {
                let (px, py) = at(p);
                format!("{px:.1},{py:.1}")
            })
            .collect();
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"var(--s{})\" stroke-width=\"1.8\" stroke-linejoin=\"round\" points=\"{}\"/>",
            i % COLOURS,
            path.join(" ")
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Smallest and largest value, never the same.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low < high { (low, high) } else { (low - 0.5, high + 0.5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_stay_inside_and_long_ones_are_thinned() {
        let points: Vec<(f64, f64)> = (0..5000).map(|i| (f64::from(i), f64::from(i % 7) - 3.0)).collect();
        let svg = line_chart(&[Series { name: "loss".into(), points }], "step");
        let line = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let drawn: Vec<(f64, f64)> = (line.split(' '))
            .map(|p| p.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap())
            .collect();
        assert!(drawn.len() <= MOST_POINTS && drawn.len() > MOST_POINTS / 2, "{}", drawn.len());
        assert!(drawn.iter().all(|(x, y)| (0.0..=WIDTH).contains(x) && (0.0..=HEIGHT).contains(y)));
    }

    #[test]
    fn nothing_to_draw_draws_nothing() {
        assert_eq!(line_chart(&[Series { name: "x".into(), points: vec![(0.0, f64::NAN)] }], "step"), "");
        assert!(line_chart(&[Series { name: "x".into(), points: vec![(1.0, 2.0)] }], "step").contains("polyline"));
    }
}
