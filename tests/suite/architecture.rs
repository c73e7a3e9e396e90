//! Rules for the source tree: layers use only the layers below them, only the store has SQL, files do not
//! import each other in circles, and landed migrations do not change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha384};

use crate::support::sources;

/// Layers from the outside inwards, each with the layers that it may use.
const LAYERS: [(&str, &[&str]); 8] = [
    ("app", &["http", "jobs", "engine", "providers", "store", "domain", "embedded"]),
    ("http", &["engine", "domain"]),
    ("jobs", &["engine", "domain"]),
    ("engine", &["providers", "store", "domain"]),
    ("providers", &["domain"]),
    ("store", &["domain"]),
    ("embedded", &[]),
    ("domain", &[]),
];

/// Text that the code of a layer must not contain.
const BANNED: [(&str, &[&str]); 8] = [
    ("app", &["sqlx::"]),
    ("http", &["sqlx::"]),
    ("jobs", &["sqlx::", "axum::"]),
    ("engine", &["axum::", "sqlx::query"]),
    ("providers", &["axum::", "sqlx::"]),
    ("store", &["axum::", "reqwest::"]),
    ("embedded", &["sqlx::", "axum::"]),
    ("domain", &["sqlx::", "axum::", "tokio::", "async fn", "now()"]),
];

/// A source file without its tests and comments.
struct Source {
    /// Relative to `src`, as in `engine/gate/mod.rs`.
    path: String,
    code: String,
}

/// Returns every file of the service and of the domain crate that is not a test.
fn sources() -> Vec<Source> {
    // the domain is a separate crate, so Cargo keeps it free of the other layers
    let path_in_layers = |path: &str| match path.strip_prefix("crates/domain/src/") {
        Some(path) => Some(format!("domain/{path}")),
        None => path.strip_prefix("src/").map(str::to_owned),
    };
    let source =
        |file: sources::Source| Some(Source { path: path_in_layers(&file.path)?, code: code_of(&file.text) });
    let mut found: Vec<Source> = sources::rust_sources().into_iter().filter_map(source).collect();
    let test_files = test_files(&found);
    found.retain(|source| !test_files.contains(&source.path));
    assert!(found.len() > 100, "only {} files were found", found.len());
    found
}

/// Removes comments and the inline test module, which is the last item of a file.
fn code_of(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let without_comment = |line: &str| line.split("//").next().unwrap_or_default().to_owned() + "\n";
    text[..end].lines().map(without_comment).collect()
}

/// Returns the files of `#[cfg(test)] mod name;`.
fn test_files(sources: &[Source]) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for source in sources {
        for after in source.code.split("#[cfg(test)]\nmod ").skip(1) {
            let name: String = after.chars().take_while(|c| *c != ';' && *c != ' ').collect();
            let folder = folder_of(&source.path);
            files.extend([format!("{folder}{name}.rs"), format!("{folder}{name}/mod.rs")]);
        }
    }
    files
}

/// Returns the folder with the children of a module: `a/` for `a/mod.rs`, and `a/b/` for `a/b.rs`.
fn folder_of(path: &str) -> String {
    match path.strip_suffix("mod.rs").or_else(|| (path == "lib.rs" || path == "main.rs").then_some("")) {
        Some(folder) => folder.to_owned(),
        None => format!("{}/", path.trim_end_matches(".rs")),
    }
}

fn layer_of(path: &str) -> Option<&str> {
    path.split_once('/').map(|(layer, _)| layer)
}

#[test]
fn layers_use_only_their_allowed_layers() {
    let sources = sources();
    for (layer, allowed) in LAYERS {
        let mut files = 0;
        for source in sources.iter().filter(|source| layer_of(&source.path) == Some(layer)) {
            files += 1;
            // within the domain, `crate` is the domain
            for used in source.code.split("crate::").skip(1).filter(|_| layer != "domain") {
                let used: String =
                    used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                assert!(used == layer || allowed.contains(&used.as_str()), "{} uses {used}", source.path);
            }
        }
        assert!(files > 0, "the layer {layer} has no files");
    }
}

#[test]
fn layers_do_not_contain_banned_code() {
    // the encodings of values for PostgreSQL are a feature of the domain crate, off by default
    for source in sources().iter().filter(|source| source.path != "domain/postgres.rs") {
        let banned = BANNED.iter().find(|(layer, _)| layer_of(&source.path) == Some(layer));
        for word in banned.into_iter().flat_map(|(_, words)| *words) {
            assert!(!source.code.contains(word), "{} contains {word}", source.path);
        }
    }
}

#[test]
fn sql_is_only_in_the_store() {
    for source in sources().iter().filter(|source| layer_of(&source.path) != Some("store")) {
        for call in ["sqlx::query", "sqlx::raw_sql", "raw_sql("] {
            assert!(!source.code.contains(call), "{} contains {call}", source.path);
        }
    }
}

/// Module paths of all files, for resolving imports.
struct Modules {
    /// `engine::gate` -> `engine/gate/mod.rs`
    files: BTreeMap<Vec<String>, String>,
}

impl Modules {
    fn of(sources: &[Source]) -> Self {
        let module = |source: &Source| (module_path(&source.path), source.path.clone());
        Self { files: sources.iter().filter(|source| source.path != "main.rs").map(module).collect() }
    }

    /// Returns the file of the longest prefix of a path that names a module.
    fn file(&self, path: &[String]) -> Option<&String> {
        (0..=path.len()).rev().find_map(|length| self.files.get(&path[..length]))
    }

    /// Returns the files that a file imports.
    fn imports(&self, source: &Source) -> BTreeSet<String> {
        let own = module_path(&source.path);
        let mut imported = BTreeSet::new();
        for path in used_paths(&source.code) {
            let target = match path[0].as_str() {
                "crate" if own.first().is_some_and(|layer| layer == "domain") => {
                    own[..1].iter().chain(&path[1..]).cloned().collect()
                }
                "crate" => path[1..].to_vec(),
                "self" => own.iter().chain(&path[1..]).cloned().collect(),
                "super" => {
                    let ups = path.iter().take_while(|segment| *segment == "super").count();
                    own[..own.len().saturating_sub(ups)].iter().chain(&path[ups..]).cloned().collect()
                }
                // a child module, as in `pub use lane::Lane`
                child => {
                    let path: Vec<String> = own.iter().chain(&path).cloned().collect();
                    if !self.files.contains_key(&path[..=own.len()]) || child.is_empty() {
                        continue;
                    }
                    path
                }
            };
            // a `lib.rs` declares the layers and nothing else
            imported.extend(self.file(&target).filter(|file| !file.ends_with("lib.rs")).cloned());
        }
        imported.remove(&source.path);
        imported
    }
}

fn module_path(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    path.split('/').filter(|part| *part != "mod" && *part != "lib").map(str::to_owned).collect()
}

/// Returns the paths of all `use` declarations, one per name, and all other paths that begin with `crate::`
/// or `super::`.
fn used_paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find("use ") {
        let is_word = rest[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let end = rest[start..].find(';').map_or(rest.len(), |end| start + end);
        if !is_word {
            expand(&[], rest[start + 4..end].trim(), &mut paths);
        }
        rest = &rest[end..];
    }
    for keyword in ["crate::", "super::"] {
        for (start, _) in code.match_indices(keyword) {
            // part of a longer path, or of `pub(in crate::engine)`
            if code[..start].ends_with("::") || code[..start].ends_with("(in ") {
                continue;
            }
            let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let text: String = code[start..].chars().take_while(|c| is_part(*c)).collect();
            // an opening brace follows in a `use`, which is expanded above
            if !code[start + text.len()..].starts_with('{') {
                expand(&[], &text, &mut paths);
            }
        }
    }
    paths.retain(|path| !path.is_empty());
    paths
}

/// Expands `a::{b, c::{d, e}}` to `a::b`, `a::c::d` and `a::c::e`.
fn expand(prefix: &[String], tree: &str, paths: &mut Vec<Vec<String>>) {
    let (path, group) = match tree.split_once('{') {
        Some((path, group)) => (path, group.trim_end().strip_suffix('}')),
        None => (tree.split(" as ").next().unwrap_or_default(), None),
    };
    let segments = path.split("::").map(str::trim).filter(|segment| !segment.is_empty() && *segment != "*");
    let mut path: Vec<String> = prefix.iter().cloned().chain(segments.map(str::to_owned)).collect();
    let Some(group) = group else {
        if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
            path.pop();
        }
        paths.push(path);
        return;
    };
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&path, &group[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !group[start..].trim().is_empty() {
        expand(&path, &group[start..], paths);
    }
}

/// Returns the groups of files that import each other in a circle (strongly connected components of two or
/// more).
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reachable = |from: &String| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            for target in imports.get(file).into_iter().flatten() {
                if reached.insert(target.clone()) {
                    next.push(target);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        imports.keys().map(|file| (file, reachable(file))).collect();
    let mutual = |file: &String| -> BTreeSet<String> {
        reached[file]
            .iter()
            .filter(|other| reached.get(other).is_some_and(|r| r.contains(file)))
            .cloned()
            .collect()
    };
    imports.keys().map(mutual).filter(|circle| circle.len() > 1).collect()
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let sources = sources();
    let modules = Modules::of(&sources);
    let imports: BTreeMap<String, BTreeSet<String>> =
        sources.iter().map(|source| (source.path.clone(), modules.imports(source))).collect();
    let circles = circles(&imports);
    let mut report = Vec::new();
    for circle in &circles {
        report.push(format!("circle of {} files:", circle.len()));
        report.extend(circle.iter().map(|file| {
            let within: Vec<&String> = imports[file].intersection(circle).collect();
            format!("  {file} imports {within:?}")
        }));
    }
    assert!(circles.is_empty(), "{}", report.join("\n"));
}

#[test]
fn imports_are_resolved_to_files() {
    let source = |path: &str, code: &str| Source { path: path.to_owned(), code: code.to_owned() };
    let sources = [
        source("lib.rs", "mod a; mod b;"),
        source("a/mod.rs", "mod x; mod y; pub use x::X; fn f() { super::b::g(); }"),
        source("a/x.rs", "use super::{y::{Y, Z as W}, f};\nuse crate::b;"),
        source("a/y.rs", "use std::fmt;\nfn f(x: crate::a::x::X) {}"),
        source("b.rs", "use because::nothing;"),
    ];
    let modules = Modules::of(&sources);
    let imports: Vec<Vec<String>> =
        sources.iter().map(|source| modules.imports(source).into_iter().collect()).collect();
    assert_eq!(imports[1], ["a/x.rs", "b.rs"]);
    assert_eq!(imports[2], ["a/mod.rs", "a/y.rs", "b.rs"]);
    assert_eq!(imports[3], ["a/x.rs"]);
    assert!(imports[4].is_empty());
    let imports = sources.iter().map(|source| (source.path.clone(), modules.imports(source))).collect();
    let circle = ["a/mod.rs", "a/x.rs", "a/y.rs"].map(str::to_owned);
    assert_eq!(circles(&imports), BTreeSet::from([BTreeSet::from(circle)]));
}

#[test]
fn landed_migrations_do_not_change() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let listed = fs::read_to_string(folder.join("checksums")).unwrap();
    let listed: BTreeMap<&str, &str> = listed
        .lines()
        .map(|line| line.split_once("  ").unwrap())
        .map(|(checksum, name)| (name, checksum))
        .collect();
    let mut present = BTreeSet::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|extension| extension != "sql") {
            continue;
        }
        let checksum = hex::encode(Sha384::digest(fs::read(&path).unwrap()));
        assert_eq!(
            listed.get(name.as_str()),
            Some(&checksum.as_str()),
            "{name} must match migrations/checksums: undo changes of a landed file, or add the line of a new file"
        );
        present.insert(name);
    }
    let listed: BTreeSet<String> = listed.into_keys().map(str::to_owned).collect();
    assert_eq!(present, listed, "a migration of migrations/checksums is missing");
}
