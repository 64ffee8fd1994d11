//! Base64 in the one alphabet that the project uses: standard, padded (RFC 4648, section 4).

pub use ::base64::DecodeError;
use ::base64::Engine as _;
use ::base64::engine::general_purpose::STANDARD;

/// `bytes` as Base64.
#[must_use]
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// The bytes behind `text`.
///
/// # Errors
/// The text is not standard, padded Base64.
pub fn decode(text: &str) -> Result<Vec<u8>, DecodeError> {
    STANDARD.decode(text)
}
