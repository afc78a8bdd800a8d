//! A small parser: the paths that a Rust source file names outside its tests, and the modules
//! that it declares. It knows `use` trees and inline modules, and treats everything else as a
//! stream of tokens.

use crate::tokens::{Token, is_name, tokens, without_tests};
use std::collections::BTreeMap;

/// A path with at least two segments, and the line that it is in. A path within the crate is
/// absolute and begins with `crate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub segments: Vec<String>,
    pub line: usize,
}

#[derive(Debug, Default)]
pub struct Source {
    pub paths: Vec<Path>,
    /// Modules that are in files of their own, tests left out.
    pub children: Vec<String>,
}

/// Reads the source of a module, whose own path begins with `crate`.
pub fn read(text: &str, module: &[String]) -> Source {
    let mut reader = Reader {
        tokens: without_tests(tokens(text)),
        at: 0,
        module: module.to_vec(),
        inline: Vec::new(),
        depth: 0,
        imported: BTreeMap::new(),
        source: Source::default(),
    };
    reader.run();
    let Reader {
        mut source,
        imported,
        ..
    } = reader;
    for path in &mut source.paths {
        if let Some(start) = imported.get(&path.segments[0]) {
            path.segments.splice(..1, start.iter().cloned());
        }
    }
    source
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    module: Vec<String>,
    /// Names of the inline modules around this place, with the depth of their braces.
    inline: Vec<(String, usize)>,
    depth: usize,
    /// Names that `use` lines bring into this file, with their absolute paths.
    imported: BTreeMap<String, Vec<String>>,
    source: Source,
}

impl Reader {
    fn text(&self, ahead: usize) -> &str {
        let token = self.tokens.get(self.at + ahead);
        token.map_or("", |token| &token.text)
    }

    fn run(&mut self) {
        while self.at < self.tokens.len() {
            match self.text(0) {
                // `use<'a>` in a type lists captured lifetimes.
                "use" if self.text(1) != "<" => {
                    self.at += 1;
                    self.use_tree(&[]);
                }
                "mod" if is_name(self.text(1)) => self.module_declaration(),
                "{" => (self.depth, self.at) = (self.depth + 1, self.at + 1),
                "}" => self.close(),
                name if is_name(name) && self.text(1) == "::" => self.inline_path(),
                _ => self.at += 1,
            }
        }
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        let depth = self.depth;
        self.inline.pop_if(|(_, opened)| *opened == depth);
        self.at += 1;
    }

    fn module_declaration(&mut self) {
        let name = self.text(1).to_owned();
        match self.text(2) {
            ";" => self.source.children.push(name),
            "{" => self.inline.push((name, self.depth)),
            _ => {}
        }
        self.at += 2;
    }

    fn inline_path(&mut self) {
        let line = self.tokens[self.at].line;
        let mut segments = vec![self.text(0).to_owned()];
        self.at += 1;
        while self.text(0) == "::" && is_name(self.text(1)) {
            segments.push(self.text(1).to_owned());
            self.at += 2;
        }
        if segments.len() > 1 {
            self.source.paths.push(Path {
                segments: self.absolute(segments),
                line,
            });
        }
    }

    /// Reads one branch of a `use` tree behind `prefix`.
    fn use_tree(&mut self, prefix: &[String]) {
        let line = self.tokens.get(self.at).map_or(0, |token| token.line);
        let mut segments = prefix.to_vec();
        loop {
            match self.text(0) {
                "::" => self.at += 1,
                "{" => return self.use_group(&segments),
                "as" => {
                    let name = self.text(1).to_owned();
                    self.at += 2;
                    return self.import(segments, Some(name), line);
                }
                name if is_name(name) || name == "*" => {
                    segments.push(name.to_owned());
                    self.at += 1;
                }
                _ => return self.import(segments, None, line),
            }
        }
    }

    fn use_group(&mut self, prefix: &[String]) {
        self.at += 1;
        while !matches!(self.text(0), "}" | "") {
            self.use_tree(prefix);
            if self.text(0) == "," {
                self.at += 1;
            }
        }
        self.at += 1;
    }

    fn import(&mut self, mut segments: Vec<String>, name: Option<String>, line: usize) {
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
            segments.pop();
        }
        let segments = self.absolute(segments);
        let name = name.or_else(|| segments.last().cloned());
        if let Some(name) = name.filter(|_| segments.len() > 1) {
            self.imported.insert(name, segments.clone());
        }
        self.source.paths.push(Path { segments, line });
    }

    /// Resolves `self` and `super` at the beginning of a path.
    fn absolute(&self, mut segments: Vec<String>) -> Vec<String> {
        let mut start: Option<Vec<String>> = None;
        let here = || {
            let inline = self.inline.iter().map(|(name, _)| name.clone());
            self.module.iter().cloned().chain(inline).collect()
        };
        while let Some(first) = segments.first().map(String::as_str) {
            match first {
                "self" => drop(start.get_or_insert_with(here)),
                "super" => drop(start.get_or_insert_with(here).pop()),
                _ => break,
            }
            segments.remove(0);
        }
        let mut absolute = start.unwrap_or_default();
        absolute.extend(segments);
        absolute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r##"
        //! use crate::in_a_comment::X;
        use super::{sibling::{self, Thing as Other}, deep::*};
        use axum::Router;
        mod child;
        #[derive(clap::ValueEnum)]
        struct S { a: crate::model::A, text: &'static str, c: char }
        fn f<'a>(x: &'a str) -> char {
            let _ = "crate::in_a_string::X"; let _ = r#"crate::"raw"::X"#; /* crate::a /* b */ ::c */
            sibling::make(x); Router::new(); 'x'
        }
        fn h() -> impl Sized + use<> { crate::after_use::W }
        mod inline { use super::super::above::Y; fn g() { self::h::<u8>() } }
        #[cfg(test)]
        #[expect(unused)]
        mod tests { use crate::http::T; }
        #[cfg(test)]
        mod more_tests;
        #[cfg(not(test))]
        pub use crate::last::Z;
    "##;

    #[test]
    fn the_paths_of_a_sample_are_found_and_those_in_comments_literals_and_tests_are_not() {
        let module = ["crate", "a", "b"].map(str::to_owned);
        let source = read(SAMPLE, &module);
        let found: Vec<String> = source.paths.iter().map(|p| p.segments.join("::")).collect();
        assert_eq!(
            found,
            [
                "crate::a::sibling",
                "crate::a::sibling::Thing",
                "crate::a::deep::*",
                "axum::Router",
                "clap::ValueEnum",
                "crate::model::A",
                "crate::a::sibling::make",
                "axum::Router::new",
                "crate::after_use::W",
                "crate::a::above::Y",
                "crate::a::b::inline::h",
                "crate::last::Z",
            ]
        );
        assert_eq!(source.paths[0].line, 3);
        assert_eq!(source.children, ["child"]);
    }
}
