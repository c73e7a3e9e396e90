//! The repository's own files, as tests of the house read them.

use std::fs;
use std::path::Path;

/// A file of the repository.
pub(crate) struct Source {
    /// Relative to the repository's root.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Folders that hold no text of ours.
const SKIPPED_FOLDERS: [&str; 6] =
    ["target", ".git", ".metergate", "node_modules", "data", "proptest-regressions"];

fn walk(folder: &Path, extensions: &[&str], found: &mut Vec<Source>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !SKIPPED_FOLDERS.contains(&name.as_str()) {
                walk(&path, extensions, found);
            }
        } else if path
            .extension()
            .is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted))
        {
            let path_in_root = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            found.push(Source { path: path_in_root, text: fs::read_to_string(&path).unwrap() });
        }
    }
}

/// Every file of the repository with one of the extensions, in the order of their paths.
pub(crate) fn files(extensions: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    walk(Path::new(env!("CARGO_MANIFEST_DIR")), extensions, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no files with {extensions:?}");
    found
}

/// Every Rust source: the service, the domain crate, tests and examples.
pub(crate) fn rust_sources() -> Vec<Source> {
    files(&["rs"])
}
