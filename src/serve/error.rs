//! What a client is told when it gets no answer.

use std::fmt;

/// Why a request was refused. The name is part of the interface and never changes; the status follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The body is not what the protocol asks for.
    Malformed,
    /// A tensor with a name, type, shape or size that the model does not take.
    InvalidTensor,
    /// NaN or infinity in the input, or values so large that the network overflows.
    NotFinite,
    /// The image cannot be decoded, or is too large when it is.
    InvalidImage,
    /// A query or body parameter out of range.
    InvalidParameter,
    /// A token is needed.
    Unauthorized,
    /// This caller may not do that.
    Forbidden,
    /// There is nothing at this path.
    NotFound,
    /// No model of this name is served.
    ModelNotFound,
    /// The model is served, in another version.
    VersionNotFound,
    /// Another version is active than the caller took for granted.
    Conflict,
    /// The path takes other methods.
    MethodNotAllowed,
    /// The body did not arrive in time.
    BodyTimeout,
    /// The body is larger than allowed.
    BodyTooLarge,
    /// A content type or encoding that is not understood.
    UnsupportedMediaType,
    /// The version cannot be loaded or fails its smoke inference; what was served before still is.
    ModelRefused,
    /// The queue or the memory for bodies is full.
    Overloaded,
    /// A fault of this program.
    Internal,
    /// Nothing can answer now: no model, or the server stops.
    Unavailable,
    /// The answer was not ready in time.
    DeadlineExceeded,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 20] = [
        Self::Malformed,
        Self::InvalidTensor,
        Self::NotFinite,
        Self::InvalidImage,
        Self::InvalidParameter,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::ModelNotFound,
        Self::VersionNotFound,
        Self::Conflict,
        Self::MethodNotAllowed,
        Self::BodyTimeout,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::ModelRefused,
        Self::Overloaded,
        Self::Internal,
        Self::Unavailable,
        Self::DeadlineExceeded,
    ];

    /// The stable name, as in `"code"`, and the HTTP status.
    pub const fn name_and_status(self) -> (&'static str, u16) {
        match self {
            Self::Malformed => ("malformed", 400),
            Self::InvalidTensor => ("invalid_tensor", 400),
            Self::NotFinite => ("not_finite", 400),
            Self::InvalidImage => ("invalid_image", 400),
            Self::InvalidParameter => ("invalid_parameter", 400),
            Self::Unauthorized => ("unauthorized", 401),
            Self::Forbidden => ("forbidden", 403),
            Self::NotFound => ("not_found", 404),
            Self::ModelNotFound => ("model_not_found", 404),
            Self::VersionNotFound => ("version_not_found", 404),
            Self::Conflict => ("conflict", 409),
            Self::MethodNotAllowed => ("method_not_allowed", 405),
            Self::BodyTimeout => ("body_timeout", 408),
            Self::BodyTooLarge => ("body_too_large", 413),
            Self::UnsupportedMediaType => ("unsupported_media_type", 415),
            Self::ModelRefused => ("model_refused", 422),
            Self::Overloaded => ("overloaded", 429),
            Self::Internal => ("internal", 500),
            Self::Unavailable => ("unavailable", 503),
            Self::DeadlineExceeded => ("deadline_exceeded", 504),
        }
    }
}

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for programs.
    pub code: Code,
    /// Why, for people.
    pub message: String,
    /// Seconds after which another try may succeed.
    pub retry_after: Option<u64>,
}

impl Refusal {
    /// A refusal without a time to wait.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_distinct_and_statuses_are_those_of_errors() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.name_and_status().0).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| (400..600).contains(&code.name_and_status().1)));
    }
}
