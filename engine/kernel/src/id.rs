//! The rule for ids: of aggregates, of the values that contexts name by an id, and of the subjects of tokens.
//!
//! An id is compared byte by byte. It is never normalised and its case is never changed, because two subjects of an
//! identity provider must not become one. A text that is not in NFC is refused for the same reason: it would look like
//! another id.

use unicode_normalization::is_nfc;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Largest number of characters of an aggregate's id and of a token's subject.
pub const CHARS_MAX: usize = 255;

/// The rule in words, for messages, without the number of characters. Keep it equal to [`is_valid`].
pub const RULE: &str =
    "in Unicode NFC, without control or format characters, without spaces at the ends, and other than \".\" and \"..\"";

/// Whether a text is an id of at most `chars_max` characters: it is not empty, it is in Unicode NFC, it has no control
/// characters, format characters or line separators and no white space at its ends, and it is not `.` or `..`, which
/// URLs cannot contain as a path segment.
pub fn is_valid(text: &str, chars_max: usize) -> bool {
    // A character has at most four bytes. The length in bytes is checked first, so that a very long text costs nothing.
    if text.is_empty() || text.len() > 4 * chars_max || text == "." || text == ".." {
        return false;
    }
    if text.is_ascii() {
        return text.len() <= chars_max
            && !text.starts_with(' ')
            && !text.ends_with(' ')
            && !text.bytes().any(|byte| byte.is_ascii_control());
    }
    text.chars().count() <= chars_max && text.trim() == text && !text.chars().any(is_invisible) && is_nfc(text)
}

fn is_invisible(character: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator, Surrogate};
    matches!(character.general_category(), Control | Format | Surrogate | LineSeparator | ParagraphSeparator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_identity_providers_and_catalogues_are_valid() {
        for id in [
            "o-1",
            "auth0|65f3a0c2e1b7d9",
            "ada@example.com",
            "https://idp.example/users/7",
            "arn:aws:iam::1:user/ada",
            "MUG 01/\u{e9}",
            "a\\b\"c%2F?#&+,;=~",
            "...",
            "\u{65e5}\u{672c}\u{8a9e} \u{1f375}",
            &"\u{e9}".repeat(128),
        ] {
            assert!(is_valid(id, 128), "{id:?}");
        }
    }

    #[test]
    fn texts_that_look_like_another_id_are_refused() {
        for text in [
            "",
            ".",
            "..",
            " a",
            "a ",
            "\u{a0}a",
            "a\u{2003}",
            "a\nb",
            "a\0b",
            "a\u{85}b",
            "e\u{301}",
            "zero\u{200b}width",
            "join\u{200d}er",
            "right\u{202e}left",
            "soft\u{ad}hyphen",
            "tag\u{e0041}",
            "line\u{2028}separator",
            "\u{feff}bom",
            "\u{212b}ngstrom sign is not in NFC",
            &"\u{e9}".repeat(129),
            &"x".repeat(129),
        ] {
            assert!(!is_valid(text, 128), "{text:?}");
        }
        assert!(is_valid(&"x".repeat(129), CHARS_MAX) && !is_valid(&"x".repeat(256), CHARS_MAX));
    }

    #[test]
    fn case_is_kept_apart() {
        assert!(is_valid("Ada@Example.com", 128) && is_valid("ada@example.com", 128));
    }
}
