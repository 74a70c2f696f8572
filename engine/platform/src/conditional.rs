//! Conditional requests (RFC 9110, section 13) to resources whose entity tags are version numbers.

use std::fmt;

use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::problem::{INVALID_IF_MATCH, Problem};

/// The versions that a conditional header lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    /// `*`: any version that exists.
    Any,
    /// Any version of this list.
    Listed(Vec<i64>),
}

impl Versions {
    /// Whether the condition includes this version.
    pub fn include(&self, version: i64) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(versions) => versions.contains(&version),
        }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Listed(versions) => f.write_str(&versions.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// Returns the entity tag of a version: the number in double quotes.
pub fn etag(version: i64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("digits and quotes are ASCII")
}

/// Returns the versions for which the request may be executed, from `If-Match`; `None` without the header.
///
/// Weak tags are accepted like strong tags, although RFC 9110 requires the strong comparison for `If-Match`. A proxy
/// that compresses a response (nginx's gzip) makes its tag weak, so the client may know only `W/"3"`. This is safe: the
/// number identifies one state of the resource, regardless of the encoding of the response.
///
/// # Errors
/// 400 (`invalid-if-match`) for a tag that the server never sends, because its condition cannot be evaluated.
pub fn if_match(headers: &HeaderMap) -> Result<Option<Versions>, Problem> {
    let Some(tags) = tags(headers, &IF_MATCH) else { return Ok(None) };
    let versions = tags.ok().and_then(|tags| match tags {
        Tags::Any => Some(Versions::Any),
        Tags::Listed(tags) => tags.into_iter().map(version).collect::<Option<_>>().map(Versions::Listed),
    });
    versions.map(Some).ok_or_else(|| {
        Problem::new(INVALID_IF_MATCH).detail(
            "Send If-Match with versions in double quotes, as in ETag: If-Match: \"3\" or If-Match: \"3\", \"4\". \
             Send If-Match: * for any version.",
        )
    })
}

/// Returns the versions that the client already has, from `If-None-Match`; `None` if the header is missing or
/// malformed. Without a version the full response is sent, which is always correct.
pub fn if_none_match(headers: &HeaderMap) -> Option<Versions> {
    match tags(headers, &IF_NONE_MATCH)?.ok()? {
        Tags::Any => Some(Versions::Any),
        // Tags in another format come from another server. They match no version.
        Tags::Listed(tags) => Some(Versions::Listed(tags.into_iter().filter_map(version).collect())),
    }
}

enum Tags<'a> {
    Any,
    /// The texts between the quotes.
    Listed(Vec<&'a str>),
}

/// Returns the entity tags in all lines of a header; `None` if the header is missing, `Err` if it is malformed.
fn tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Result<Tags<'a>, ()>> {
    headers.contains_key(name).then(|| {
        let mut lines = Vec::new();
        for line in headers.get_all(name) {
            lines.push(line.to_str().map_err(drop)?.trim_matches([' ', '\t']));
        }
        if lines == ["*"] {
            return Ok(Tags::Any);
        }
        let mut tags = Vec::new();
        for mut rest in lines {
            loop {
                // RFC 9110 allows empty list elements.
                rest = rest.trim_start_matches([' ', '\t', ',']);
                if rest.is_empty() {
                    break;
                }
                let (tag, after) =
                    rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"').ok_or(())?.split_once('"').ok_or(())?;
                if tag.contains([' ', '\t']) {
                    return Err(());
                }
                rest = after.trim_start_matches([' ', '\t']);
                if !(rest.is_empty() || rest.starts_with(',')) {
                    return Err(());
                }
                tags.push(tag);
            }
        }
        if tags.is_empty() { Err(()) } else { Ok(Tags::Listed(tags)) }
    })
}

/// Parses a version. Accepts only the form that [`etag`] writes: `+1` and `01` are different tags.
fn version(tag: &str) -> Option<i64> {
    tag.parse().ok().filter(|version: &i64| *version >= 0 && version.to_string() == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::from_str(line).unwrap())).collect()
    }

    fn listed(versions: &[i64]) -> Option<Versions> {
        Some(Versions::Listed(versions.to_vec()))
    }

    #[test]
    fn if_match_accepts_versions_in_every_form_of_the_rfc() {
        let cases: [(&[&str], Option<Versions>); 10] = [
            (&[], None),
            (&["\"3\""], listed(&[3])),
            (&["*"], Some(Versions::Any)),
            (&["\"3\", \"4\",\"5\""], listed(&[3, 4, 5])),
            (&["\"3\"", "\"4\""], listed(&[3, 4])),
            (&[" , \"3\" ,, "], listed(&[3])),
            (&["W/\"3\""], listed(&[3])),
            (&["\"3\"\t,\tW/\"4\""], listed(&[3, 4])),
            (&["\"0\""], listed(&[0])),
            (&["\"9223372036854775807\""], listed(&[i64::MAX])),
        ];
        for (lines, expected) in cases {
            assert_eq!(if_match(&headers(IF_MATCH, lines)).unwrap(), expected, "{lines:?}");
        }
    }

    #[test]
    fn if_match_refuses_invalid_versions() {
        let lines = [
            "",
            "3",
            "\"\"",
            "\"+1\"",
            "\"01\"",
            "\" 1\"",
            "\"1 \"",
            "\"-1\"",
            "\"-0\"",
            "\"1.0\"",
            "\"abc\"",
            "\"3",
            "3\"",
            "\"3\" \"4\"",
            "\"3\"x",
            "w/\"3\"",
            "W/3",
            "W/ \"3\"",
            "*, \"3\"",
            "\"3\", *",
            "**",
            "\"3\", abc",
            ",",
            "\"9223372036854775808\"",
            "\"\u{e9}\"",
        ];
        for line in lines {
            let problem = if_match(&headers(IF_MATCH, &[line])).unwrap_err();
            assert_eq!((problem.status().as_u16(), problem.slug()), (400, "invalid-if-match"), "{line}");
        }
        assert!(if_match(&headers(IF_MATCH, &["*", "\"3\""])).is_err());
    }

    #[test]
    fn if_none_match_compares_weakly_and_ignores_invalid_tags() {
        let cases: [(&[&str], Option<Versions>); 9] = [
            (&[], None),
            (&["\"3\""], listed(&[3])),
            (&["W/\"3\""], listed(&[3])),
            (&["W/\"2\", \"3\"", "\"4\""], listed(&[2, 3, 4])),
            (&["*"], Some(Versions::Any)),
            (&["\"a,b\", \"3\""], listed(&[3])),
            (&["\"+3\", \"03\""], listed(&[])),
            (&["3"], None),
            (&["\"3\"x"], None),
        ];
        for (lines, expected) in cases {
            assert_eq!(if_none_match(&headers(IF_NONE_MATCH, lines)), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_list_of_versions_includes_only_its_versions() {
        assert!(Versions::Any.include(7));
        assert!(Versions::Listed(vec![3, 7]).include(7) && !Versions::Listed(vec![3]).include(7));
        assert_eq!(Versions::Listed(vec![3, 7]).to_string(), "3, 7");
        assert_eq!(etag(7), "\"7\"");
    }
}
