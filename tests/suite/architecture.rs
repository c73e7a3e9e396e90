//! The house stays as it was planned: imports only point down the list of rooms.

use std::fs;
use std::path::Path;

/// From the door inwards; a room may import only rooms after it.
const ROOMS: [(&str, &[&str]); 8] = [
    ("app", &["http", "jobs", "engine", "providers", "store", "domain", "embedded"]),
    ("http", &["engine", "store", "domain"]),
    ("jobs", &["engine", "domain"]),
    ("engine", &["providers", "store", "domain"]),
    ("providers", &["domain"]),
    ("store", &["domain"]),
    ("embedded", &[]),
    ("domain", &[]),
];

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn layers_import_only_layers_below() {
    for (room, allowed) in ROOMS {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room), &mut files);
        assert!(!files.is_empty(), "{room}");
        for (path, text) in files {
            for used in text.split("crate::").skip(1) {
                let used: String =
                    used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                assert!(used == room || allowed.contains(&used.as_str()), "{path} imports {used}");
            }
        }
    }
}

#[test]
fn layers_use_only_what_they_may() {
    let rules = [
        ("domain", &["sqlx::", "axum::", "tokio::", "async fn", "now()"][..]),
        ("engine", &["axum::", "sqlx::query", "raw_sql"]),
        ("http", &["sqlx::"]),
        ("jobs", &["sqlx::", "axum::"]),
        ("providers", &["axum::", "sqlx::"]),
        ("store", &["axum::", "reqwest::"]),
    ];
    for (room, banned) in rules {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room), &mut files);
        for (path, text) in files {
            let code = text.split("#[cfg(test)]").next().unwrap();
            for word in banned {
                assert!(!code.contains(word), "{path} has {word}");
            }
        }
    }
}
