//! Self-contained HTML pages with SVG plots: no script, no outside request, light and dark, narrow and wide screens.

mod bars;
mod lines;
mod page;

pub use bars::{Bar, bar_chart};
pub use lines::{Series, line_chart};
pub use page::Page;

/// Colours of the style sheet.
const COLOURS: usize = 5;

/// Text safe inside HTML and SVG, attributes included.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Control characters have no place in XML.
            c if c.is_control() && c != '\n' => safe.push('\u{FFFD}'),
            c => safe.push(c),
        }
    }
    safe
}

/// The key of a chart: a colour for each name, the first `colours` of the style sheet in turn.
fn key<'a>(names: impl IntoIterator<Item = &'a str>, colours: usize) -> String {
    let entry = |(i, name): (usize, &str)| {
        let (colour, name) = (i % colours, escape(name));
        format!("<span class=\"entry\"><span class=\"key\" style=\"background:var(--s{colour})\"></span>{name}</span> ")
    };
    names.into_iter().enumerate().map(entry).collect()
}

/// A number with about three significant digits, for axes and labels.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_string()
    } else if !(1e-3..1e6).contains(&size) {
        format!("{value:.1e}")
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else {
        let digits = if size >= 10.0 {
            1
        } else if size >= 1.0 {
            2
        } else {
            3
        };
        let text = format!("{value:.digits$}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<b a='1'>\"&\u{0}"), "&lt;b a=&#39;1&#39;&gt;&quot;&amp;\u{FFFD}");
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<String> = [0.0, 0.12345, 1.0, 12.34, 1234.5, 5e-7, 2e9, -3.5].map(number).into();
        assert_eq!(shown, ["0", "0.123", "1", "12.3", "1234", "5.0e-7", "2.0e9", "-3.5"]);
    }
}
