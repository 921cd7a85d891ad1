//! The results as one page.

use super::row::Row;
use crate::board::Board;
use crate::plot::{Bar, Page, bar_chart, number};

/// A self-contained HTML page.
pub fn page(rows: &[Row]) -> String {
    let mut page = Page::new("secateur bench");
    if let Some(row) = rows.first() {
        page.remark(&facts(&row.board, row));
    }
    for warning in rows.iter().flat_map(|row| &row.warnings).collect::<std::collections::BTreeSet<_>>() {
        page.verdict(false, "Not to be trusted", warning);
    }
    let header =
        ["model", "precision", "threads", "batch", "median ms", "p90 ms", "p99 ms", "images/s", "GFLOP/s", "speed-up"];
    let cells: Vec<Vec<String>> = (rows.iter())
        .map(|r| {
            let counts = [r.threads, r.batch].map(|n| n.to_string());
            let figures = [r.median_ms, r.p90_ms, r.p99_ms, r.images_per_s, r.gflops, r.speed_up].map(number);
            [&[name(r).to_string(), r.precision.to_string()][..], &counts, &figures].concat()
        })
        .collect();
    page.heading("Latency and throughput");
    page.table(&header, &cells);
    let bars = |unit: &str, value: &dyn Fn(&Row) -> f64| {
        let bar = |row: &Row| Bar { label: case(row), values: vec![value(row)] };
        bar_chart(&rows.iter().map(bar).collect::<Vec<_>>(), &["model"], unit)
    };
    page.figure(&bars("ms", &|row| row.median_ms), "Median time of a request: shorter is better");
    page.figure(&bars("images/s", &|row| row.images_per_s), "Throughput: longer is better");
    let starts: Vec<Vec<String>> = (rows.iter())
        .filter_map(|row| {
            let s = row.start?;
            let mb = s.peak_rss_bytes as f64 / f64::from(1 << 20);
            let figures = [s.load_ms, s.compile_ms, s.first_answer_ms, mb].map(number);
            Some([&[case(row)][..], &figures].concat())
        })
        .collect();
    if !starts.is_empty() {
        page.heading("Cold start");
        page.table(&["model", "file ms", "compile ms", "first answer ms", "peak memory MB"], &starts);
    }
    for row in rows.iter().filter(|row| !row.profile.is_empty()) {
        page.heading(&format!("{}, by layer", case(row)));
        let bar = |l: &super::row::LayerRow| Bar { label: format!("{} ({})", l.layer, l.kernel), values: vec![l.ms] };
        page.figure(&bar_chart(&row.profile.iter().map(bar).collect::<Vec<_>>(), &["ms"], "ms"), "Time of every layer");
    }
    page.finish()
}

/// The model without folder and extension: what tells models apart on one page.
fn name(row: &Row) -> &str {
    let file = row.model.rsplit('/').next().unwrap_or(&row.model);
    file.strip_suffix(".safetensors").unwrap_or(file)
}

/// Model, precision, threads and batch in few characters.
fn case(row: &Row) -> String {
    format!("{} {} {} thr. batch {}", name(row), row.precision, row.threads, row.batch)
}

fn facts(board: &Board, row: &Row) -> String {
    let mut facts = vec![
        board.name.clone().unwrap_or_else(|| "unknown board".to_string()),
        format!("{} processors", board.processors),
        row.isa.clone(),
    ];
    facts.extend(board.celsius.map(|c| format!("{c:.0} °C")));
    facts.extend(board.mhz.map(|mhz| format!("{mhz:.0} MHz")));
    facts.extend(board.governor.as_ref().map(|g| format!("governor {g}")));
    facts.push(format!("secateur {}", row.version));
    facts.join(", ")
}
