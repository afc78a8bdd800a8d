//! The modules of one crate, the paths between them, and the cycles of these.

use crate::source::{self, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// The path of a module, from `crate` on.
type Module = Vec<String>;

/// The modules of a crate that are compiled outside tests.
pub struct Crate {
    root: PathBuf,
    modules: BTreeMap<Module, (PathBuf, Source)>,
}

impl Crate {
    /// Reads a crate from its root file.
    pub fn read(root: &Path) -> Self {
        let mut found = Self {
            root: root.parent().unwrap().to_owned(),
            modules: BTreeMap::new(),
        };
        found.add(root.to_owned(), vec!["crate".to_owned()]);
        found
    }

    fn add(&mut self, file: PathBuf, module: Module) {
        let text =
            read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let source = source::read(&text, &module);
        for child in &source.children {
            let path = module.iter().chain([child]).cloned().collect();
            self.add(file_of(&file, child), path);
        }
        self.modules.insert(module, (file, source));
    }

    pub fn has(&self, module: &str) -> bool {
        let module = ["crate", module].map(str::to_owned);
        self.modules.contains_key(&module[..])
    }

    /// Every path that a module names, with the module's file.
    pub fn uses(&self) -> impl Iterator<Item = (String, &Module, &source::Path)> {
        self.modules
            .iter()
            .flat_map(move |(module, (file, source))| {
                let paths = source.paths.iter();
                paths.map(move |path| (self.name(file), module, path))
            })
    }

    fn name(&self, file: &Path) -> String {
        let inside = file.strip_prefix(&self.root).unwrap_or(file);
        inside.display().to_string()
    }

    /// The module that a path leads into. An item that a module exports again belongs to it.
    fn target(&self, path: &[String]) -> Option<&Module> {
        let prefixes = (1..=path.len()).rev().map(|end| &path[..end]);
        let mut found = prefixes.filter_map(|prefix| self.modules.get_key_value(prefix));
        found.next().map(|(module, _)| module)
    }

    /// Edges between modules of which neither contains the other, with one line of each.
    fn edges(&self) -> BTreeMap<&Module, BTreeMap<&Module, usize>> {
        let mut edges = BTreeMap::<_, BTreeMap<_, _>>::new();
        for (user, (_, source)) in &self.modules {
            for path in &source.paths {
                let Some(used) = self.target(&path.segments) else {
                    continue;
                };
                if !user.starts_with(used) && !used.starts_with(user) {
                    let targets = edges.entry(user).or_default();
                    targets.entry(used).or_insert(path.line);
                }
            }
        }
        edges
    }

    /// The groups of files that import each other in a cycle: for each group, the imports within.
    pub fn cycles(&self) -> Vec<Vec<String>> {
        let edges = self.edges();
        let reach: BTreeMap<_, _> = edges
            .keys()
            .map(|&from| (from, reachable(&edges, from)))
            .collect();
        let reaches =
            |from: &Module, to: &Module| reach.get(from).is_some_and(|set| set.contains(to));
        let groups: BTreeSet<Vec<&Module>> = edges
            .keys()
            .map(|&one| {
                let group = edges
                    .keys()
                    .filter(|&&other| reaches(one, other) && reaches(other, one));
                group.copied().collect()
            })
            .collect();
        let imports = |group: Vec<&Module>| {
            let within = group
                .iter()
                .flat_map(|user| edges[user].iter().map(move |edge| (user, edge)));
            within
                .filter(|(_, (used, _))| group.contains(used))
                .map(|(user, (used, line))| {
                    let [user, used] =
                        [user, used].map(|module| self.name(&self.modules[*module].0));
                    format!("{user}:{line} uses {used}")
                })
                .collect()
        };
        groups
            .into_iter()
            .filter(|group| !group.is_empty())
            .map(imports)
            .collect()
    }
}

fn reachable<'a>(
    edges: &BTreeMap<&'a Module, BTreeMap<&'a Module, usize>>,
    from: &'a Module,
) -> BTreeSet<&'a Module> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for &next in edges.get(module).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(next) {
                open.push(next);
            }
        }
    }
    reached
}

/// Returns the file of a child module.
fn file_of(parent: &Path, child: &str) -> PathBuf {
    let folder = parent.parent().unwrap_or(Path::new(""));
    let stem = parent.file_stem().unwrap_or_default();
    let is_folder = stem == "mod" || stem == "lib";
    let folder = if is_folder {
        folder.to_owned()
    } else {
        folder.join(stem)
    };
    let file = folder.join(format!("{child}.rs"));
    if file.is_file() {
        file
    } else {
        folder.join(child).join("mod.rs")
    }
}
