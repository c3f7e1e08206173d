//! The folders of `src` import in one direction, and at most three files of a folder import each other in a circle.
//! Read from `use` declarations and `crate::`/`super::` paths. A `pub use` is no import, but leads to what it names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{ItemMod, ItemUse, Macro, UseTree, Visibility, visit};

/// Each folder, or file beside `lib.rs`, imports only from those before it.
const ORDER: &str = "sql error telemetry position connection pool body session response replicas policy transaction body_layer \
                     future service layer retry extract config target opentelemetry metrics testing";

/// How many files may import each other in a circle.
const CIRCLE: usize = 3;

/// Tests, which may import from anywhere.
const TESTS: [&str; 1] = ["tests"];

#[derive(Default)]
struct Source {
    /// The file that is being read.
    file: String,
    /// The imports of each file.
    imports: BTreeMap<String, BTreeSet<String>>,
    /// The item that each re-exported name leads to.
    exports: BTreeMap<String, String>,
}

impl Source {
    fn read(&mut self, folder: &Path, module: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            self.file = format!("{module}::{name}");
            if name == "mod" || name == "lib" {
                self.file = module.to_owned();
            }
            if TESTS.contains(&name) {
                continue;
            } else if path.is_dir() {
                self.read(&path, &self.file.clone());
            } else if let Ok(file) = syn::parse_file(&fs::read_to_string(&path).unwrap()) {
                self.imports.entry(self.file.clone()).or_default();
                visit::Visit::visit_file(self, &file);
            }
        }
    }

    /// The path from the root. Names of other crates seem to be names in this file.
    fn absolute(&self, mut path: &str) -> String {
        let mut from = &*self.file;
        if path.starts_with("crate::") {
            return path.to_owned();
        }
        while let Some(rest) = path.strip_prefix("super::") {
            (from, path) = (from.rsplit_once("::").unwrap().0, rest);
        }
        format!("{from}::{}", path.trim_start_matches("self::"))
    }

    fn import(&mut self, path: &str) {
        let path = self.absolute(path);
        self.imports.get_mut(&self.file).unwrap().insert(path);
    }

    fn import_names(&mut self, tree: &UseTree, path: &str, public: bool) {
        let (name, shown) = match tree {
            UseTree::Name(name) => (&name.ident, &name.ident),
            UseTree::Rename(name) => (&name.ident, &name.rename),
            UseTree::Glob(_) => return self.import(&format!("{path}*")),
            UseTree::Path(next) => {
                let path = format!("{path}{}::", next.ident);
                return self.import_names(&next.tree, &path, public);
            }
            UseTree::Group(group) => {
                let trees = group.items.iter();
                return trees.for_each(|tree| self.import_names(tree, path, public));
            }
        };
        let (path, shown) = (format!("{path}{name}"), format!("{}::{shown}", self.file));
        if !public {
            self.import(&path);
        } else if self.absolute(&path) != shown {
            self.exports.insert(shown, self.absolute(&path));
        }
    }

    /// The file that defines what this path leads to.
    fn defining(&self, path: &str) -> String {
        let mut at = path;
        while !self.imports.contains_key(at) {
            if let Some(next) = self.exports.get(at) {
                return self.defining(&format!("{next}{}", &path[at.len()..]));
            }
            at = at.rsplit_once("::").unwrap().0;
        }
        at.to_owned()
    }
}

impl<'a> visit::Visit<'a> for Source {
    fn visit_item_use(&mut self, item: &'a ItemUse) {
        self.import_names(&item.tree, "", !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names: Vec<_> = path
            .segments
            .iter()
            .map(|one| one.ident.to_string())
            .collect();
        if names.len() > 1 && ["crate", "super"].contains(&&*names[0]) {
            self.import(&names.join("::"));
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'a Macro) {
        let text = item.tokens.to_string().replace(" :: ", "::");
        let paths = text.split(|end: char| !end.is_alphanumeric() && !"_:".contains(end));
        paths
            .filter(|path| path.starts_with("crate::") || path.starts_with("super::"))
            .for_each(|path| self.import(path));
    }

    /// Inline modules are tests.
    fn visit_item_mod(&mut self, _: &'a ItemMod) {}

    fn visit_visibility(&mut self, _: &'a Visibility) {}
}

/// Returns the files from which each file imports.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let mut source = Source::default();
    source.read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "crate");
    let arrow = |(file, paths): (&String, &BTreeSet<String>)| {
        let targets = paths.iter().map(|path| source.defining(path));
        (
            file.clone(),
            targets.filter(|target| target != file).collect(),
        )
    };
    source.imports.iter().map(arrow).collect()
}

fn folder(file: &str) -> &str {
    file.split("::").nth(1).unwrap_or("lib")
}

#[test]
fn folders_import_in_one_direction_only() {
    let place = |file: &str| {
        ORDER
            .split(' ')
            .position(|name| name == folder(file))
            .ok_or(file.to_owned())
    };
    for (file, targets) in arrows().iter().filter(|(file, _)| *file != "crate") {
        let above: Vec<_> = targets
            .iter()
            .filter(|target| place(target).unwrap() > place(file).unwrap())
            .collect();
        assert!(
            above.is_empty(),
            "{file} imports from above itself: {above:?}"
        );
    }
}

#[test]
fn at_most_three_files_import_each_other_in_a_circle() {
    let mut reached = arrows();
    for through in arrows().keys() {
        let further = reached[through].clone();
        let before = reached
            .values_mut()
            .filter(|targets| targets.contains(through));
        before.for_each(|targets| targets.extend(further.iter().cloned()));
    }
    for (file, targets) in &reached {
        let circle: Vec<_> = targets
            .iter()
            .filter(|other| reached[*other].contains(file))
            .collect();
        assert!(
            circle.len() <= CIRCLE,
            "{} files import each other: {circle:?}",
            circle.len()
        );
    }
}
