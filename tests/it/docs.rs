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

/// Loco is no dependency of this crate, so the page's code compiles in `examples/loco`, word for word.
#[test]
fn the_code_of_from_loco_md_is_the_examples() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = root.join("examples/loco/src");
    let files = ["app", "current_user", "initializers", "controllers/items"];
    let sources = files.map(|file| {
        let source = fs::read_to_string(example.join(file).with_extension("rs")).unwrap();
        unindented(&source)
    });
    let page = fs::read_to_string(root.join("src/guide/from_loco.md")).unwrap();
    let blocks = page.split("```rust,ignore\n").skip(1);
    let blocks: Vec<_> = blocks
        .map(|block| unindented(block.split("```").next().unwrap()))
        .collect();
    assert!(blocks.len() > 3, "{}", blocks.len());
    for block in blocks {
        let is_there = sources.iter().any(|source| source.contains(&block));
        assert!(is_there, "not in examples/loco:\n{block}");
    }
}

fn unindented(code: &str) -> String {
    let lines = code.lines().map(str::trim);
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}
