//! Holds docs/operations.md to the log: every line that the daemon may write is listed there.

use std::fs;
use std::path::Path;

/// What writes a line, and which of the texts in its parentheses is it.
const WRITERS: [(&str, usize); 8] = [
    ("log::info!(", 0),
    ("log::warn!(", 0),
    ("log::error!(", 0),
    ("happened(", 0),
    ("went_wrong(", 0),
    (".warn(", 1),
    (".well(", 1),
    ("try_again(", 1),
];

/// The texts between the parenthesis that has just opened and the one that closes it.
fn texts(code: &str) -> Vec<String> {
    let (mut depth, mut found, mut characters) = (1, Vec::new(), code.chars());
    while let Some(character) = characters.next() {
        match character {
            '(' => depth += 1,
            ')' if depth == 1 => break,
            ')' => depth -= 1,
            '"' => found.push(characters.by_ref().take_while(|c| *c != '"').collect()),
            _ => {}
        }
    }
    found
}

/// The longest part of a text that is the same each time it is written.
fn constant(text: &str) -> String {
    let varies = |word: &&str| word.contains(['{', '=']);
    let words: Vec<&str> = text.split_whitespace().collect();
    let longest = words.split(varies).max_by_key(|words| words.len()).unwrap_or_default();
    longest.join(" ").trim_end_matches(':').to_string()
}

fn sources(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| match path.is_dir() {
        true => sources(&path),
        false if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("lines.rs") => {
            let text = fs::read_to_string(&path).unwrap();
            vec![text.split("#[cfg(test)]").next().unwrap_or_default().to_string()]
        }
        false => Vec::new(),
    };
    entries.flat_map(read).collect()
}

#[test]
fn every_line_of_the_log_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let explained = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let explained = explained.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines = Vec::new();
    for source in sources(&root.join("src/daemon")) {
        for (writer, which) in WRITERS {
            let calls = source.split(writer).skip(1);
            lines.extend(calls.filter_map(|call| Some(constant(texts(call).get(which)?))));
        }
    }
    lines.retain(|line| line.contains(' '));
    lines.sort();
    lines.dedup();
    assert!(lines.len() > 30 && lines.iter().any(|line| line == "image stays in the inbox"), "{lines:?}");
    let missing: Vec<&String> = lines.iter().filter(|line| !explained.contains(line.as_str())).collect();
    assert!(missing.is_empty(), "docs/operations.md does not explain {missing:#?}");
}
