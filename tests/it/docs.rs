//! The documents name files and tests that exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use syn::{LitStr, Macro, visit};

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

/// A comment that says why names the test that shows it. Such a name is a sentence, which nothing else in backquotes is.
#[test]
fn every_test_that_a_comment_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut named, mut functions) = (BTreeSet::new(), BTreeSet::new());
    for folder in ["src", "tests", "examples"] {
        // What is built is not ours.
        for file in rust_files(&root.join(folder), "target") {
            let text = fs::read_to_string(&file).unwrap();
            let after_fn = text.split("fn ").skip(1);
            functions.extend(after_fn.map(|code| word(code).to_owned()));
            let comments = text
                .lines()
                .filter(|line| line.trim_start().starts_with("// "));
            let quoted = comments.flat_map(|line| line.split('`').skip(1).step_by(2));
            let is_sentence = |name: &&str| {
                name.matches('_').count() > 3
                    && word(name) == *name
                    && *name != "idle_in_transaction_session_timeout"
            };
            named.extend(quoted.filter(is_sentence).map(str::to_owned));
        }
    }
    assert!(named.len() > 100, "{}", named.len());
    let missing: Vec<_> = named.difference(&functions).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The name that `code` begins with.
fn word(code: &str) -> &str {
    let end = code.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
    &code[..end.unwrap_or(code.len())]
}

/// All files of Rust below `folder`, without files and folders of the name `but`.
fn rust_files(folder: &Path, but: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.file_stem().is_none_or(|stem| stem != but))
        .flat_map(|path| {
            if path.is_dir() {
                rust_files(&path, but)
            } else {
                vec![path]
            }
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
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
fn the_code_of_from_loco_md_is_the_examples() {
    let files = ["app", "current_user", "initializers", "controllers/items"];
    let files = files.map(|file| format!("examples/loco/src/{file}.rs"));
    assert!(is_code_of("src/guide/from_loco.md", &files) > 6);
}

#[test]
fn the_code_of_testing_md_is_the_examples() {
    let files = ["src/bin", "tests"].map(|dir| format!("examples/integrations/{dir}/shop.rs"));
    assert!(is_code_of("src/guide/testing.md", &files) >= 3);
}

/// Neither are the exporters.
#[test]
fn the_code_of_telemetry_md_is_the_examples() {
    let file = "examples/integrations/src/bin/otlp.rs".to_owned();
    assert!(is_code_of("src/guide/telemetry.md", &[file]) > 3);
}

/// Asserts that the page's code without a test of its own is in one of these files, and counts its blocks.
fn is_code_of(page: &str, files: &[String]) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &String| unindented(&fs::read_to_string(root.join(file)).unwrap());
    let sources: Vec<_> = files.iter().map(read).collect();
    let page = fs::read_to_string(root.join(page)).unwrap();
    let blocks = page.split("```rust,ignore\n").skip(1);
    let blocks: Vec<_> = blocks
        .map(|block| unindented(block.split("```").next().unwrap()))
        .collect();
    for block in &blocks {
        let is_there = sources.iter().any(|source| source.contains(block));
        assert!(is_there, "not in {files:?}:\n{block}");
    }
    blocks.len()
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
        "OTLP",
        "passwords and tokens",
        "log lines",
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

/// The texts of the log lines at WARN and ERROR, without what is filled in.
#[derive(Default)]
struct LogLines {
    fixed: Vec<String>,
    /// The text is an error's.
    errors: usize,
}

impl<'a> visit::Visit<'a> for LogLines {
    fn visit_macro(&mut self, log: &'a Macro) {
        let name = log.path.segments.last().unwrap().ident.to_string();
        let tokens = log.tokens.clone().into_iter();
        let tokens: Vec<_> = tokens.map(|token| token.to_string()).collect();
        let is_loud = match &*name {
            "warn" | "error" => true,
            "log_session" => ["warn", "error"].contains(&&*tokens[0]),
            _ => false,
        };
        if !is_loud {
            return;
        }
        let texts = tokens.iter().filter(|token| token.starts_with('"'));
        let mut texts = texts.map(|text| syn::parse_str::<LitStr>(text).unwrap().value());
        let text = texts.next_back().expect("a line with a text");
        match text.split(['{', ':']).next().unwrap().trim() {
            "" => self.errors += 1,
            fixed => self.fixed.push(fixed.to_owned()),
        }
    }
}

/// The texts of the crate's errors, up to the advice in them.
fn error_texts() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/error/kind.rs");
    let source = fs::read_to_string(path).unwrap();
    let lines = source.lines().map(str::trim);
    let texts = lines
        .filter(|line| !line.starts_with("#["))
        .filter_map(|line| {
            let text = line.split_once(" = ").map_or(line, |(_, text)| text);
            let text = text.strip_prefix('"')?.split('"').next()?;
            let text = text.split(": ").next()?;
            Some(text.split("; ").next()?.to_owned())
        });
    texts.collect()
}

/// A line that is missing is added to the page's part *By log line*.
#[test]
fn every_warning_and_error_has_its_entry_in_troubleshooting_md() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("src/guide/troubleshooting.md")).unwrap();
    let (_, page) = page.split_once("\n# By log line\n").unwrap();
    let mut lines = LogLines::default();
    for path in rust_files(&root.join("src"), "tests") {
        let file = syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap();
        visit::Visit::visit_file(&mut lines, &file);
    }
    assert!(lines.fixed.len() > 25, "{}", lines.fixed.len());
    assert!(lines.errors > 3, "{}", lines.errors);
    let errors = error_texts();
    assert!(errors.len() > 60, "{}", errors.len());
    let all: Vec<_> = lines.fixed.into_iter().chain(errors).collect();
    let entries: Vec<_> = page.lines().flat_map(entries).collect();
    let begins = |line: &str, entry: &str| line.starts_with(entry);
    let missing: Vec<_> = all
        .iter()
        .filter(|line| !entries.iter().any(|entry| begins(line, entry)))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
    let stale: Vec<_> = entries
        .iter()
        .filter(|entry| !all.iter().any(|line| begins(line, entry)))
        .collect();
    assert!(stale.is_empty(), "{stale:#?}");
}

/// The log lines in a table's row: the code in its first column.
fn entries(row: &str) -> Vec<&str> {
    let cell = row
        .strip_prefix("| ")
        .and_then(|row| row.split(" | ").next());
    let mut rest = cell
        .filter(|cell| cell.starts_with('`'))
        .unwrap_or_default();
    let mut spans = Vec::new();
    // A span that has backticks in it is between more of them.
    while let Some(start) = rest.find('`') {
        rest = &rest[start..];
        let fence = rest.len() - rest.trim_start_matches('`').len();
        let (fence, after) = rest.split_at(fence);
        let (span, after) = after.split_once(fence).expect("an end of the code");
        spans.push(span.trim());
        rest = after;
    }
    spans
}

/// A cell that claims something has the test in it, or the source: *no* claims nothing, and numbers have their report
/// above the table.
#[test]
fn each_claim_of_comparison_md_has_its_evidence() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/comparison.md")).unwrap();
    let is_number = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit());
    let lines: Vec<_> = page.lines().collect();
    let rows = lines.windows(2).filter(|pair| !pair[1].starts_with("|--"));
    let rows = rows.map(|pair| pair[0]).filter(|row| row.starts_with("| "));
    let (mut claims, mut bare) = (0, Vec::new());
    for row in rows {
        let cells = row.trim_matches(['|', ' ']).split(" | ");
        for cell in cells.skip(1).map(str::trim) {
            if cell == "no" || is_number(cell) {
                continue;
            }
            claims += 1;
            let evidence = ["](", "`tests/", "`examples/", "the same test"];
            if !evidence.iter().any(|one| cell.contains(one)) {
                bare.push(format!("{row}: {cell}"));
            }
        }
    }
    assert!(claims > 30, "{claims}");
    assert!(bare.is_empty(), "{bare:#?}");
}

/// The numbers of the faults are those of the report, which is made anew now and then.
#[test]
fn the_numbers_of_comparison_md_are_the_reports() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let report = read("docs/reliability.md");
    let (_, report) = report.split_once("\n## Side by side\n").unwrap();
    let (report, _) = report.split_once("\n## ").unwrap();
    let page = read("docs/comparison.md");
    let (_, page) = page.split_once("\n## Under faults\n").unwrap();
    let (page, _) = page.split_once("\n## ").unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let cells = rows.skip(1).flat_map(|row| row.split('|').skip(2));
    let cells = cells.map(str::trim).filter(|cell| !cell.is_empty());
    let numbers: Vec<_> = cells.filter_map(|cell| cell.split(' ').next()).collect();
    assert!(numbers.len() > 20, "{numbers:?}");
    let words: Vec<_> = report.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    for number in numbers {
        assert!(words.contains(&number), "{number}");
    }
}
