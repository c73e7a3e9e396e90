//! The house rules of `docs/STYLE.md` that a machine can check, at zero findings.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::support::sources::{Source, files, rust_sources};

/// First words that make a reader wait for the subject.
const FORBIDDEN_OPENERS: [&str; 11] =
    ["What", "Whose", "Who", "Whom", "Whoever", "Those", "That", "Where", "How", "Which", "Why"];

/// Words of the private dialect, matched as whole words without regard to case. `docs/GLOSSARY.md` has the standard ones.
const BANNED_PHRASES: [&str; 17] = [
    "anew",
    "beside",
    "lapse",
    "lapsed",
    "lapses",
    "whoever",
    "whom",
    "whose",
    "of nothing",
    "comes to",
    "told",
    "said",
    "all the same",
    "is none",
    "flaw",
    "flawed",
    "foremost",
];

/// The longest function that fits on a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that may be longer, each with its reason.
const LONG_FUNCTIONS: [(&str, &str); 13] = [
    ("billing_periods_are_contiguous_across_changes", "a table of cases"),
    ("run", "the benchmark of exports, step by step"),
    ("catalogs_with_unusable_credits_are_refused", "a table of cases"),
    ("take", "one arm for each random action"),
    ("two_replicas_with_every_fault_bill_each_unit_once", "a story"),
    ("kill_and_crash", "a story"),
    ("ask", "the model of a reservation, one arm for each outcome"),
    ("extend", "the model of an extension, one arm for each outcome"),
    ("invalid_single_events_are_rejected", "a table of cases"),
    ("trace_invoices_match_stripe_to_the_cent", "a story"),
    ("invalid_quotes_are_refused_with_their_pointer", "a table of cases"),
    ("an_adjustment_voids_an_event", "a story"),
    ("rejected_meter_events_use_stripe_errors_and_write_nothing", "a table of cases"),
];

/// Pages that name banned words in order to ban them.
const PAGES_ABOUT_WORDS: [&str; 2] = ["docs/GLOSSARY.md", "docs/STYLE.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Fails with every finding, a line each.
fn expect_none(rule: &str, findings: &[String]) {
    let mut report = String::new();
    for finding in findings {
        writeln!(report, "  {finding}").unwrap();
    }
    assert!(findings.is_empty(), "{rule}: {} findings\n{report}", findings.len());
}

/// The text of a doc comment's line, without its slashes.
fn doc_text(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let text = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))?;
    Some(text.trim_start())
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
}

/// The text without its `code`.
fn prose_of(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

fn contains_phrase(text: &str, phrase: &str) -> bool {
    let text = text.to_lowercase();
    let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(phrase).any(|(at, _)| {
        !is_letter(text[..at].chars().next_back()) && !is_letter(text[at + phrase.len()..].chars().next())
    })
}

/// The comment of a line of Rust, and its string literals that read as prose.
fn prose_of_rust(line: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let mut literal: Option<String> = None;
    let mut chars = line.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (&mut literal, c) {
            (Some(text), '\\') => {
                text.push(c);
                text.extend(chars.next().map(|(_, next)| next));
            }
            (Some(text), '"') => {
                if text.contains(' ') {
                    texts.push(prose_of(text));
                }
                literal = None;
            }
            (Some(text), _) => text.push(c),
            (None, '"') => literal = Some(String::new()),
            (None, '/') if line[at..].starts_with("//") => {
                texts.push(prose_of(&line[at..]));
                return texts;
            }
            (None, _) => {}
        }
    }
    // a literal that goes on in the next line
    texts.extend(literal.filter(|text| text.contains(' ')).map(|text| prose_of(&text)));
    texts
}

fn is_function(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|word| {
        word.starts_with("pub") || matches!(*word, "const" | "async" | "unsafe" | "crate)" | "super)")
    });
    words.next() == Some("fn")
}

#[test]
fn doc_comments_open_with_a_verb_or_a_noun() {
    let mut findings = Vec::new();
    for Source { path, text } in rust_sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let Some(doc) = doc_text(line) else { continue };
            if index > 0 && doc_text(lines[index - 1]).is_some() {
                continue;
            }
            let word = first_word(doc);
            let documented = lines[index..]
                .iter()
                .find(|line| doc_text(line).is_none() && !line.trim_start().starts_with("#["));
            let opens_a_predicate = word == "Whether" && documented.is_some_and(|line| is_function(line));
            if FORBIDDEN_OPENERS.contains(&word) || opens_a_predicate {
                findings.push(format!("{path}:{}: {doc}", index + 1));
            }
        }
    }
    expect_none("a doc comment opens with a verb in the third person, a noun or an article", &findings);
}

#[test]
fn prose_uses_the_words_of_the_glossary() {
    let mut findings = Vec::new();
    let mut check = |path: &str, number: usize, text: &str| {
        for phrase in BANNED_PHRASES.into_iter().filter(|phrase| contains_phrase(text, phrase)) {
            findings.push(format!("{path}:{number}: `{phrase}` in: {}", text.trim()));
        }
    };
    for Source { path, text } in rust_sources() {
        if path == "tests/suite/tidy.rs" {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            for prose in prose_of_rust(line) {
                check(&path, index + 1, &prose);
            }
        }
    }
    for Source { path, text } in files(&["md", "sql", "yaml", "yml", "toml"]) {
        if PAGES_ABOUT_WORDS.contains(&path.as_str()) {
            continue;
        }
        let extension = Path::new(&path).extension().and_then(OsStr::to_str);
        let mut in_code = false;
        for (index, line) in text.lines().enumerate() {
            if extension == Some("md") && line.trim_start().starts_with("```") {
                in_code = !in_code;
            }
            let prose = match extension {
                Some("sql") => line.split_once("--").map(|(_, comment)| comment),
                Some("toml") => line.split_once('#').map(|(_, comment)| comment),
                _ => Some(line).filter(|_| !in_code),
            };
            if let Some(prose) = prose {
                check(&path, index + 1, &prose_of(prose));
            }
        }
    }
    expect_none("prose uses the words of docs/GLOSSARY.md", &findings);
}

/// The visibility, kind and name of an item that a line declares for others.
fn public_item(line: &str) -> Option<(&str, &str)> {
    let rest = line.trim_start().strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(scope) => scope.split_once(')')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace().skip_while(|word| matches!(*word, "async" | "unsafe")).peekable();
    let mut kind = words.next()?;
    if kind == "const" && words.peek() == Some(&"fn") {
        kind = words.next()?;
    }
    if !matches!(kind, "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static") {
        return None;
    }
    let name = words.next()?.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    // the placeholder of a macro has no name yet
    (!name.is_empty()).then_some((kind, name))
}

#[test]
fn a_public_type_name_occurs_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Source { path, text } in rust_sources() {
        if !path.starts_with("src/") && !path.starts_with("crates/") {
            continue;
        }
        for line in text.lines() {
            if let Some((kind, name)) = public_item(line)
                && matches!(kind, "struct" | "enum" | "trait")
            {
                places.entry(name.to_owned()).or_default().push(path.clone());
            }
        }
    }
    let findings: Vec<String> = places
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    expect_none("a public type name occurs once", &findings);
}

#[test]
fn no_public_item_is_dead() {
    let sources = rust_sources();
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for Source { text, .. } in &sources {
        // neither a comment nor a name that is only handed on makes an item alive
        let is_code = |line: &&str| !line.trim_start().starts_with("//") && !line.starts_with("pub use ");
        for line in text.lines().filter(is_code) {
            for word in line.split(|c: char| !c.is_alphanumeric() && c != '_') {
                *uses.entry(word).or_default() += 1;
            }
        }
    }
    let mut findings = Vec::new();
    for Source { path, text } in &sources {
        if !path.starts_with("src/") && !path.starts_with("crates/") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            if let Some((kind, name)) = public_item(line)
                && uses.get(name).is_none_or(|count| *count < 2)
            {
                findings.push(format!("{path}:{}: {kind} {name}", index + 1));
            }
        }
    }
    expect_none("every public item is used", &findings);
}

#[test]
fn a_function_fits_on_a_screen() {
    let mut findings = Vec::new();
    for Source { path, text } in rust_sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
            let indent = &line[..line.len() - line.trim_start().len()];
            let closing = format!("{indent}}}");
            // a declaration without a body, or one on a single line, ends before any closing brace of its indent
            let Some(length) = lines[start..].iter().position(|line| {
                *line == closing
                    || (line.starts_with(indent)
                        && line.ends_with(';')
                        && !line[indent.len()..].starts_with(' '))
            }) else {
                continue;
            };
            let name = line.split("fn ").nth(1).unwrap_or_default();
            let name = name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            let is_excepted = LONG_FUNCTIONS.iter().any(|(excepted, _)| *excepted == name);
            if length + 1 > FUNCTION_LINES_MAX && !is_excepted {
                findings.push(format!("{path}:{}: {name} has {} lines", start + 1, length + 1));
            }
        }
    }
    expect_none(&format!("a function has at most {FUNCTION_LINES_MAX} lines"), &findings);
}

#[test]
fn raw_statements_stay_in_the_store() {
    let findings: Vec<String> = rust_sources()
        .into_iter()
        .filter(|source| source.path.starts_with("src/") && !source.path.starts_with("src/store/"))
        .filter(|source| !source.path.ends_with("/tests.rs"))
        .filter(|source| source.text.contains("raw_sql"))
        .map(|source| source.path)
        .collect();
    expect_none("raw_sql is used in src/store alone", &findings);
}

#[test]
fn the_rules_see_what_they_are_for() {
    assert_eq!(doc_text("    /// What it is"), Some("What it is"));
    assert!(FORBIDDEN_OPENERS.contains(&first_word("Whose counter it is.")));
    assert!(contains_phrase("a hold that Lapsed, too", "lapsed"));
    assert!(!contains_phrase("besides", "beside"));
    assert_eq!(prose_of_rust(r#"fail("it is told so"); // anew"#), ["it is told so", "// anew"]);
    assert_eq!(public_item("    pub(crate) const fn dead() -> u8 {"), Some(("fn", "dead")));
    assert!(is_function("    pub(super) async fn read() {"));
    assert!(fs::exists(root().join("docs/STYLE.md")).unwrap());
}
