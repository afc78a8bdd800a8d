//! A small parser: the paths that a Rust source file names outside its tests, and the modules
//! that it declares. It knows comments, literals, attributes, `use` trees and inline modules, and
//! treats everything else as a stream of tokens.

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

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Splits a source into names, `::` and single characters. Comments, literals and lifetimes are
/// left out.
fn tokens(text: &str) -> Vec<Token> {
    let (mut rest, mut line, mut found) = (text, 1, Vec::new());
    while let Some(first) = rest.chars().next() {
        let length = match skipped(rest) {
            0 => {
                let length = token_length(rest, first);
                let text = rest[..length].to_owned();
                found.push(Token { text, line });
                length
            }
            length => length,
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

fn token_length(rest: &str, first: char) -> usize {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if rest.starts_with("::") {
        2
    } else if is_word(first) {
        rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())
    } else {
        first.len_utf8()
    }
}

/// Returns the length of the white space, comment, literal or lifetime that `rest` begins with.
fn skipped(rest: &str) -> usize {
    let blank = rest.len() - rest.trim_start().len();
    if blank > 0 {
        return blank;
    }
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if let Some(length) = raw_string(rest) {
        return length;
    }
    match rest.as_bytes()[0] {
        b'"' => quoted(rest, '"'),
        b'\'' => character_or_lifetime(rest),
        _ => 0,
    }
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let after = ["br", "cr", "r"]
        .iter()
        .find_map(|prefix| rest.strip_prefix(prefix))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end)? + end.len();
    Some(rest.len() - body.len() + length)
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

fn character_or_lifetime(rest: &str) -> usize {
    let mut after = rest.chars().skip(1);
    match (after.next(), after.next()) {
        (Some('\\'), _) | (_, Some('\'')) => quoted(rest, '\''),
        _ => 1 + token_length(&rest[1..], '_'),
    }
}

/// Leaves out the items behind `#[cfg(test)]` and the like.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let end = attribute_end(&tokens, at);
        let attribute = &tokens[at..end];
        let has = |name: &str| attribute.iter().any(|token| token.text == name);
        if has("cfg") && has("test") && !has("not") {
            at = item_end(&tokens, end);
        } else {
            let end = end.max(at + 1);
            kept.extend_from_slice(&tokens[at..end]);
            at = end;
        }
    }
    kept
}

/// Returns the end of the attribute at `at`, or `at` if there is none.
fn attribute_end(tokens: &[Token], at: usize) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    if text(at) != "#" || text(at + 1) != "[" {
        return at;
    }
    let mut depth = 0;
    for (end, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "[" => depth += 1,
            "]" if depth == 1 => return end + 1,
            "]" => depth -= 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Returns the end of the item, field or variant at `at`.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    loop {
        let end = attribute_end(tokens, at);
        if end == at {
            break;
        }
        at = end;
    }
    const ITEMS: &[&str] = &[
        "async",
        "const",
        "enum",
        "extern",
        "fn",
        "impl",
        "let",
        "macro_rules",
        "mod",
        "pub",
        "static",
        "struct",
        "trait",
        "type",
        "unsafe",
        "use",
    ];
    let is_item = tokens
        .get(at)
        .is_some_and(|token| ITEMS.contains(&token.text.as_str()));
    let mut depth = 0;
    for (end, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" if depth == 1 => return end + 1,
            "}" | ")" | "]" if depth == 0 => return end,
            "}" | ")" | "]" => depth -= 1,
            ";" if depth == 0 => return end + 1,
            "," if depth == 0 && !is_item => return end + 1,
            _ => {}
        }
    }
    tokens.len()
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
