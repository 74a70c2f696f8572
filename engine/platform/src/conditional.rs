//! Conditional requests (RFC 9110, section 13) to resources whose entity tags are version numbers.

use std::fmt;

use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::problem::Problem;

/// The versions that a condition names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    /// `*`: any version that exists.
    Any,
    /// One of these.
    Listed(Vec<i64>),
}

impl Versions {
    /// Whether this version is one of them.
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

/// The entity tag of a version.
pub fn etag(version: i64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("digits and quotes are ASCII")
}

/// The versions at which a request may be carried out; `None` without the header.
///
/// A weak tag counts like a strong one, though RFC 9110 compares strongly here. A proxy that compresses an answer
/// (nginx's gzip) makes its tag weak, so `W/"3"` may be the only form that a client has seen. Nothing is lost by it: the
/// number names one state of the resource, however its bytes were sent.
///
/// # Errors
/// 400 (`invalid-if-match`) for a tag that no answer has carried: what it was meant to guard is not known.
pub fn if_match(headers: &HeaderMap) -> Result<Option<Versions>, Problem> {
    let Some(tags) = tags(headers, &IF_MATCH) else { return Ok(None) };
    let versions = tags.ok().and_then(|tags| match tags {
        Tags::Any => Some(Versions::Any),
        Tags::Listed(tags) => tags.into_iter().map(version).collect::<Option<_>>().map(Versions::Listed),
    });
    versions.map(Some).ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "invalid-if-match", "If-Match cannot be read").detail(
            "If-Match takes versions in double quotes, as ETag gives them, e.g. If-Match: \"3\" or If-Match: \"3\", \
             \"4\"; or If-Match: * for any version.",
        )
    })
}

/// The versions that the client has already; `None` without the header, or where it cannot be read: then the answer
/// comes whole, which is right for everybody.
pub fn if_none_match(headers: &HeaderMap) -> Option<Versions> {
    match tags(headers, &IF_NONE_MATCH)?.ok()? {
        Tags::Any => Some(Versions::Any),
        // A tag of another server names no version of this one.
        Tags::Listed(tags) => Some(Versions::Listed(tags.into_iter().filter_map(version).collect())),
    }
}

enum Tags<'a> {
    Any,
    /// What is between the quotes.
    Listed(Vec<&'a str>),
}

/// The entity tags of a header, over all of its lines; `None` where it is absent, `Err` where it is not of that form.
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
                // Empty members of a list are allowed.
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

/// A version as [`etag`] writes it, and in no other form: `+1` and `01` are other tags.
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
    fn if_match_takes_versions_in_every_form_that_the_rfc_allows() {
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
    fn if_match_refuses_what_is_no_version() {
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
    fn if_none_match_compares_weakly_and_passes_over_what_it_cannot_read() {
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
    fn a_version_is_included_where_it_is_named() {
        assert!(Versions::Any.include(7));
        assert!(Versions::Listed(vec![3, 7]).include(7) && !Versions::Listed(vec![3]).include(7));
        assert_eq!(Versions::Listed(vec![3, 7]).to_string(), "3, 7");
        assert_eq!(etag(7), "\"7\"");
    }
}
