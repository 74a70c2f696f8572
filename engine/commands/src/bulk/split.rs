//! Splits a request body into lines.

use crate::problems::LINE_TOO_LONG;
use axum::body::Bytes;
use bytes::BytesMut;
use futures::{Stream, StreamExt};
use platform::body::refusal;
use platform::problem::{Problem, UNREADABLE_BODY};

/// The largest length of a line, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// A buffer with a larger capacity, in bytes, is freed when it is empty. A smaller one is reused for the next line.
const BUFFER_BYTES_KEPT: usize = 64 << 10;

/// Returns the lines of a body. A line that is too long is skipped and returned as a problem.
pub(crate) fn split_lines(
    body: impl Stream<Item = Result<Bytes, axum::Error>>,
) -> impl Stream<Item = Result<BytesMut, Box<Problem>>> {
    struct Reader<S> {
        body: std::pin::Pin<Box<S>>,
        buffer: BytesMut,
        searched: usize,
        too_long: bool,
        done: bool,
    }
    let reader = Reader { body: Box::pin(body), buffer: BytesMut::new(), searched: 0, too_long: false, done: false };
    futures::stream::unfold(reader, |mut reader| async move {
        loop {
            if let Some(at) = reader.buffer[reader.searched..].iter().position(|byte| *byte == b'\n') {
                let line = reader.buffer.split_to(reader.searched + at + 1);
                reader.searched = 0;
                let line = if std::mem::take(&mut reader.too_long) { Err(too_long()) } else { Ok(line) };
                return Some((line, reader));
            }
            // The last line has been executed, so its memory can be freed.
            if reader.buffer.is_empty() && reader.buffer.capacity() > BUFFER_BYTES_KEPT {
                reader.buffer = BytesMut::new();
            }
            if reader.buffer.len() > LINE_BYTES_MAX {
                reader.too_long = true;
                reader.buffer.clear();
            }
            reader.searched = reader.buffer.len();
            if reader.done {
                let line = std::mem::take(&mut reader.buffer);
                reader.searched = 0;
                let too_long_line = std::mem::take(&mut reader.too_long);
                return match (line.is_empty(), too_long_line) {
                    (_, true) => Some((Err(too_long()), reader)),
                    (true, false) => None,
                    (false, false) => Some((Ok(line), reader)),
                };
            }
            match reader.body.next().await {
                Some(Ok(bytes)) => reader.buffer.extend_from_slice(&bytes),
                // The body ended early: the last line is incomplete, so it is not a command.
                Some(Err(error)) => {
                    reader.buffer.clear();
                    reader.too_long = false;
                    reader.done = true;
                    reader.searched = 0;
                    return Some((Err(refusal(&error).map_or_else(cut_off, Box::new)), reader));
                }
                None => reader.done = true,
            }
        }
    })
}

fn cut_off() -> Box<Problem> {
    Box::new(
        Problem::new(UNREADABLE_BODY)
            .detail("The body ended early. This line and the lines after it were not read. Send them again."),
    )
}

fn too_long() -> Box<Problem> {
    Box::new(
        Problem::new(LINE_TOO_LONG)
            .detail(format!("A line can have at most {LINE_BYTES_MAX} bytes. Send a shorter line.")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(chunks: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        split_lines(futures::stream::iter(chunks)).map(|line| line.ok().map(Vec::from)).collect().await
    }

    #[tokio::test]
    async fn chunks_may_split_a_line_anywhere() {
        let expected = vec![Some(b"ab\n".to_vec()), Some(b"\n".to_vec()), Some(b"cd".to_vec())];
        assert_eq!(lines(&[b"ab\n\ncd"]).await, expected);
        assert_eq!(lines(&[b"a", b"b", b"\n\nc", b"d"]).await, expected);
    }

    #[tokio::test]
    async fn a_too_long_line_is_refused_once_and_the_next_line_is_read() {
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(lines(&[&long, &long, b"\nok\n"]).await, vec![None, Some(b"ok\n".to_vec())]);
    }
}
