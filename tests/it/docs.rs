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

/// Neither Loco nor sea-orm-migration is a dependency of this crate, so these pages' code compiles in the examples, word for
/// word.
#[test]
fn the_code_of_the_pages_that_no_doctest_compiles_is_the_examples() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let loco = ["app", "current_user", "initializers", "controllers/items"];
    let pages = [
        (
            "from_loco",
            loco.map(|file| format!("loco/src/{file}.rs")).to_vec(),
            4,
        ),
        (
            "testing",
            ["src/bin", "tests"]
                .map(|dir| format!("integrations/{dir}/shop.rs"))
                .to_vec(),
            3,
        ),
    ];
    for (page, files, least) in pages {
        let sources = files.iter().map(|file| {
            let source = fs::read_to_string(root.join("examples").join(file));
            unindented(&source.unwrap())
        });
        let sources: Vec<_> = sources.collect();
        let page = fs::read_to_string(root.join(format!("src/guide/{page}.md"))).unwrap();
        let blocks = page.split("```rust,ignore\n").skip(1);
        let blocks: Vec<_> = blocks
            .map(|block| unindented(block.split("```").next().unwrap()))
            .collect();
        assert!(blocks.len() >= least, "{}", blocks.len());
        for block in blocks {
            let is_there = sources.iter().any(|source| source.contains(&block));
            assert!(is_there, "not in {files:?}:\n{block}");
        }
    }
}

/// crates.io and docs.rs show the README without the repository around it. docs.rs has each file that is published.
#[test]
fn every_link_of_the_readme_works_where_it_is_published() {
    const FILES: &str = "https://docs.rs/crate/tower-sea-orm/latest/source/";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let include = manifest.split_once("\ninclude = [").unwrap().1;
    let include = include.split_once(']').unwrap().0.split('"');
    let include: Vec<_> = include.skip(1).step_by(2).collect();
    let is_published = |file: &str| {
        let is_in = |entry: &&str| match entry.trim_start_matches('/').split_once('*') {
            Some((start, end)) => file.starts_with(start) && file.ends_with(end),
            None => Path::new(file).starts_with(&entry[1..]),
        };
        root.join(file).exists() && include.iter().any(is_in)
    };
    let headings: Vec<_> = readme
        .lines()
        .filter(|line| line.starts_with('#'))
        .collect();
    let is_heading = |anchor: &str| headings.iter().any(|heading| slug(heading) == anchor);

    // `[text](target)`, and `[label]: target` at the start of a line.
    let inline = readme
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap());
    let labelled = readme.lines().filter(|line| line.starts_with('['));
    let labelled = labelled.filter_map(|line| Some(line.split_once("]: ")?.1));
    let targets: Vec<_> = inline.chain(labelled).collect();
    let broken: Vec<_> = targets
        .iter()
        .filter(
            |target| match (target.strip_prefix(FILES), target.strip_prefix('#')) {
                (Some(file), _) => !is_published(file),
                (_, Some(anchor)) => !is_heading(anchor),
                (None, None) => !target.starts_with("https://"),
            },
        )
        .collect();
    assert!(targets.len() > 10, "{targets:?}");
    assert!(broken.is_empty(), "{broken:#?}");
}

/// A heading's anchor, as GitHub and crates.io make it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}

/// The words that a reader searches for, with the page that is to answer.
#[test]
fn the_index_leads_to_an_answer_for_each_question() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let front = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    assert!(front.contains("](guide::where_to_find_what)"));
    let index = fs::read_to_string(root.join("src/guide/where_to_find_what.md")).unwrap();
    let rows: Vec<_> = index
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    for question in [
        "pool size",
        "PgBouncer",
        "Supabase",
        "\"session closed\"",
        "&DatabaseConnection",
        "401",
        "GraphQL",
        "500 or 503",
        "`before_acquire`",
        "unit test of a handler with a `DbTx`",
        "migrations",
        "two databases",
        "replica",
        "metrics",
        "Grafana",
        "OpenTelemetry",
        "which request holds a connection",
        "health check",
        "Kubernetes",
        "retry",
        "schema for each tenant",
        "`statement_timeout`",
        "tonic",
        "SSE",
        "WebSocket",
        "actix-web",
        "what a word means",
    ] {
        let asks = |row: &&&str| row.split(" | ").next().unwrap().contains(question);
        let row = rows.iter().find(asks);
        let row = row.unwrap_or_else(|| panic!("not in the index: {question}"));
        for link in row.split("](").skip(1) {
            assert_leads_somewhere(root, &index, link.split(')').next().unwrap());
        }
    }
}

/// Whether the anchor of a link within the guide is a heading there. rustdoc looks at the page only.
fn assert_leads_somewhere(root: &Path, index: &str, link: &str) {
    let Some((page, anchor)) = link.split_once('#') else {
        return;
    };
    let text = match page.strip_prefix("crate::guide::") {
        Some(page) => fs::read_to_string(root.join(format!("src/guide/{page}.md"))).unwrap(),
        None if page.is_empty() => index.to_owned(),
        None if page == "crate" => {
            let front = fs::read_to_string(root.join("src/lib.rs")).unwrap();
            front.replace("//! ", "")
        }
        None => return,
    };
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let mut anchors = headings.map(|heading| slug(&heading.replace('`', "")));
    assert!(anchors.any(|heading| heading == anchor), "{link}");
}

fn unindented(code: &str) -> String {
    let lines = code.lines().map(str::trim);
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}
