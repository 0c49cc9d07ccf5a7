//! A module uses only modules on lower floors (`docs/architecture.md`).

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Floors by top-level module. A module that is not here fails the test: its author chooses.
const FLOORS: &[(u8, &[&str])] = &[
    (0, &["clock", "error", "failpoint", "id", "keep", "name", "options", "timing", "units"]),
    (1, &["model"]),
    (2, &["aws", "linux", "thin_metadata"]),
    (3, &["catalog", "cluster"]),
    (4, &["backend"]),
    (5, &["repository", "transfer"]),
    (6, &["engine"]),
    (7, &["api", "cli", "client", "config", "daemon", "telemetry"]),
];

/// Edges within the face floor that are the way of a request: the program starts the daemon and the
/// command line, and those use what translates for them. Anything else there would be a circle in
/// the making.
const WITHIN_FACES: &[(&str, &str)] = &[
    ("cli", "client"),
    ("cli", "config"),
    ("cli", "daemon"),
    ("cli", "telemetry"),
    ("cli", "api"),
    ("client", "api"),
    ("daemon", "api"),
    ("daemon", "config"),
    ("daemon", "telemetry"),
];

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(_, modules)| modules.contains(&module)).map(|(floor, _)| *floor)
}

fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The top-level modules that a source names after `crate::`, in code or in `use crate::{...}`.
fn used_modules(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let words: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => {
                let mut depth = 0;
                let end = list.find(|c| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    depth < 0
                });
                list[..end.unwrap_or(list.len())].split(',').collect()
            }
            None => vec![rest],
        };
        modules.extend(words.iter().map(|word| {
            word.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()
        }));
    }
    modules.retain(|module: &String| !module.is_empty());
    modules
}

#[test]
fn no_module_uses_a_higher_floor() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<String, u8> = BTreeMap::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let Some(own) = floor(module) else {
            wrong.push(format!("{module} is on no floor"));
            continue;
        };
        seen.insert(module.to_owned(), own);
        for used in used_modules(&std::fs::read_to_string(&file).unwrap()) {
            let Some(other) = floor(&used) else { continue };
            let same_room = used == module;
            let allowed_aside =
                WITHIN_FACES.contains(&(module, used.as_str())) || own == 0 && other == 0;
            if other > own || (other == own && !same_room && !allowed_aside) {
                wrong.push(format!(
                    "{} (floor {own}) uses {used} (floor {other})",
                    relative.display()
                ));
            }
        }
    }
    assert!(seen.len() >= 10, "the sources were not found: {seen:?}");
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn uses_are_found_in_every_form() {
    let source = "use crate::engine::view;\nuse crate::{error::{Error, Result}, linux};\n// crate::cli\nlet x = crate::api::y();";
    assert_eq!(used_modules(source), ["engine", "error", "linux", "api"]);
}
