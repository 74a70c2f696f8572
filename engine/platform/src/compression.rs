//! Compression (RFC 9110, sections 8.4 and 12.5.3): decodes compressed request bodies within limits, and compresses
//! responses.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, VARY,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http_body_util::BodyExt;
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::{ReaderStream, StreamReader};

use crate::problem::{BODY_EXPANDS_TOO_MUCH, BODY_LIMIT, Problem, UNDECODABLE_BODY, WINDOW_TOO_LARGE};

/// The codings of request bodies, as the value of `Accept-Encoding`.
pub(crate) const CODINGS: &str = "gzip, br";
/// Smallest response that is compressed, in bytes. A smaller one fits into one packet anyway.
const RESPONSE_BYTES_MIN: u64 = 1024;
/// Larger responses are compressed on a thread of their own, so that they do not delay other requests.
const INLINE_BYTES_MAX: u64 = 64 * 1024;
/// How many of the larger responses are compressed at the same time. Further ones are sent as they are.
const LARGE_AT_ONCE_MAX: usize = 2;
static LARGE_AT_ONCE: Semaphore = Semaphore::const_new(LARGE_AT_ONCE_MAX);
/// Effort of the codings: most of the gain in a small part of the time that the best effort takes.
const GZIP_LEVEL: u32 = 4;
const BROTLI_QUALITY: i32 = 5;
/// Window of compressed responses, as a power of two. It decides how much memory the compression takes.
const RESPONSE_WINDOW_BITS: i32 = 18;
/// Brotli bodies that are decoded at the same time. A decoder holds its window and up to 1.3 MiB of tables.
static BROTLI_BODIES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(32)));
/// Largest window of a brotli request body, as a power of two: 4 MiB. The decoder keeps the window in memory.
const REQUEST_WINDOW_BITS_MAX: u8 = 22;
/// A request body may expand to this many times its compressed size, plus a fixed number of bytes. The limit stops
/// bodies that are made to keep the server busy.
const EXPANSION_MAX: u64 = 200;
const EXPANSION_FREE_BYTES: u64 = 1 << 20;
/// Size of the pieces in which a request body is decoded, in bytes.
const DECODED_CHUNK_BYTES: usize = 16 * 1024;

/// A coding of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Brotli,
}

impl Coding {
    /// Returns the coding with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            return Some(Self::Gzip);
        }
        name.eq_ignore_ascii_case("br").then_some(Self::Brotli)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
        }
    }
}

/// Returns a request whose body is decoded while it is read. The body fails with a [`Problem`] when it does not match
/// the coding, ends early, or expands too much.
///
/// # Errors
/// 503 (`body-limit`) when too many brotli bodies are being decoded.
pub(crate) fn decode(request: Request, coding: Coding) -> Result<Request, Problem> {
    let permit = match coding {
        Coding::Gzip => None,
        Coding::Brotli => Some(BROTLI_BODIES.clone().try_acquire_owned().map_err(|_| {
            Problem::new(BODY_LIMIT)
                .detail("The server is decoding too many brotli bodies at once. Try again shortly, or use gzip.")
                .retry_after(1)
        })?),
    };
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(CONTENT_ENCODING);
    parts.headers.remove(CONTENT_LENGTH);
    Ok(Request::from_parts(parts, Body::from_stream(decoded(body, coding, permit))))
}

/// A brotli decoder that fails when the body goes on after the end of the stream: the rest would otherwise be dropped.
struct WholeBrotli<R> {
    decoder: BrotliDecoder<R>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<R: AsyncBufRead + Unpin> AsyncRead for WholeBrotli<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.decoder).poll_read(context, buffer))?;
        if buffer.filled().len() == before {
            let rest = std::task::ready!(Pin::new(self.decoder.get_mut()).poll_fill_buf(context))?;
            if !rest.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn decoded(
    body: Body,
    coding: Coding,
    permit: Option<OwnedSemaphorePermit>,
) -> impl futures::Stream<Item = Result<Bytes, axum::Error>> {
    let received = Arc::new(AtomicU64::new(0));
    let counter = received.clone();
    let compressed = body.into_data_stream().map(move |chunk| {
        let chunk = chunk.map_err(io::Error::other)?;
        let is_first = counter.fetch_add(chunk.len() as u64, Relaxed) == 0;
        match (coding, chunk.first()) {
            (Coding::Brotli, Some(first)) if is_first => check_window(*first).map_err(io::Error::other)?,
            _ => {}
        }
        Ok::<_, io::Error>(chunk)
    });
    let compressed = StreamReader::new(compressed);
    let decoder: Pin<Box<dyn AsyncRead + Send>> = match coding {
        Coding::Gzip => {
            let mut decoder = GzipDecoder::new(compressed);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        Coding::Brotli => Box::pin(WholeBrotli { decoder: BrotliDecoder::new(compressed), _permit: permit }),
    };
    let mut expanded = 0;
    ReaderStream::with_capacity(decoder, DECODED_CHUNK_BYTES).map(move |chunk| {
        let chunk = chunk.map_err(|error| match error.into_inner() {
            // A refusal, or an error of the connection.
            Some(cause) if cause.is::<Problem>() || cause.is::<axum::Error>() => axum::Error::new(cause),
            _ => axum::Error::new(undecodable(coding)),
        })?;
        expanded += chunk.len() as u64;
        if expanded > EXPANSION_FREE_BYTES + EXPANSION_MAX * received.load(Relaxed) {
            return Err(axum::Error::new(expands_too_much()));
        }
        Ok(chunk)
    })
}

/// Checks the window that the first byte of a brotli stream declares (RFC 7932, section 9.1).
fn check_window(first: u8) -> Result<(), Problem> {
    let (short, long) = ((first >> 1) & 7, (first >> 4) & 7);
    let bits = match (first & 1, short, long) {
        (0, _, _) => 16,
        // An extension with windows of up to 1 GiB, which RFC 7932 does not have.
        (_, 0, 1) => u8::MAX,
        (_, 0, 0) => 17,
        (_, 0, long) => 8 + long,
        (_, short, _) => 17 + short,
    };
    if bits <= REQUEST_WINDOW_BITS_MAX {
        return Ok(());
    }
    Err(Problem::new(WINDOW_TOO_LARGE).detail(
        "The body was compressed by brotli with a window of more than 4 MiB. Compress it with a window of at most 22 \
         bits, or with gzip.",
    ))
}

fn undecodable(coding: Coding) -> Problem {
    Problem::new(UNDECODABLE_BODY).detail(format!(
        "The body was sent with Content-Encoding: {}, but it is not in this coding, or it ends early. Send the whole \
         body in this coding, or uncompressed and without the header.",
        coding.name()
    ))
}

fn expands_too_much() -> Problem {
    Problem::new(BODY_EXPANDS_TOO_MUCH).detail(format!(
        "The body expands to more than {EXPANSION_MAX} times its compressed size. Send it uncompressed and without the \
         header Content-Encoding."
    ))
}

/// Returns the coding that the client prefers for responses, by `Accept-Encoding`; brotli when it has no preference.
/// None when it accepts neither coding, or does not say.
pub(crate) fn accepted(headers: &HeaderMap) -> Option<Coding> {
    let mut weights = [None; 2];
    let mut any = 0;
    for line in headers.get_all(ACCEPT_ENCODING) {
        for item in line.to_str().ok()?.split(',') {
            let (name, weight) = item.split_once(';').unwrap_or((item, "q=1"));
            let weight = thousandths(weight.trim())?;
            match Coding::named(name.trim()) {
                Some(coding) => weights[coding as usize] = Some(weight),
                None if name.trim() == "*" => any = weight,
                None => {}
            }
        }
    }
    let [gzip, brotli] = weights.map(|weight| weight.unwrap_or(any));
    match gzip.max(brotli) {
        0 => None,
        best if best == brotli => Some(Coding::Brotli),
        _ => Some(Coding::Gzip),
    }
}

/// Parses a weight such as `q=0.8` to thousandths. None when it is malformed.
fn thousandths(weight: &str) -> Option<u16> {
    let value = weight.strip_prefix(['q', 'Q'])?.trim_start().strip_prefix('=')?.trim_start();
    let weight: f32 = value.parse().ok()?;
    (0.0..=1.0).contains(&weight).then_some((weight * 1000.0) as u16)
}

/// Compresses the body of a response if it has at least 1 KiB, is completely in memory, and is of a type that
/// compresses well. Streams are never compressed, because their pieces must arrive at once.
///
/// A compressed representation has a weak entity tag: its bytes differ from those of the uncompressed one. Conditional
/// requests treat both alike.
///
/// A response to `HEAD` still has its body here, so it gets the same headers as the response to `GET`.
pub(crate) async fn compress(mut response: Response, accepted: Option<Coding>) -> Response {
    let length = response.body().size_hint().exact();
    let Some(length) = length.filter(|length| *length >= RESPONSE_BYTES_MIN) else { return response };
    if !is_compressible(&response) {
        return response;
    }
    response.headers_mut().append(VARY, HeaderValue::from_static("accept-encoding"));
    let Some(coding) = accepted else { return response };
    let permit = match length > INLINE_BYTES_MAX {
        true => match LARGE_AT_ONCE.try_acquire() {
            Ok(permit) => Some(permit),
            Err(_) => return response,
        },
        false => None,
    };
    let (mut parts, body) = response.into_parts();
    let whole = match body.collect().await {
        Ok(whole) => whole.to_bytes(),
        Err(error) => {
            tracing::error!(%error, "Could not read the body of a response.");
            return Problem::internal().into_response();
        }
    };
    let compressed = match permit {
        None => encode(&whole, coding),
        Some(_) => {
            let whole = whole.clone();
            tokio::task::spawn_blocking(move || encode(&whole, coding)).await.unwrap_or_default()
        }
    };
    if compressed.is_empty() || compressed.len() >= whole.len() {
        return Response::from_parts(parts, Body::from(whole));
    }
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(compressed.len()));
    if let Some(tag) = parts.headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) {
        let weak = [b"W/", tag.as_bytes()].concat();
        if let Ok(weak) = HeaderValue::from_bytes(&weak) {
            parts.headers.insert(ETAG, weak);
        }
    }
    Response::from_parts(parts, Body::from(compressed))
}

fn is_compressible(response: &Response) -> bool {
    let headers = response.headers();
    let is_whole = response.status() != StatusCode::PARTIAL_CONTENT && !headers.contains_key(CONTENT_RANGE);
    let is_fixed = headers
        .get(CACHE_CONTROL)
        .is_some_and(|value| value.as_bytes().windows(12).any(|part| part.eq_ignore_ascii_case(b"no-transform")));
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let is_text = match kind.split_once('/') {
        Some(("text", kind)) => kind != "event-stream",
        Some(("application", kind)) => matches!(kind, "json" | "javascript" | "xml") || kind.ends_with("+json"),
        _ => kind == "image/svg+xml",
    };
    is_whole && !is_fixed && is_text && !headers.contains_key(CONTENT_ENCODING)
}

/// Returns the compressed body; empty if it could not be compressed.
fn encode(mut whole: &[u8], coding: Coding) -> Vec<u8> {
    let mut compressed = Vec::with_capacity(whole.len() / 4);
    let done = match coding {
        Coding::Gzip => {
            io::copy(&mut flate2::read::GzEncoder::new(whole, flate2::Compression::new(GZIP_LEVEL)), &mut compressed)
                .map(drop)
        }
        Coding::Brotli => {
            let params = brotli::enc::BrotliEncoderParams {
                quality: BROTLI_QUALITY,
                lgwin: RESPONSE_WINDOW_BITS,
                size_hint: whole.len(),
                ..Default::default()
            };
            brotli::BrotliCompress(&mut whole, &mut compressed, &params).map(drop)
        }
    };
    if done.is_err() {
        compressed.clear();
    }
    compressed
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    const BOTH: [Coding; 2] = [Coding::Gzip, Coding::Brotli];

    async fn read(bytes: Vec<u8>, coding: Coding) -> Result<Bytes, Problem> {
        // In small pieces, as a slow client sends them.
        let chunks: Vec<_> = bytes.chunks(7).map(|chunk| Ok::<_, io::Error>(Bytes::copy_from_slice(chunk))).collect();
        let request = Request::new(Body::from_stream(futures::stream::iter(chunks)));
        let body = decode(request, coding).unwrap().into_body();
        match body.collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(error) => {
                let mut causes = std::iter::successors(Some(&error as &dyn Error), |error| (*error).source());
                Err(causes.find_map(|error| error.downcast_ref::<Problem>()).expect("a problem").clone())
            }
        }
    }

    fn text(bytes: usize) -> Vec<u8> {
        (0_u64..)
            .flat_map(|n| format!("{{\"n\":{}}}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes())
            .take(bytes)
            .collect()
    }

    #[tokio::test]
    async fn nothing_after_the_end_of_a_body_is_dropped() {
        let one = text(5_000);
        for coding in BOTH {
            let followed = [encode(&one, coding), b"GET /".to_vec()].concat();
            let refused = read(followed, coding).await.unwrap_err();
            assert_eq!((refused.status().as_u16(), refused.slug()), (400, "undecodable-body"), "{coding:?}");
        }
        let twice = [encode(&one, Coding::Brotli), encode(&one, Coding::Brotli)].concat();
        assert_eq!(read(twice, Coding::Brotli).await.unwrap_err().slug(), "undecodable-body");
    }

    #[tokio::test]
    async fn a_body_arrives_as_it_was_before_compression() {
        for coding in BOTH {
            for bytes in [1, 100, 200_000] {
                let whole = text(bytes);
                assert_eq!(read(encode(&whole, coding), coding).await.unwrap(), whole, "{coding:?} {bytes}");
            }
        }
        let twice = [encode(b"one,", Coding::Gzip), encode(b"two", Coding::Gzip)].concat();
        assert_eq!(read(twice, Coding::Gzip).await.unwrap(), "one,two", "gzip may have several members");
    }

    #[tokio::test]
    async fn a_body_that_ends_early_or_is_damaged_is_refused() {
        for coding in BOTH {
            let whole = encode(&text(300), coding);
            for end in 1..whole.len() {
                let refused = read(whole[..end].to_vec(), coding).await.expect_err(&format!("{coding:?} {end}"));
                assert_eq!((refused.status().as_u16(), refused.slug()), (400, "undecodable-body"), "{coding:?} {end}");
            }
            assert_eq!(read(b"{\"id\":\"x-1\"}".to_vec(), coding).await.unwrap_err().slug(), "undecodable-body");
        }
        let mut damaged = encode(&text(300), Coding::Gzip);
        let checksum = damaged.len() - 8;
        damaged[checksum] ^= 1;
        assert_eq!(read(damaged, Coding::Gzip).await.unwrap_err().slug(), "undecodable-body");
    }

    #[tokio::test]
    async fn a_bomb_is_refused_before_it_has_expanded() {
        for coding in BOTH {
            let bomb = encode(&vec![b' '; 16 << 20], coding);
            assert!(bomb.len() < 32 << 10, "{}", bomb.len());
            let refused = read(bomb, coding).await.unwrap_err();
            assert_eq!((refused.status().as_u16(), refused.slug()), (413, "body-expands-too-much"), "{coding:?}");
        }
    }

    #[tokio::test]
    async fn a_large_window_is_refused() {
        let with_window = |bits: i32, large: bool| {
            let mut params =
                brotli::enc::BrotliEncoderParams { quality: 5, lgwin: bits, large_window: large, ..Default::default() };
            params.size_hint = 0;
            let mut compressed = Vec::new();
            brotli::BrotliCompress(&mut text(5_000).as_slice(), &mut compressed, &params).unwrap();
            compressed
        };
        for bits in 10..=22 {
            assert_eq!(read(with_window(bits, false), Coding::Brotli).await.unwrap(), text(5_000), "{bits}");
        }
        for (bits, large) in [(24, false), (28, true)] {
            let refused = read(with_window(bits, large), Coding::Brotli).await.unwrap_err();
            assert_eq!((refused.status().as_u16(), refused.slug()), (413, "window-too-large"), "{bits}");
        }
    }

    #[test]
    fn the_client_chooses_the_coding() {
        let accepted = |lines: &[&str]| {
            accepted(&lines.iter().map(|line| (ACCEPT_ENCODING, HeaderValue::from_str(line).unwrap())).collect())
        };
        for (lines, expected) in [
            (&[][..], None),
            (&[""], None),
            (&["identity"], None),
            (&["gzip"], Some(Coding::Gzip)),
            (&["x-gzip"], Some(Coding::Gzip)),
            (&["gzip, deflate, br, zstd"], Some(Coding::Brotli)),
            (&["gzip", "br"], Some(Coding::Brotli)),
            (&["GZIP;q=1.0, br;q=0.9"], Some(Coding::Gzip)),
            (&["br;q=0, gzip ; q=0.001"], Some(Coding::Gzip)),
            (&["gzip;q=0, br;q=0"], None),
            (&["*"], Some(Coding::Brotli)),
            (&["br;q=0, *;q=0.5"], Some(Coding::Gzip)),
            (&["*;q=0"], None),
            (&["gzip;q=2"], None),
            (&["gzip;level=9"], None),
        ] {
            assert_eq!(accepted(lines), expected, "{lines:?}");
        }
    }

    fn response(kind: &'static str, body: Body) -> Response {
        Response::builder().header(CONTENT_TYPE, kind).header(ETAG, "\"7\"").body(body).unwrap()
    }

    async fn compressed(response: Response) -> bool {
        compress(response, Some(Coding::Gzip)).await.headers().contains_key(CONTENT_ENCODING)
    }

    #[tokio::test]
    async fn a_response_is_compressed_when_it_pays() {
        let whole = text(100_000);
        for coding in BOTH {
            let packed = compress(response("application/json", Body::from(whole.clone())), Some(coding)).await;
            let headers = packed.headers().clone();
            assert_eq!(
                (&headers[CONTENT_ENCODING], &headers[VARY], &headers[ETAG]),
                (
                    &HeaderValue::from_static(coding.name()),
                    &HeaderValue::from_static("accept-encoding"),
                    &HeaderValue::from_static("W/\"7\"")
                )
            );
            let body = packed.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(headers[CONTENT_LENGTH], body.len().to_string());
            assert!(body.len() < whole.len() / 2, "{}", body.len());
            assert_eq!(read(body.to_vec(), coding).await.unwrap(), whole);
        }
        let plain = compress(response("application/json", Body::from(whole.clone())), None).await;
        assert_eq!(
            (&plain.headers()[ETAG], &plain.headers()[VARY]),
            (&HeaderValue::from_static("\"7\""), &HeaderValue::from_static("accept-encoding"))
        );
        let small = compress(response("application/json", Body::from("{}")), Some(Coding::Gzip)).await;
        assert!(!small.headers().contains_key(VARY) && !small.headers().contains_key(CONTENT_ENCODING));
        for kind in
            ["application/problem+json", "text/plain; version=0.0.4", "text/html", "text/javascript", "image/svg+xml"]
        {
            assert!(compressed(response(kind, Body::from(whole.clone()))).await, "{kind}");
        }
        for kind in ["text/event-stream", "application/x-ndjson", "image/png", "application/gzip", ""] {
            assert!(!compressed(response(kind, Body::from(whole.clone()))).await, "{kind}");
        }
        let stream = Body::from_stream(futures::stream::iter([Ok::<_, io::Error>(whole.clone())]));
        assert!(!compressed(response("application/json", stream)).await, "a stream");
        for (name, value) in
            [(CONTENT_ENCODING, "zstd"), (CACHE_CONTROL, "max-age=1, No-Transform"), (CONTENT_RANGE, "bytes 0-9/10")]
        {
            let mut fixed = response("application/json", Body::from(whole.clone()));
            fixed.headers_mut().insert(name.clone(), HeaderValue::from_static(value));
            let answer = compress(fixed, Some(Coding::Gzip)).await;
            assert!(answer.headers().get(CONTENT_ENCODING).is_none_or(|value| value == "zstd"), "{name}");
        }
    }
}
