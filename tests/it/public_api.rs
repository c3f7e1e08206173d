//! The public interface, kept in `docs/public-api.txt`, so that a review sees what a change does to it.
//!
//! It is read from the source, because rustdoc's JSON needs a nightly compiler. Every `pub` item counts: the lint
//! `unreachable_pub` refuses those that cannot be reached. What macros make is shown as their invocation.

use std::{collections::BTreeSet, env, fs, iter, mem, path::Path};

use syn::{
    Attribute, Block, Fields, Ident, ImplItem, Item, ItemImpl, ItemStruct, TraitItem, Type,
    Visibility, parse_quote,
    visit_mut::{VisitMut, visit_item_struct_mut},
};

const WRITE: &str = "WRITE_PUBLIC_API";

#[test]
fn the_public_interface_is_the_one_in_docs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut items = Vec::new();
    read(&root.join("src"), &mut items);
    let (public, private): (BTreeSet<_>, BTreeSet<_>) = names(&items);
    let lines = items
        .into_iter()
        .flat_map(|it| lines(it, &public, &private));
    let now: BTreeSet<_> = lines.collect();

    let file = root.join("docs/public-api.txt");
    if env::var_os(WRITE).is_some() {
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&file, text).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    let kept: BTreeSet<_> = kept.lines().map(str::to_owned).collect();
    let removed = kept.difference(&now).map(|line| format!("- {line}\n"));
    let added = now.difference(&kept).map(|line| format!("+ {line}\n"));
    let changes: String = removed.chain(added).collect();
    assert!(
        changes.is_empty(),
        "the public interface is not the one in docs/public-api.txt. If that is intended, write the file anew with \
         `{WRITE}=1 cargo test --test it the_public_interface`:\n{changes}",
    );
}

/// A reader who knows the name from elsewhere should find it to mean the same here.
#[test]
fn every_public_name_has_a_precedent_in_contributing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let api = fs::read_to_string(root.join("docs/public-api.txt")).unwrap();
    let api = syn::parse_file(&api).unwrap();
    let public: BTreeSet<_> = api.items.into_iter().flat_map(own_names).collect();

    let contributing = fs::read_to_string(root.join("CONTRIBUTING.md")).unwrap();
    let (_, table) = contributing
        .split_once("\n## Public names and their precedents\n")
        .unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let cells = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let code = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let words = code.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'));
    let explained: BTreeSet<_> = words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();

    let missing: Vec<_> = public.difference(&explained).collect();
    assert!(
        missing.is_empty(),
        "these names need a precedent, or a reason, in the table of CONTRIBUTING.md: {missing:?}"
    );
    let stale: Vec<_> = explained.difference(&public).collect();
    assert!(
        stale.is_empty(),
        "the table of CONTRIBUTING.md has names that are not public: {stale:?}"
    );
}

/// Returns the names that this crate chose itself, which those of other crates' traits are not.
fn own_names(item: Item) -> Vec<String> {
    match item {
        Item::Struct(it) => {
            let fields = it.fields.into_iter().filter_map(|field| field.ident);
            iter::once(it.ident)
                .chain(fields)
                .map(|name| name.to_string())
                .collect()
        }
        Item::Enum(it) => {
            let variants = it.variants.into_iter().map(|variant| variant.ident);
            iter::once(it.ident)
                .chain(variants)
                .map(|name| name.to_string())
                .collect()
        }
        Item::Trait(it) => {
            let items = it.items.into_iter().filter_map(|item| match item {
                TraitItem::Fn(it) => Some(it.sig.ident),
                TraitItem::Const(it) => Some(it.ident),
                _ => None,
            });
            iter::once(it.ident)
                .chain(items)
                .map(|name| name.to_string())
                .collect()
        }
        Item::Fn(it) => vec![it.sig.ident.to_string()],
        Item::Impl(it) if it.trait_.is_none() => {
            it.items.into_iter().filter_map(name_in_impl).collect()
        }
        _ => Vec::new(),
    }
}

fn name_in_impl(item: ImplItem) -> Option<String> {
    match item {
        ImplItem::Fn(it) => Some(it.sig.ident.to_string()),
        ImplItem::Const(it) => Some(it.ident.to_string()),
        // A macro's first argument is the method's name.
        ImplItem::Macro(it) => Some(it.mac.tokens.into_iter().next()?.to_string()),
        _ => None,
    }
}

/// Reads all items of the library's files.
fn read(directory: &Path, items: &mut Vec<Item>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap();
        if name == "tests" {
            continue;
        } else if path.is_dir() {
            read(&path, items);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            items.extend(syn::parse_file(&text).unwrap().items);
        }
    }
}

/// Returns the names of all types and traits that are public, and of all that are not.
fn names(items: &[Item]) -> (BTreeSet<String>, BTreeSet<String>) {
    let names = items.iter().filter_map(|item| match item {
        Item::Struct(it) => Some((it.ident.to_string(), is_public(&it.vis))),
        Item::Enum(it) => Some((it.ident.to_string(), is_public(&it.vis))),
        Item::Trait(it) => Some((trait_name(&it.ident), is_public(&it.vis))),
        _ => None,
    });
    let (public, private): (Vec<_>, Vec<_>) = names.partition(|(_, is_public)| *is_public);
    let names = |of: Vec<(String, bool)>| of.into_iter().map(|(name, _)| name).collect();
    (names(public), names(private))
}

/// Traits and types of one name are different: `Error`.
fn trait_name(name: &Ident) -> String {
    format!("trait {name}")
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Returns a line for each part of the item that is public.
fn lines(item: Item, public: &BTreeSet<String>, private: &BTreeSet<String>) -> Vec<String> {
    let is_shown = match &item {
        Item::Impl(it) => return lines_of_impl(it, public, private),
        Item::Struct(it) => is_public(&it.vis),
        Item::Enum(it) => is_public(&it.vis),
        Item::Trait(it) => is_public(&it.vis),
        Item::Fn(it) => is_public(&it.vis),
        Item::Type(it) => is_public(&it.vis),
        Item::Const(it) => is_public(&it.vis),
        Item::Macro(it) => {
            let tokens = it.mac.tokens.to_string();
            public.iter().any(|name| tokens.starts_with(name))
        }
        _ => false,
    };
    is_shown.then(|| line(item)).into_iter().collect()
}

fn lines_of_impl(
    it: &ItemImpl,
    public: &BTreeSet<String>,
    private: &BTreeSet<String>,
) -> Vec<String> {
    let last = |path: &syn::Path| path.segments.last().unwrap().ident.clone();
    let is_of_public =
        matches!(&*it.self_ty, Type::Path(it) if public.contains(&last(&it.path).to_string()));
    let with = |items| {
        line(Item::Impl(ItemImpl {
            items,
            ..it.clone()
        }))
    };
    let items = it.items.iter().cloned();
    match it
        .trait_
        .as_ref()
        .map(|(_, path, _)| trait_name(&last(path)))
    {
        Some(name) if private.contains(&name) => Vec::new(),
        Some(name) if is_of_public || public.contains(&name) => {
            vec![with(
                items.filter(|it| matches!(it, ImplItem::Type(_))).collect(),
            )]
        }
        None if is_of_public => {
            let shown = items.filter(|item| match item {
                ImplItem::Fn(it) => is_public(&it.vis),
                ImplItem::Const(it) => is_public(&it.vis),
                ImplItem::Macro(_) => true,
                _ => false,
            });
            shown.map(|item| with(vec![item])).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns what users see of the item.
fn line(mut item: Item) -> String {
    Outline.visit_item_mut(&mut item);
    let file: syn::File = parse_quote!(#item);
    let text = prettyplease::unparse(&file);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Removes documentation, bodies and private fields.
struct Outline;

impl VisitMut for Outline {
    fn visit_attributes_mut(&mut self, attributes: &mut Vec<Attribute>) {
        let kept = ["cfg", "derive", "must_use", "non_exhaustive"];
        attributes.retain(|it| kept.iter().any(|name| it.path().is_ident(name)));
    }

    fn visit_block_mut(&mut self, block: &mut Block) {
        block.stmts.clear();
    }

    fn visit_item_struct_mut(&mut self, item: &mut ItemStruct) {
        if let Fields::Named(fields) = &mut item.fields {
            let all = mem::take(&mut fields.named).into_iter();
            fields.named = all.filter(|it| is_public(&it.vis)).collect();
        }
        // Private fields may change their form.
        if item.fields.iter().all(|it| !is_public(&it.vis)) {
            item.fields = Fields::Unit;
        }
        visit_item_struct_mut(self, item);
    }
}
