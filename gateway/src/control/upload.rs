//! Uploads: a multipart form whose archive streams to disk while it is hashed, whatever the order of its fields.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest as _, Multipart, Request};
use common::error::Code;
use common::manifest::Manifest;
use common::names::FunctionName;
use common::settings::MIB;
use http::header::EXPECT;
use http_body::Frame;
use store::artifacts::{Artifacts, Incoming};

use super::error::Failure;
use super::request::media_type;

/// Longest `settings`, in bytes.
const MAX_SETTINGS_BYTES: usize = 64 * 1024;
/// Longest `name` that is read before it is refused, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// Longest head of a part, and of what stands before the first one, in bytes: the parser keeps it in memory, and looks
/// through all of it whenever more has come.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Most that the parser gets at once, in bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// What a form may have beside its archive, in bytes.
const MAX_FORM_BYTES: usize = MIB;
/// Longest pause between two pieces of an upload.
const PAUSE_DEADLINE: Duration = Duration::from_secs(30);
/// Longest upload; the edge gives it a minute more.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(14 * 60);
/// How long, and how much of, a refused upload is read on, in bytes.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
const DRAIN_BYTES: usize = 64 * MIB;

/// A complete form. The archive is on disk, unchecked; dropped, it leaves nothing.
pub(crate) struct Upload {
    pub(crate) name: FunctionName,
    pub(crate) settings: Manifest,
    pub(crate) archive: Incoming,
}

/// The layer of the upload's route: the form as a whole ends here, the archive ends earlier by its own limit.
pub(crate) fn body_limit(archive_bytes: u64) -> DefaultBodyLimit {
    let archive = usize::try_from(archive_bytes).unwrap_or(usize::MAX);
    DefaultBodyLimit::max(archive.saturating_add(MAX_FORM_BYTES))
}

/// What the edge has to let through of an upload, in bytes: a form at its limit, and what is read on of one that is
/// over it.
pub(crate) fn edge_limit(archive_bytes: u64) -> u64 {
    archive_bytes.saturating_add((MAX_FORM_BYTES + DRAIN_BYTES) as u64)
}

/// Reads a form. `max_archive_bytes` is the archive's limit.
///
/// What is refused is read on for a while: a client that still sends when the connection closes sees a broken
/// connection and not our sentence.
pub(crate) async fn receive(
    request: Request,
    artifacts: &Artifacts,
    max_archive_bytes: u64,
) -> Result<Upload, Failure> {
    let shared = SharedBody::default();
    let request = request.map(|body| shared.hold(body));
    // Who waits for `100 Continue` has sent nothing yet, and will not once it has our answer.
    let waits = request.headers().contains_key(EXPECT);
    let whole = form(&shared, request, artifacts, max_archive_bytes);
    let received = match tokio::time::timeout(UPLOAD_DEADLINE, whole).await {
        Ok(received) => received,
        Err(_) => Err(too_slow(UPLOAD_DEADLINE)),
    };
    let worth_it = !matches!(&received, Err(failure) if failure.code() == Code::RequestTimeout);
    if received.is_err() && worth_it && (shared.was_read() || !waits) {
        // Whether it came to an end or not: the answer is the same.
        let _ = tokio::time::timeout(DRAIN_DEADLINE, shared.drain(DRAIN_BYTES)).await;
    }
    received
}

/// Reads on what a caller sends that is refused before its form was looked at.
pub(crate) async fn refuse(request: Request, failure: Failure) -> Failure {
    if !request.headers().contains_key(EXPECT) {
        let shared = SharedBody::default();
        drop(shared.hold(request.into_body()));
        let _ = tokio::time::timeout(DRAIN_DEADLINE, shared.drain(DRAIN_BYTES)).await;
    }
    failure
}

/// Reads the form of a request whose body is `shared`.
async fn form(
    shared: &SharedBody,
    request: Request,
    artifacts: &Artifacts,
    max_archive_bytes: u64,
) -> Result<Upload, Failure> {
    if media_type(request.headers()).as_deref() != Some("multipart/form-data") {
        let sentence = "send a multipart form with the fields `name` and `archive` (curl -F does)";
        return Err(Failure::new(Code::UnsupportedMediaType, sentence));
    }
    let Ok(mut multipart) = Multipart::from_request(request, &()).await else {
        return Err(Failure::new(Code::BadRequest, "the form's content type names no boundary"));
    };
    let (mut name, mut settings, mut archive) = (None, None, None);
    while let Some(field) = shared.parsed(multipart.next_field()).await? {
        let which = field.name().unwrap_or_default().to_owned();
        match which.as_str() {
            "name" => {
                let text = text(shared, field, "name", MAX_NAME_BYTES).await?;
                let parsed = text.parse().map_err(|error| invalid(format!("{error}")))?;
                once(&mut name, parsed, "name")?;
            }
            "settings" => {
                let text = text(shared, field, "settings", MAX_SETTINGS_BYTES).await?;
                let parsed = Manifest::from_json(&text).map_err(|error| invalid(error.to_string()))?;
                once(&mut settings, parsed, "settings")?;
            }
            "" => return Err(invalid("a part of the form has no name: use name, archive and settings".to_owned())),
            "archive" if archive.is_some() => return Err(twice("archive")),
            "archive" => archive = Some(to_disk(shared, field, artifacts, max_archive_bytes).await?),
            _ => {
                let which: String = which.chars().take(64).collect();
                return Err(invalid(format!("the form's field `{which}` is unknown: use name, archive and settings")));
            }
        }
    }
    let missing = |field: &str, what: &str| invalid(format!("the form's field `{field}` is missing: it holds {what}"));
    Ok(Upload {
        name: name.ok_or_else(|| missing("name", "the function's name"))?,
        archive: archive.ok_or_else(|| missing("archive", "the function's tar.gz"))?,
        settings: settings.unwrap_or_default(),
    })
}

async fn to_disk(
    shared: &SharedBody,
    mut field: Field<'_>,
    artifacts: &Artifacts,
    max_bytes: u64,
) -> Result<Incoming, Failure> {
    let mut incoming = artifacts.begin().await.map_err(Failure::disk)?;
    while let Some(chunk) = shared.parsed(field.chunk()).await? {
        if incoming.len() + chunk.len() as u64 > max_bytes {
            let sentence = format!("the archive is over {} MiB, this platform's limit", max_bytes / MIB as u64);
            return Err(Failure::new(Code::TooLarge, sentence));
        }
        incoming.write(&chunk).await.map_err(Failure::disk)?;
    }
    incoming.flush().await.map_err(Failure::disk)?;
    Ok(incoming)
}

async fn text(shared: &SharedBody, mut field: Field<'_>, name: &str, max_bytes: usize) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    while let Some(chunk) = shared.parsed(field.chunk()).await? {
        if bytes.len() + chunk.len() > max_bytes {
            return Err(invalid(format!("the form's field `{name}` is over {max_bytes} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| invalid(format!("the form's field `{name}` is not UTF-8 text")))
}

fn too_slow(deadline: Duration) -> Failure {
    Failure::new(Code::RequestTimeout, format!("the upload came too slowly: {} seconds passed", deadline.as_secs()))
}

fn once<T>(slot: &mut Option<T>, value: T, field: &str) -> Result<(), Failure> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(twice(field)),
    }
}

fn twice(field: &str) -> Failure {
    invalid(format!("the form has the field `{field}` twice"))
}

fn invalid(sentence: String) -> Failure {
    Failure::new(Code::Invalid, sentence)
}

/// A request's body that the form's parser reads, and that we read on when the parser has given up.
///
/// The parser takes all that there is before it looks at any of it, and keeps what it makes nothing of. So it gets one
/// piece at a time, and not more without an end of a head or a piece of a field.
#[derive(Clone, Default)]
struct SharedBody(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    body: Body,
    was_read: bool,
    /// What is left of the last frame.
    rest: Bytes,
    /// The parser has not looked at the last piece yet.
    is_new: bool,
    /// Bytes that the parser got since it made something of them.
    unparsed: usize,
    /// They were too many.
    is_over: bool,
}

/// The parser finds neither a part of the form nor its head's end.
#[derive(Debug, thiserror::Error)]
#[error("the head of a part of the form is too long")]
struct HeadTooLong;

impl SharedBody {
    /// Keeps `body`, and gives a body that reads from it.
    fn hold(&self, body: Body) -> Body {
        self.lock().body = body;
        Body::new(self.clone())
    }

    fn was_read(&self) -> bool {
        self.lock().was_read
    }

    /// One step of the form's parser, in its time. What it got before that was good for something.
    async fn parsed<T>(&self, step: impl Future<Output = Result<T, MultipartError>>) -> Result<T, Failure> {
        match tokio::time::timeout(PAUSE_DEADLINE, step).await {
            Ok(Ok(value)) => {
                self.lock().unparsed = 0;
                Ok(value)
            }
            Ok(Err(_)) if self.lock().is_over => {
                let kib = MAX_HEAD_BYTES / 1024;
                let sentence = format!("what stands before a part of the form, or at its head, is over {kib} KiB");
                Err(Failure::new(Code::TooLarge, sentence))
            }
            Ok(Err(error)) if error.status() == http::StatusCode::PAYLOAD_TOO_LARGE => {
                Err(Failure::new(Code::TooLarge, "the form is over this platform's limit"))
            }
            Ok(Err(error)) => {
                let sentence = "the form is not valid multipart, or broke off: send it again";
                Err(Failure::caused(Code::BadRequest, sentence, error))
            }
            Err(_) => Err(too_slow(PAUSE_DEADLINE)),
        }
    }

    /// Reads and forgets what the parser did not get, at most `max_bytes`.
    async fn drain(self, max_bytes: usize) {
        let mut rest = max_bytes;
        let next = |context: &mut Context<'_>| {
            let mut shared = self.lock();
            http_body::Body::poll_frame(Pin::new(&mut shared.body), context)
        };
        while let Some(Ok(frame)) = std::future::poll_fn(next).await {
            rest = rest.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if rest == 0 {
                return;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl http_body::Body for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut guard = self.lock();
        let shared = &mut *guard;
        shared.was_read = true;
        if std::mem::take(&mut shared.is_new) {
            // It asks again at once, after it has looked at what it has.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if shared.rest.is_empty() {
            match ready!(Pin::new(&mut shared.body).poll_frame(context)).map(|read| read.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => shared.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        // One piece more than a head: where it looks for the first boundary, it takes two before it looks again.
        if shared.unparsed > MAX_HEAD_BYTES + PIECE_BYTES {
            shared.is_over = true;
            return Poll::Ready(Some(Err(axum::Error::new(HeadTooLong))));
        }
        let length = shared.rest.len().min(PIECE_BYTES);
        let piece = shared.rest.split_to(length);
        shared.unparsed += length;
        shared.is_new = true;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    /// A body that comes in frames of these lengths, as its reader gets it: in these pieces, and then to its end or not.
    async fn check(frames: &[usize], parses: bool, pieces: &[usize], ends: bool) {
        let given: Vec<_> = frames.iter().map(|length| Ok::<_, std::io::Error>(vec![b'x'; *length])).collect();
        let shared = SharedBody::default();
        let mut body = shared.hold(Body::from_stream(futures_util::stream::iter(given)));
        let mut got = Vec::new();
        let end = loop {
            match body.frame().await {
                Some(Ok(frame)) => got.push(frame.into_data().unwrap().len()),
                Some(Err(_)) => break false,
                None => break true,
            }
            if parses {
                shared.parsed(std::future::ready(Ok(()))).await.unwrap();
            }
        };
        assert_eq!((got.as_slice(), end, shared.lock().is_over), (pieces, ends, !ends), "{frames:?}");
    }

    #[tokio::test]
    async fn the_parser_gets_pieces_and_not_too_many() {
        check(&[], false, &[], true).await;
        check(&[1, 200, 3], false, &[1, 200, 3], true).await;
        check(&[PIECE_BYTES + 1], false, &[PIECE_BYTES, 1], true).await;
        check(&[MAX_HEAD_BYTES, PIECE_BYTES, 1], false, &[MAX_HEAD_BYTES, PIECE_BYTES, 1], true).await;
        check(&[MAX_HEAD_BYTES + 1, PIECE_BYTES, 1], false, &[MAX_HEAD_BYTES + 1, PIECE_BYTES], false).await;
        check(&[10 * PIECE_BYTES], false, &[PIECE_BYTES; 2], false).await;
        check(&[10 * PIECE_BYTES], true, &[PIECE_BYTES; 10], true).await;
    }

    #[tokio::test]
    async fn what_the_parser_did_not_get_is_read_on() {
        let shared = SharedBody::default();
        let given = (0..5).map(|_| Ok::<_, std::io::Error>(vec![b'x'; PIECE_BYTES]));
        let mut body = shared.hold(Body::from_stream(futures_util::stream::iter(given)));
        while let Some(Ok(_)) = body.frame().await {}
        assert!(shared.lock().is_over);
        tokio::time::timeout(DRAIN_DEADLINE, shared.clone().drain(DRAIN_BYTES)).await.unwrap();
        let mut rest = std::mem::take(&mut shared.lock().body);
        assert!(rest.frame().await.is_none());
    }
}
