//! The source tree keeps its own rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Neighbours that never meet, though the list order would let the first see the second.
const STRANGERS: &[(&str, &str)] = &[("cli", "server"), ("cache", "upstream"), ("net", "oci")];

/// Lines that a file may have before it is two files.
const LINES_MAX: usize = 800;

/// A module uses only modules declared after it: the `mod` list is the floor plan, top floor
/// first. `lib.rs` lists the floors; each `mod.rs` lists the files of its floor.
#[test]
fn imports_run_strictly_downward() {
    let mut faults = Vec::new();
    for file in sources(Path::new("src")) {
        let place = place(&file);
        if place.is_empty() {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for (n, line) in text.lines().enumerate() {
            // Comments point anywhere.
            if line.trim_start().starts_with("//") {
                continue;
            }
            let is_in_tests = line.starts_with("    ");
            if !is_downward(&place, line, is_in_tests) {
                faults.push(format!("{}:{}: {}", file.display(), n + 1, line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "not downward:\n{}", faults.join("\n"));
}

#[test]
fn files_are_introduced_and_short_and_finished() {
    let mut faults = Vec::new();
    let tests = sources(Path::new("tests"));
    for file in sources(Path::new("src")).into_iter().chain(tests) {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.display();
        if !text.starts_with("//!") {
            faults.push(format!("{name} does not say what it is"));
        }
        if file.starts_with("src") && text.lines().count() > LINES_MAX {
            faults.push(format!("{name} has more than {LINES_MAX} lines"));
        }
        for unfinished in [
            concat!("FIX", "ME"),
            concat!("TO", "DO"),
            concat!("dbg", "!("),
        ] {
            if text.contains(unfinished) {
                faults.push(format!("{name} has a {unfinished}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Files that may have `unsafe` in them, each with its reason at its head and its proof at each block.
const UNSAFE: &[&str] = &["src/server/send_buffer.rs"];

#[test]
fn what_the_compiler_cannot_check_stays_where_it_is_argued_for() {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    assert!(manifest.contains("\nunsafe_code = \"deny\"\n"));
    let mut faults = Vec::new();
    for file in sources(Path::new("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|it| !it.trim_start().starts_with("//"));
        let mut words = code.flat_map(|it| it.split(|c: char| !c.is_alphanumeric() && c != '_'));
        if words.any(|it| it.starts_with("unsafe")) && !UNSAFE.iter().any(|it| file.ends_with(it)) {
            faults.push(file);
        }
    }
    assert!(faults.is_empty(), "unsafe: {faults:?}");
}

#[test]
fn the_readme_lists_the_metrics_that_there_are() {
    // The README comes when there is something to read about.
    let Ok(readme) = fs::read_to_string("README.md") else {
        return;
    };
    let listed: BTreeSet<String> = readme
        .lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| metrics_in(line, '`'))
        .collect();
    let registered = registered_metrics();
    let unknown: Vec<_> = listed.difference(&registered).collect();
    let secret: Vec<_> = registered.difference(&listed).collect();
    assert!(unknown.is_empty(), "listed but not registered: {unknown:?}");
    assert!(secret.is_empty(), "registered but not listed: {secret:?}");
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let registered = registered_metrics();
    let histograms = ["_bucket", "_sum", "_count"];
    for file in ["deploy/alerts.yml", "deploy/grafana.json"] {
        let text = fs::read_to_string(file).unwrap();
        let names = named_after("layerhold_", &text);
        assert!(names.len() >= 10, "{file}");
        for name in names {
            let series = format!("layerhold_{name}");
            let whole = histograms.iter().find_map(|it| series.strip_suffix(it));
            let is_there = |name: &str| registered.contains(name);
            assert!(
                is_there(&series) || whole.is_some_and(is_there),
                "{file} asks for {series}"
            );
        }
    }
}

/// What the floors register.
fn registered_metrics() -> BTreeSet<String> {
    let floors = sources(Path::new("src"));
    let texts = floors.iter().map(|file| fs::read_to_string(file).unwrap());
    texts.flat_map(|text| metrics_in(&text, '"')).collect()
}

/// Where a file is in the tree of modules; a `mod.rs` is where its folder is. The crate's own files are nowhere.
fn place(file: &Path) -> Vec<String> {
    let below = file.strip_prefix("src").unwrap().with_extension("");
    let mut place: Vec<String> = below
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if place.last().is_some_and(|it| it == "mod") {
        place.pop();
    }
    if matches!(place.as_slice(), [only] if only == "lib" || only == "main") {
        place.clear();
    }
    place
}

/// Whether every path on this line leads to something declared below the place it is used at.
fn is_downward(place: &[String], line: &str, is_in_tests: bool) -> bool {
    let floor = &place[0];
    let floors = declared(&[]);
    let down = named_after("crate::", line).into_iter().all(|used| {
        let is_stranger = STRANGERS.contains(&(floor.as_str(), used));
        !is_stranger && (used == floor || is_below(&floors, floor, used))
    });
    let beside = is_in_tests
        || supers(line).into_iter().all(|(up, used)| {
            up <= place.len() && {
                let (parent, rest) = place.split_at(place.len() - up);
                is_below(&declared(parent), &rest[0], used)
            }
        });
    down && beside
}

/// The modules that the one at this place declares, in order.
fn declared(place: &[String]) -> Vec<String> {
    let dir: PathBuf = ["src"]
        .into_iter()
        .chain(place.iter().map(String::as_str))
        .collect();
    let front = dir.join(if place.is_empty() { "lib.rs" } else { "mod.rs" });
    let text = fs::read_to_string(front).unwrap_or_default();
    let name = |line: &str| {
        let (before, rest) = line.split_once("mod ")?;
        let is_code = !before.trim_start().starts_with("//");
        Some(rest.strip_suffix(';')?.to_owned()).filter(|_| is_code)
    };
    text.lines().filter_map(name).collect()
}

/// Whether `used` is declared after `own`.
fn is_below(list: &[String], own: &str, used: &str) -> bool {
    let place = |name: &str| list.iter().position(|it| it == name);
    matches!((place(own), place(used)), (Some(own), Some(used)) if own < used)
}

/// The identifiers that follow `prefix` in `line`; empty for `{` or `*`, which are never below.
fn named_after<'a>(prefix: &str, line: &'a str) -> Vec<&'a str> {
    line.split(prefix).skip(1).map(identifier).collect()
}

/// The identifiers that follow one or more `super::`, and how many.
fn supers(line: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut up = 0;
    for rest in line.split("super::").skip(1) {
        up += 1;
        if !rest.is_empty() {
            found.push((up, identifier(rest)));
            up = 0;
        }
    }
    found
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The metrics named between two `quote`s in `text`.
fn metrics_in(text: &str, quote: char) -> Vec<String> {
    let start = format!("{quote}layerhold_");
    let names = named_after(&start, text).into_iter();
    names
        .map(|name| format!("layerhold_{name}"))
        .filter(|name| text.contains(&format!("{quote}{name}{quote}")) || quote == '`')
        .collect()
}

/// The `.rs` files below a folder.
pub(crate) fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn the_floor_plan_is_read_as_it_is_meant() {
    assert_eq!(supers("use super::super::a::b;"), [(2, "a")]);
    assert_eq!(supers("x(super::a, super::b)"), [(1, "a"), (1, "b")]);
    assert_eq!(supers("use super::{a, b};"), [(1, "")]);
    assert_eq!(place(Path::new("src/cache/mod.rs")), ["cache"]);
    assert_eq!(
        place(Path::new("src/cache/fill/ring.rs")),
        ["cache", "fill", "ring"]
    );
    assert!(place(Path::new("src/lib.rs")).is_empty());
    assert!(!is_downward(
        &["oci".to_owned()],
        "use crate::server::Front;",
        false
    ));
    assert!(!is_downward(
        &["cache".to_owned()],
        "use crate::upstream::Error;",
        false
    ));
    assert!(!is_downward(
        &["server".to_owned()],
        "use crate::{proxy};",
        false
    ));
    assert!(is_downward(
        &["server".to_owned()],
        "use crate::proxy::Answer;",
        false
    ));
}
