//! Line charts.

use std::fmt::Write as _;

use super::{COLOURS, escape, key, number};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
/// Space around the plot: left, right, top, bottom.
const MARGIN: [f64; 4] = [56.0, 12.0, 12.0, 34.0];
/// Points beyond this add nothing to see.
const MOST_POINTS: usize = 400;
/// Lines of the grid that are aimed at on each axis.
const LINES: f64 = 5.0;

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
    let (low, high) = range(points.iter().map(|p| p.1));
    let step = round_step((high - low) / LINES);
    let y = ((low / step).floor() * step, (high / step).ceil() * step);
    let at = |p: &(f64, f64)| {
        let px = MARGIN[0] + (p.0 - x.0) / (x.1 - x.0) * (WIDTH - MARGIN[0] - MARGIN[1]);
        let py = HEIGHT - MARGIN[3] - (p.1 - y.0) / (y.1 - y.0) * (HEIGHT - MARGIN[2] - MARGIN[3]);
        (px, py)
    };
    let mut svg = String::new();
    svg.push_str(&key(series.iter().map(|s| s.name.as_str()), COLOURS));
    let _ = write!(svg, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for i in 0..=((y.1 - y.0) / step).round() as u32 {
        let value = y.0 + f64::from(i) * step;
        let (left, py) = at(&(x.0, value));
        let (right, text, label) = (WIDTH - MARGIN[1], left - 6.0, number(value));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{py:.1}\" y2=\"{py:.1}\"/>\
             <text class=\"soft\" x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            py + 4.0
        );
    }
    let step = round_step((x.1 - x.0) / LINES);
    for i in (x.0 / step).ceil() as i64..=(x.1 / step).floor() as i64 {
        let (px, _) = at(&(i as f64 * step, y.0));
        let (below, label) = (HEIGHT - 18.0, number(i as f64 * step));
        let _ = write!(svg, "<text class=\"soft\" x=\"{px:.1}\" y=\"{below}\" text-anchor=\"middle\">{label}</text>");
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

/// 1, 2 or 5 times a power of ten, at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|round| *round >= step).unwrap_or(step)
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
    fn grids_have_round_numbers() {
        let steps = [0.003, 0.1, 1.0, 1.3, 30.0, 600.0].map(round_step);
        assert!(
            steps.iter().zip([0.005, 0.1, 1.0, 2.0, 50.0, 1000.0]).all(|(a, b)| (a / b - 1.0).abs() < 1e-9),
            "{steps:?}"
        );
        let svg = line_chart(&[Series { name: "loss".into(), points: vec![(0.0, 0.13), (19.0, 5.41)] }], "step");
        assert!(["0", "2", "4", "6", "5", "15"].iter().all(|label| svg.contains(&format!(">{label}</text>"))), "{svg}");
    }

    #[test]
    fn nothing_to_draw_draws_nothing() {
        assert_eq!(line_chart(&[Series { name: "x".into(), points: vec![(0.0, f64::NAN)] }], "step"), "");
        assert!(line_chart(&[Series { name: "x".into(), points: vec![(1.0, 2.0)] }], "step").contains("polyline"));
    }
}
