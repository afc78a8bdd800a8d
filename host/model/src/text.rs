//! Bounds of the texts that people and programs send. Every text that reaches the registry has
//! one, because a text without a bound takes memory on every host, and because PostgreSQL cannot
//! hold every character.

/// A kind of text: its largest size, and if it may have several lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextKind {
    pub bytes_max: usize,
    has_lines: bool,
}

/// The name of a thing inside a definition, such as a variation, a namespace or a seed.
pub const KEY: TextKind = TextKind {
    bytes_max: 100,
    has_lines: false,
};
/// The reason for a change, for the audit log.
pub const REASON: TextKind = TextKind {
    bytes_max: 1_024,
    has_lines: true,
};
/// The description of a policy or an experiment.
pub const DESCRIPTION: TextKind = TextKind {
    bytes_max: 4_096,
    has_lines: true,
};

impl TextKind {
    /// Checks a text. It may be empty.
    ///
    /// # Errors
    /// An explanation for the author of the text, which does not repeat the text.
    pub fn check(self, text: &str) -> Result<(), String> {
        if text.len() > self.bytes_max {
            let (bytes, bytes_max) = (text.len(), self.bytes_max);
            return Err(format!(
                "has {bytes} bytes; use at most {bytes_max} (UTF-8)"
            ));
        }
        let is_allowed = |c: char| !c.is_control() || (self.has_lines && matches!(c, '\n' | '\t'));
        match text.chars().find(|c| !is_allowed(*c)) {
            None => Ok(()),
            Some(found) => Err(format!(
                "contains the control character U+{:04X}; remove it",
                u32::from(found)
            )),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_a_bound_in_bytes_and_no_control_characters() {
        assert_eq!(KEY.check(""), Ok(()));
        assert_eq!(KEY.check(&"é".repeat(50)), Ok(()));
        assert!(KEY.check(&"é".repeat(51)).is_err());
        assert_eq!(REASON.check("two\n\tlines 🙂"), Ok(()));
        for text in ["two\nlines", "a\u{0}b", "\u{1b}[31m", "\u{85}"] {
            let refused = KEY.check(text).unwrap_err();
            assert!(refused.contains("U+"), "{refused}");
        }
        for text in ["a\u{0}b", "\r", "\u{7f}"] {
            assert!(DESCRIPTION.check(text).is_err(), "{text:?}");
        }
    }
}
