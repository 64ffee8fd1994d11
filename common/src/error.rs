//! The error table: every public error's word and status stand here and nowhere else.

use serde::Serialize;

/// Whose fault an error is: the label of the error metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request was wrong.
    Client,
    /// The function was.
    Function,
    /// We were.
    Platform,
}

impl Fault {
    /// The metric's label.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Function => "function",
            Self::Platform => "platform",
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $status:literal, $fault:ident;)*) => {
        /// A public error, by what happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code, for documents and tests.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The `code` field of the answer.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// The HTTP status.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }

            /// Whose fault it is.
            #[must_use]
            pub fn fault(self) -> Fault {
                match self { $(Self::$variant => Fault::$fault),* }
            }
        }
    };
}

codes! {
    /// The HTTP message itself cannot be trusted.
    BadRequest = "bad_request", 400, Client;
    /// JSON, a form or a field of one is wrong.
    Invalid = "invalid", 422, Client;
    /// The archive was refused.
    BadArchive = "bad_archive", 422, Client;
    /// The build's command failed; the answer holds its log.
    BuildFailed = "build_failed", 422, Client;
    /// The password is too short or too long.
    WeakPassword = "weak_password", 422, Client;
    /// E-mail or password are wrong.
    BadCredentials = "bad_credentials", 401, Client;
    /// No token, a wrong one, an expired one, or one whose session has ended.
    Unauthorized = "unauthorized", 401, Client;
    /// Known, but not allowed: registration is closed.
    Forbidden = "forbidden", 403, Client;
    /// Not there, or somebody else's.
    NotFound = "not_found", 404, Client;
    /// The path is known, the method is not.
    MethodNotAllowed = "method_not_allowed", 405, Client;
    /// The request came too slowly.
    RequestTimeout = "request_timeout", 408, Client;
    /// Somebody has registered with this e-mail.
    EmailTaken = "email_taken", 409, Client;
    /// Another deploy of the same function is under way, or it was deleted meanwhile.
    Conflict = "conflict", 409, Client;
    /// The first call with the same idempotency key has not ended yet.
    CallUnderWay = "call_under_way", 409, Client;
    /// The idempotency key came with another request before.
    KeyReused = "idempotency_key_reused", 422, Client;
    /// A body over its limit.
    TooLarge = "too_large", 413, Client;
    /// A path over its limit.
    UriTooLong = "uri_too_long", 414, Client;
    /// A content type that the route does not take.
    UnsupportedMediaType = "unsupported_media_type", 415, Client;
    /// A head over its limit.
    HeadersTooLarge = "headers_too_large", 431, Client;
    /// Over the client's rate, or its share of the API's calls under way.
    RateLimited = "rate_limited", 429, Client;
    /// Over the function's concurrency.
    ConcurrencyLimited = "concurrency_limited", 429, Client;
    /// The password pool's queue is full.
    Busy = "busy", 429, Platform;
    /// The function exited with another code than 0.
    FunctionCrashed = "function_crashed", 502, Function;
    /// The function gave no valid result.
    InvalidResult = "invalid_result", 502, Function;
    /// The function used more memory than it may.
    OutOfMemory = "out_of_memory", 502, Function;
    /// The function ran out of time.
    Timeout = "timeout", 504, Function;
    /// The node went away while the call was inside it; it may have run.
    NodeLost = "node_lost", 502, Platform;
    /// No node can take the call.
    NoNode = "no_node", 503, Platform;
    /// There is no room for one more connection, or one more large body.
    Overloaded = "overloaded", 503, Platform;
    /// The node could not start a sandbox.
    NoSandbox = "no_sandbox", 503, Platform;
    /// The database does not answer.
    StoreUnavailable = "store_unavailable", 503, Platform;
    /// We are stopping.
    Stopping = "stopping", 503, Platform;
    /// A bug, or a machine that is broken. The log has the cause.
    Internal = "internal", 500, Platform;
}

/// An error as the public sees it: the sentence says the fix, never a secret or an inner detail.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct PublicError {
    /// What happened.
    pub code: Code,
    /// One sentence for the person who sent the request.
    pub message: String,
    /// The build's log, with [`Code::BuildFailed`].
    pub log: Option<String>,
    /// When to try again, in seconds.
    pub retry_after: Option<u32>,
}

impl PublicError {
    /// An error with its sentence. Overload, platform faults and calls under way say when to try again.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let retry_after = (matches!(code.status(), 429 | 503) || code == Code::CallUnderWay).then_some(1);
        Self { code, message: message.into(), log: None, retry_after }
    }

    /// The JSON body.
    #[must_use]
    pub fn body(&self, request_id: &str, form: Form) -> Vec<u8> {
        let body = ErrorBody {
            success: (form == Form::Invoke).then_some(false),
            error: &self.message,
            code: self.code.word(),
            request_id,
            log: self.log.as_deref(),
        };
        serde_json::to_vec(&body).expect("an ErrorBody is plain text, which always serialises")
    }
}

/// An error and its causes, on one line, for the log. Each `Display` says only its own layer.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Which answer an error stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The control API's.
    Control,
    /// An invocation's: it says `"success": false`, too.
    Invoke,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    success: Option<bool>,
    error: &'a str,
    code: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique_and_statuses_are_errors() {
        let mut words: Vec<_> = Code::ALL.iter().map(|code| code.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| (400..600).contains(&code.status())));
    }

    #[test]
    fn the_document_has_every_code() {
        let document = include_str!("../../API.md");
        let of_document = document.lines().filter(|line| line.starts_with("| `") && !line.contains('/')).count();
        for code in Code::ALL {
            let row = format!("| `{}` | {} | ", code.word(), code.status());
            assert!(document.contains(&row), "API.md lacks {row}");
        }
        assert_eq!(of_document, Code::ALL.len(), "API.md has a code that is none");
    }

    #[test]
    fn a_chain_has_every_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::num::ParseIntError);
        let error = Outer("x".parse::<u8>().unwrap_err());
        assert_eq!(Chain(&error).to_string(), "outer: invalid digit found in string");
    }

    #[test]
    fn body_of_an_invocation() {
        let error = PublicError::new(Code::Timeout, "Function execution timed out (5000ms)");
        let body: serde_json::Value = serde_json::from_slice(&error.body("r", Form::Invoke)).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"success": false, "error": "Function execution timed out (5000ms)",
                               "code": "timeout", "request_id": "r"})
        );
    }
}
