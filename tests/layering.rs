//! Holds the source to ARCHITECTURE.md: which module may use which, and how long a file may be.
//!
//! The module table there is the truth. The source is read as tokens, so that comments, strings and tests do not
//! count as uses, and every `crate::NAME` (and `secateur::NAME` in the program) counts wherever it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::iter::Peekable;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::CharIndices;

const MOST_LINES: usize = 400;
/// The crate's root declares modules; it belongs to none.
const ROOT_FILE: &str = "lib.rs";

#[test]
fn modules_use_only_what_the_table_allows() {
    let table = Table::read(&document());
    let mut failures = String::new();
    for file in &sources() {
        let allowed = table.allowed(&file.module);
        for used in &file.uses {
            let name = used.name.as_str();
            if name != file.module && !allowed.contains(name) {
                let Use { line, .. } = used;
                let list = allowed.iter().copied().collect::<Vec<_>>().join(", ");
                let path = file.path.display();
                writeln!(failures, "{path}:{line}: {} uses {name}, allowed: [{list}]", file.module).unwrap();
            }
        }
    }
    assert!(failures.is_empty(), "ARCHITECTURE.md, \"Modules\", forbids:\n{failures}");
}

#[test]
fn the_table_lists_exactly_the_modules_there_are() {
    let listed: BTreeSet<String> = Table::read(&document()).0.into_keys().collect();
    let existing: BTreeSet<String> = sources().into_iter().map(|file| file.module).collect();
    assert_eq!(listed, existing, "left: ARCHITECTURE.md, right: src");
}

#[test]
fn the_table_allows_only_lower_layers() {
    let table = Table::read(&document());
    for (module, row) in &table.0 {
        for used in table.allowed(module) {
            let below = table.0.get(used).unwrap_or_else(|| panic!("{module} may use {used}, which has no row")).layer;
            assert!(below < row.layer, "{module} (layer {}) may use {used} (layer {below})", row.layer);
        }
    }
}

#[test]
fn long_files_have_a_reason() {
    let document = document();
    let reasons: Vec<&str> = section(&document, "Long files").filter(|line| line.starts_with("- `src/")).collect();
    let mut failures = String::new();
    for file in sources().iter().filter(|file| file.lines > MOST_LINES) {
        let path = file.path.display();
        if !reasons.iter().any(|line| line.starts_with(&format!("- `{path}`: "))) {
            writeln!(failures, "{path}: {} lines without tests, expected at most {MOST_LINES}", file.lines).unwrap();
        }
    }
    assert!(failures.is_empty(), "no reason in ARCHITECTURE.md, \"Long files\":\n{failures}");
}

// ---- ARCHITECTURE.md ----

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn document() -> String {
    fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md stands beside Cargo.toml")
}

/// The lines below the heading `title`, up to the next heading.
fn section<'a>(document: &'a str, title: &str) -> impl Iterator<Item = &'a str> {
    let heading = format!("## {title}");
    let mut lines = document.lines().skip_while(move |line| *line != heading);
    assert!(lines.next().is_some(), "ARCHITECTURE.md has no heading \"{title}\"");
    lines.take_while(|line| !line.starts_with("## "))
}

struct Row {
    layer: usize,
    /// `None` stands for every lower layer.
    may_use: Option<Vec<String>>,
}

/// Rows by module.
struct Table(BTreeMap<String, Row>);

impl Table {
    /// Reads rows `| layer | module | what lives there | may use |`.
    fn read(document: &str) -> Self {
        let mut rows = BTreeMap::new();
        for line in section(document, "Modules").filter(|line| line.starts_with('|')) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let Ok(layer) = cells[0].parse() else { continue };
            let [_, module, _, may_use] = cells[..] else { panic!("expected four cells in: {line}") };
            let may_use = match may_use {
                "all below" => None,
                "–" => Some(Vec::new()),
                names => Some(names.split(',').map(name).collect()),
            };
            let twice = rows.insert(name(module), Row { layer, may_use }).is_some();
            assert!(!twice, "module {module} has two rows");
        }
        assert!(!rows.is_empty(), "ARCHITECTURE.md has no module table");
        Self(rows)
    }

    fn allowed(&self, module: &str) -> BTreeSet<&str> {
        let Some(row) = self.0.get(module) else { return BTreeSet::new() };
        match &row.may_use {
            Some(names) => names.iter().map(String::as_str).collect(),
            None => self.0.iter().filter(|(_, r)| r.layer < row.layer).map(|(name, _)| name.as_str()).collect(),
        }
    }
}

/// The name in backticks.
fn name(cell: &str) -> String {
    let bare = cell.trim().strip_prefix('`').and_then(|c| c.strip_suffix('`'));
    bare.unwrap_or_else(|| panic!("expected one `name`, got {cell:?}")).to_string()
}

// ---- src ----

struct Use {
    name: String,
    line: usize,
}

struct SourceFile {
    /// Relative to the repository.
    path: PathBuf,
    /// The module at the crate's root it belongs to.
    module: String,
    uses: Vec<Use>,
    /// Without tests.
    lines: usize,
}

/// Every source file but the crate's root and those that only tests read.
fn sources() -> Vec<SourceFile> {
    let src = root().join("src");
    let mut paths = Vec::new();
    list(&src, &mut paths);
    paths.sort();
    let texts: Vec<(PathBuf, String)> =
        paths.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).expect("source is UTF-8"))).collect();
    let tests: Vec<PathBuf> = texts.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    texts
        .iter()
        .filter(|(path, _)| !tests.iter().any(|test| path.with_extension("").starts_with(test)))
        .filter(|(path, _)| *path != src.join(ROOT_FILE))
        .map(|(path, text)| {
            let inside = path.strip_prefix(&src).expect("listed below src").with_extension("");
            let mut parts: Vec<&str> = inside.iter().map(|part| part.to_str().expect("names are UTF-8")).collect();
            parts.pop_if(|last| *last == "mod");
            let tokens = tokens(text);
            let (code, tests) = without_tests(&tokens);
            let test_lines: usize = tests.iter().map(|test| test.lines.end() - test.lines.start() + 1).sum();
            SourceFile {
                path: path.strip_prefix(root()).expect("src is in the repository").to_path_buf(),
                module: parts[0].to_string(),
                uses: uses(&code, parts.len()),
                lines: text.lines().count() - test_lines,
            }
        })
        .collect()
}

fn list(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src can be listed") {
        let path = entry.expect("src can be listed").path();
        if path.is_dir() {
            list(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Files (without extension) and folders that `#[cfg(test)] mod NAME;` in `text` brings in.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let children = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => path.parent().expect("a file has a folder").to_path_buf(),
        _ => path.with_extension(""),
    };
    without_tests(&tokens(text)).1.into_iter().filter_map(|test| Some(children.join(test.file?))).collect()
}

/// The modules that `code`, in a file `depth` modules below the crate's root, names.
fn uses(code: &[Token], depth: usize) -> Vec<Use> {
    let mut found = Vec::new();
    let text = |at: usize| code.get(at).map_or("", |t| t.text);
    for start in 0..code.len() {
        let after = match text(start) {
            "crate" | "secateur" if text(start + 1) == "::" => start + 2,
            // Enough `super`s lead to the crate's root as well.
            "super" if start == 0 || text(start - 1) != "::" => {
                let ups = (0..).take_while(|i| text(start + 2 * i) == "super" && text(start + 2 * i + 1) == "::");
                match ups.count() {
                    ups if ups >= depth => start + 2 * ups,
                    _ => continue,
                }
            }
            _ => continue,
        };
        if text(after) == "{" {
            found.extend(first_names(&code[after + 1..]));
        } else {
            found.extend(code.get(after));
        }
    }
    let to_use = |token: Token| Use {
        name: match token.text {
            "Error" | "Result" => "error".to_string(),
            other => other.to_string(),
        },
        line: token.line,
    };
    found.into_iter().copied().map(to_use).filter(|used| used.name != "self").collect()
}

/// In `a, b::{c, d}, e}` the tokens a, b and e.
fn first_names<'a, 't>(list: &'t [Token<'a>]) -> Vec<&'t Token<'a>> {
    let (mut depth, mut fresh, mut found) = (0, true, Vec::new());
    for token in list {
        match token.text {
            "{" => depth += 1,
            "}" if depth == 0 => break,
            "}" => depth -= 1,
            "," if depth == 0 => fresh = true,
            _ if fresh => {
                found.push(token);
                fresh = false;
            }
            _ => {}
        }
    }
    found
}

/// An item under `#[cfg(test)]`.
struct TestItem {
    lines: RangeInclusive<usize>,
    /// The file it names, if it is `mod NAME;`.
    file: Option<String>,
}

/// Splits off every item under `#[cfg(test)]`.
fn without_tests<'a>(tokens: &[Token<'a>]) -> (Vec<Token<'a>>, Vec<TestItem>) {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut code, mut tests, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        let rest = &tokens[at..];
        if rest.len() < MARK.len() || rest.iter().zip(MARK).any(|(token, mark)| token.text != mark) {
            code.push(tokens[at]);
            at += 1;
            continue;
        }
        let length = MARK.len() + item_length(&rest[MARK.len()..]);
        let item = &rest[..length];
        let is_file = |w: &&[Token]| w[0].text == "mod" && w[2].text == ";";
        tests.push(TestItem {
            lines: item[0].line..=item[length - 1].line,
            file: item.windows(3).find(is_file).map(|w| w[1].text.to_string()),
        });
        at += length;
    }
    (code, tests)
}

/// Number of tokens up to the end of the first item: a `;`, or the `}` of its body.
fn item_length(tokens: &[Token]) -> usize {
    let (mut depth, mut is_use) = (0usize, false);
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth = depth.saturating_sub(1),
            "use" if depth == 0 => is_use = true,
            _ => {}
        }
        let ends = match token.text {
            ";" => true,
            "}" => !is_use,
            _ => false,
        };
        if ends && depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

// ---- tokens ----

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// Names, `::` and single signs; comments, strings and character literals are left out.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut chars = text.char_indices().peekable();
    let (mut line, mut counted) = (1, 0);
    while let Some((start, c)) = chars.next() {
        line += text[counted..start].matches('\n').count();
        counted = start;
        let rest = &text[start..];
        let length = if c.is_whitespace() {
            continue;
        } else if rest.starts_with("//") {
            skip(&mut chars, start + rest.find('\n').unwrap_or(rest.len()));
            continue;
        } else if let Some(length) = block_comment(rest).or_else(|| literal(rest)) {
            skip(&mut chars, start + length);
            continue;
        } else if c.is_alphanumeric() || c == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            c.len_utf8()
        };
        skip(&mut chars, start + length);
        found.push(Token { text: &rest[..length], line });
    }
    found
}

fn skip(chars: &mut Peekable<CharIndices>, end: usize) {
    while chars.next_if(|(at, _)| *at < end).is_some() {}
}

/// Length of the block comment, nested ones included, at the start of `text`.
fn block_comment(text: &str) -> Option<usize> {
    text.strip_prefix("/*")?;
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    Some(text.len())
}

/// Length of the string or character literal at the start of `text`; a lifetime is none.
fn literal(text: &str) -> Option<usize> {
    let body = text.trim_start_matches(['b', 'c']);
    let prefix = text.len() - body.len();
    if prefix > 1 {
        return None;
    }
    if let Some(raw) = body.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let inside = raw[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(text.len() - inside.len() + inside.find(&end)? + end.len());
    }
    if let Some(inside) = body.strip_prefix('\'') {
        // 'x' has one character or an escape between its quotes; anything else is a lifetime.
        let end = match inside.chars().next()? {
            '\\' => 2 + inside.get(2..)?.find('\'')?,
            other => other.len_utf8(),
        };
        return inside[end..].starts_with('\'').then_some(prefix + 1 + end + 1);
    }
    let inside = body.strip_prefix('"')?;
    let mut escaped = false;
    let end = inside.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    Some(prefix + 1 + end + 1)
}

// ---- the reader itself ----

fn names(text: &str, depth: usize) -> Vec<String> {
    let tokens = tokens(text);
    uses(&without_tests(&tokens).0, depth).into_iter().map(|used| used.name).collect()
}

#[test]
fn uses_are_found_in_lists_paths_and_macros() {
    assert_eq!(names("use crate::{a, b::{c, d}, e as f, Error};", 1), ["a", "b", "e", "error"]);
    assert_eq!(names("fn f() { crate::a::g(vec![crate::b::X]) }", 1), ["a", "b"]);
    assert_eq!(names("use secateur::{adapt, Result};", 1), ["adapt", "error"]);
}

#[test]
fn super_counts_only_where_it_leaves_the_module() {
    assert_eq!(names("use super::a; use super::super::b;", 2), ["b"]);
    assert_eq!(names("use super::{a, b};", 1), ["a", "b"]);
}

#[test]
fn comments_and_literals_are_no_uses() {
    let text = "/// [`crate::a`]\n/* crate::b /* x */ crate::c */ let q = '\"'; let s = \"crate::d\\\"crate::e\";\n\
                let r = r#\"crate::f\"#; fn g<'a>(x: &'a crate::h::X, c: char) { c == '\\'' || c == '\\u{7D}' }";
    assert_eq!(names(text, 1), ["h"]);
}

#[test]
fn tests_are_no_uses_and_their_lines_do_not_count() {
    let text = "use crate::a;\n#[cfg(test)]\nuse crate::{b, c};\n#[cfg(test)]\npub(crate) mod testing;\n\
                #[cfg(test)]\nmod tests {\n    use crate::d;\n}\nuse crate::e;\n";
    assert_eq!(names(text, 1), ["a", "e"]);
    let lines: Vec<_> = without_tests(&tokens(text)).1.into_iter().map(|test| test.lines).collect();
    assert_eq!(lines, [2..=3, 4..=5, 6..=9]);
    assert_eq!(test_files(Path::new("src/x/mod.rs"), text), [Path::new("src/x/testing")]);
    assert_eq!(test_files(Path::new("src/x.rs"), text), [Path::new("src/x/testing")]);
}

#[test]
fn a_use_carries_its_line() {
    let tokens = tokens("//! text\n\nuse std::fs;\nuse crate::{\n    a,\n    b,\n};\n");
    let lines: Vec<usize> = uses(&tokens, 1).iter().map(|used| used.line).collect();
    assert_eq!(lines, [5, 6]);
}
