//! The page around the plots.

use std::fmt::Write as _;

use super::escape;

/// Colours by role; series take theirs from `--s0` … in turn. Chosen to stay apart for colour-blind readers (after Okabe
/// and Ito 2008) and readable on both backgrounds.
const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--soft:#5b6570;--line:#d8dee4;--box:#f5f7f9;--ok:#00855f;--bad:#c2272d;--s0:#0072b2;--s1:#c45500;--s2:#00855f;\
--s3:#a2528b;--s4:#8a6d00}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e9ec;--soft:#9aa4ae;--line:#343b42;--box:#1d2125;--ok:#2bbd95;--bad:#ff6b6b;--s0:#56b4e9;--s1:#f0883e;\
--s2:#2bbd95;--s3:#d78fc2;--s4:#e0c040}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:60rem;font:16px/1.5 system-ui,sans-serif;background:var(--bg);color:var(--fg)}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .4rem}
p{margin:.4rem 0}h1,h2,p{overflow-wrap:anywhere}.soft{color:var(--soft)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:600}th:first-child,td:first-child{text-align:left}td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:9rem}
figure{margin:.8rem 0;overflow-x:auto}figcaption{font-size:.9rem;color:var(--soft)}
svg{display:block;width:100%;min-width:30rem;height:auto}
svg text{fill:var(--fg);font:12px system-ui,sans-serif}svg .soft{fill:var(--soft)}
svg .grid{stroke:var(--line)}
.verdict{margin:.7rem 0;padding:.4rem .8rem;border-left:4px solid var(--bad);background:var(--box)}\
.verdict.ok{border-color:var(--ok)}
.entry{display:inline-block;margin-right:.9em;white-space:nowrap;font-size:.9rem}
.key{display:inline-block;width:.8em;height:.8em;margin-right:.35em;border-radius:2px}
";

/// A page under construction.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// An empty page.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_string(), body: String::new() }
    }

    /// Starts a section.
    pub fn heading(&mut self, text: &str) {
        self.add(format_args!("<h2>{}</h2>\n", escape(text)));
    }

    /// A line of text.
    pub fn text(&mut self, text: &str) {
        self.add(format_args!("<p>{}</p>\n", escape(text)));
    }

    /// A remark of less weight.
    pub fn remark(&mut self, text: &str) {
        self.add(format_args!("<p class=\"soft\">{}</p>\n", escape(text)));
    }

    /// A result that is good or bad, in a few words and with its reason.
    pub fn verdict(&mut self, good: bool, words: &str, reason: &str) {
        let (class, mark) = if good { ("verdict ok", "✓") } else { ("verdict", "✗") };
        let (words, reason) = (escape(words), escape(reason));
        self.add(format_args!("<p class=\"{class}\"><strong>{mark} {words}</strong><br>{reason}</p>\n"));
    }

    /// A table; the first column is its rows' names.
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>]) {
        let cells = |tag: &str, cells: Vec<&str>| -> String {
            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
        };
        self.add(format_args!("<div class=\"wide\"><table><tr>{}</tr>\n", cells("th", header.to_vec())));
        for row in rows {
            self.add(format_args!("<tr>{}</tr>\n", cells("td", row.iter().map(String::as_str).collect())));
        }
        self.add(format_args!("</table></div>\n"));
    }

    /// A plot from [`super::line_chart`] or [`super::bar_chart`], with its caption.
    pub fn figure(&mut self, plot: &str, caption: &str) {
        self.add(format_args!("<figure>{plot}<figcaption>{}</figcaption></figure>\n", escape(caption)));
    }

    /// The whole document.
    pub fn finish(self) -> String {
        let title = escape(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n{}</body></html>\n",
            self.body
        )
    }

    fn add(&mut self, text: std::fmt::Arguments) {
        // Writing to a string does not fail.
        let _ = self.body.write_fmt(text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bar, Series, bar_chart, line_chart};
    use super::*;

    /// Every tag that is opened is closed, in order.
    fn assert_well_formed(html: &str) {
        let mut open: Vec<&str> = Vec::new();
        for piece in html.split('<').skip(1) {
            let tag = piece.split('>').next().unwrap();
            let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') && !["!doctype", "meta", "br"].contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn a_page_is_whole_and_needs_nobody() {
        let mut page = Page::new("a <model>");
        page.heading("loss & gain");
        page.text("text");
        page.remark("small");
        page.verdict(false, "bad <news>", "why");
        page.table(&["layer", "ms"], &[vec!["conv<1>".into(), "1.5".into()]]);
        let series = [Series { name: "a<b".into(), points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)] }];
        page.figure(&line_chart(&series, "step"), "curves");
        let bars = [Bar { label: "<l>".into(), values: vec![1.0, 2.0] }, Bar { label: "m".into(), values: vec![0.0] }];
        page.figure(&bar_chart(&bars, &["before", "after"], "ms"), "bars");
        let html = page.finish();
        assert_well_formed(&html);
        assert!(!html.contains("http:") && !html.contains("https:") && !html.contains("<script"));
        assert!(!html.contains("<model>") && !html.contains("NaN"), "{html}");
    }
}
