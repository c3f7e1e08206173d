//! The documents name files and tests that exist.

use std::{fs, path::Path};

#[test]
fn every_file_and_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for (document, folders) in [
        ("ARCHITECTURE.md", &["", "src", "tests/it"][..]),
        ("CONTRIBUTING.md", &[""]),
        ("docs/comparison.md", &[""]),
        ("docs/hazards.md", &[""]),
    ] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        for code in text.split('`').skip(1).step_by(2) {
            let is_ours = code.starts_with("src/") || code.starts_with("tests/");
            // ARCHITECTURE.md leaves `src/` and `tests/it/` out. Upstream's files, in hazards.md, are none of ours.
            let is_path = is_ours || (folders.len() > 1 && code.contains('/'));
            if !is_path || code.contains(char::is_whitespace) {
                continue;
            }
            let (file, test) = match code.split_once("::") {
                Some((file, test)) => (file, Some(format!("fn {test}("))),
                None => (code, None),
            };
            let mut places = folders.iter().map(|folder| root.join(folder).join(file));
            let place = places.find(|place| place.exists());
            let is_there = place.is_some_and(|place| {
                test.is_none_or(|test| fs::read_to_string(place).unwrap().contains(&test))
            });
            if !is_there {
                missing.push(format!("{document}: {code}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// `docs/hazards.md` writes a file and then the function or constant in it that counts.
#[test]
fn every_item_that_hazards_md_names_is_in_its_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/hazards.md")).unwrap();
    let pieces: Vec<_> = text.split('`').collect();
    let (mut named, mut missing) = (0, Vec::new());
    for piece in pieces.windows(3).skip(1).step_by(2) {
        let [file, between, item] = [0, 1, 2].map(|at| piece[at]);
        let is_item = item.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !file.ends_with(".rs") || !file.starts_with("src/") || !is_item || between.trim() != ","
        {
            continue;
        }
        named += 1;
        let source = fs::read_to_string(root.join(file)).unwrap();
        if !source
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|word| word == item)
        {
            missing.push(format!("{file}: {item}"));
        }
    }
    assert!(named > 10, "{named}");
    assert!(missing.is_empty(), "{missing:#?}");
}
