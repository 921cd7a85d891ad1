//! Who may do what.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::{App, shortened};
use crate::serve::error::{Code, Refusal};
use crate::serve::net::Peer;
use crate::{Error, Result};

/// Shorter ones can be guessed.
const MIN_TOKEN: usize = 16;
/// Longer ones do not fit a header.
const MAX_TOKEN: usize = 4096;

/// systemd's name for the folder of a service's credentials.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The secret that requests must bring.
pub struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads a token file: one line, 16 to 4096 visible characters.
    ///
    /// # Errors
    /// [`Error::Config`] if others than its owner have access to it, or it holds no token; [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |what: String| Err(Error::Config(format!("{}: {what}", path.display())));
        let metadata = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        let mode = metadata.permissions().mode() & 0o777;
        let credentials = std::env::var_os(CREDENTIALS);
        if mode & 0o077 != 0 && !credentials.is_some_and(|folder| is_handed_over(path, folder.as_ref())) {
            return refuse(format!(
                "expected a token file that only its owner has access to (chmod 600), got {mode:o}"
            ));
        }
        if !metadata.is_file() || metadata.len() > MAX_TOKEN as u64 {
            return refuse(format!("expected a file of at most {MAX_TOKEN} bytes"));
        }
        let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let token = text.trim();
        if token.len() < MIN_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse(format!("expected a token of at least {MIN_TOKEN} visible ASCII characters"));
        }
        Ok(Self(token.as_bytes().to_vec()))
    }

    /// Whether the headers bring it. Takes the same time wherever a wrong one differs.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return false };
        let Some((scheme, given)) = value.as_bytes().split_at_checked("Bearer ".len()) else { return false };
        let differing = given.iter().zip(&self.0).fold(0, |bits, (a, b)| bits | (a ^ b));
        scheme.eq_ignore_ascii_case(b"Bearer ") && given.len() == self.0.len() && std::hint::black_box(differing) == 0
    }
}

/// Whether a file lies in the folder where systemd hands secrets over. Nobody else can enter that, and the mode of what
/// is in it can show the mask of an access list where others' rights stand otherwise.
fn is_handed_over(path: &Path, credentials: &Path) -> bool {
    credentials.is_absolute() && path.parent() == Some(credentials)
}

/// Lets through requests that ask for this server by a name of its own. Nobody else's page can do that; under its own
/// name, which its owner may let lead here (DNS rebinding), it could read every answer. Where a token is needed, or where
/// other hosts may ask anyway, there is nothing to protect.
pub(super) async fn require_own_host(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let live = app.live();
    let tcp = matches!(request.extensions().get::<Peer>(), Some(Peer::Tcp(_)));
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    match host {
        Some(host) if tcp && live.token.is_none() && live.config.is_on_loopback() => {
            let name = name_of(host);
            if name.contains('.') && !is_own_name(name, &live.config.allowed_hosts) {
                let message = format!("{:?} is not a name of this server; see serve.allowed_hosts", shortened(host));
                return Err(Refusal::new(Code::Forbidden, message));
            }
        }
        // Browsers always say whom they ask.
        _ => {}
    }
    Ok(next.run(request).await)
}

/// Lets through requests that bring the token, if there is one.
pub(super) async fn require_token(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    match &app.live().token {
        Some(token) if !token.is_in(request.headers()) => {
            Err(Refusal::new(Code::Unauthorized, "expected the header Authorization: Bearer with the token"))
        }
        _ => Ok(next.run(request).await),
    }
}

/// Lets through requests that may change something: with the token from anywhere, without one only from this device,
/// and not from a page that some other site made a browser here open.
pub(super) async fn require_control(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    if app.live().token.is_none() {
        let local = request.extensions().get::<Peer>().is_some_and(Peer::is_local);
        if !local {
            let message = "changes from other hosts need a token, and this server has none: set serve.token_file";
            return Err(Refusal::new(Code::Forbidden, message));
        }
        if !is_own_page(request.headers(), &app.live().config.allowed_hosts) {
            return Err(Refusal::new(Code::Forbidden, "changes are not taken from pages of other sites"));
        }
    }
    Ok(next.run(request).await)
}

/// Whether a request comes from no page at all, or from one that this server gave out under a name that cannot be
/// another site's.
fn is_own_page(headers: &HeaderMap, allowed_hosts: &str) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let text =
        |value: Option<&header::HeaderValue>| value.and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
    let host = text(headers.get(header::HOST));
    let origin = text(Some(origin)).parse::<Uri>().ok().and_then(|uri| uri.authority().map(ToString::to_string));
    origin.as_deref() == Some(host.as_str()) && is_own_name(name_of(&host), allowed_hosts)
}

/// The name in a header `Host`, which may end with a port.
fn name_of(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.trim_matches(['[', ']'])
}

/// Whether a name cannot be another site's: an address, localhost, or what `allowed` says.
fn is_own_name(name: &str, allowed: &str) -> bool {
    let name = name.trim_end_matches('.');
    let is_allowed = |one: &str| one == "*" || one.eq_ignore_ascii_case(name);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok()
        || allowed.split_whitespace().any(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(header::HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_token_is_read_from_a_file_that_is_its_owners() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Token::read(&path)
        };
        assert_eq!(write("0123456789abcdef\n", 0o600).unwrap().0, b"0123456789abcdef");
        assert!(write("0123456789abcdef", 0o640).unwrap_err().to_string().contains("chmod 600"));
        assert!(write("short", 0o600).unwrap_err().to_string().contains("at least 16"));
        assert!(write("0123456789abcdef 0123456789abcdef", 0o600).is_err());
        assert!(write(&"x".repeat(5000), 0o600).is_err());
        assert!(Token::read(folder.path()).is_err());
    }

    #[test]
    fn only_files_right_in_the_folder_of_credentials_are_handed_over() {
        let given = |path: &str, folder: &str| is_handed_over(path.as_ref(), folder.as_ref());
        assert!(given("/run/credentials/a.service/token", "/run/credentials/a.service"));
        assert!(!given("/run/credentials/a.service/../token", "/run/credentials/a.service"));
        assert!(!given("/etc/token", "/run/credentials/a.service") && !given("token", ""));
    }

    #[test]
    fn only_the_token_itself_passes() {
        let token = Token(b"0123456789abcdef".to_vec());
        let bearing = |value| token.is_in(&headers(&[(header::AUTHORIZATION, value)]));
        assert!(bearing("Bearer 0123456789abcdef") && bearing("bearer 0123456789abcdef"));
        for wrong in
            ["", "Bearer", "Bearer ", "Bearer 0123456789abcdee", "Bearer 0123456789abcdef0", "Basic 0123456789abcdef"]
        {
            assert!(!bearing(wrong), "{wrong:?}");
        }
        assert!(!token.is_in(&HeaderMap::new()));
    }

    #[test]
    fn own_names_are_addresses_localhost_and_what_is_allowed() {
        for (host, name) in
            [("a.b:80", "a.b"), ("a.b", "a.b"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("127.0.0.1:1", "127.0.0.1")]
        {
            assert_eq!(name_of(host), name);
        }
        for own in ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "::1", "192.168.1.7", "Board.local"] {
            assert!(is_own_name(own, "a.example board.local"), "{own}");
        }
        for other in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "board.local.example"] {
            assert!(!is_own_name(other, "a.example board.local"), "{other}");
        }
        assert!(is_own_name("evil.example", "*"));
    }

    #[test]
    fn pages_of_other_sites_are_told_from_own_ones() {
        let from =
            |origin, host| is_own_page(&headers(&[(header::ORIGIN, origin), (header::HOST, host)]), "own.example");
        assert!(is_own_page(&headers(&[(header::HOST, "127.0.0.1:8000")]), ""));
        assert!(from("http://own.example:8000", "own.example:8000"));
        assert!(from("http://127.0.0.1:8000", "127.0.0.1:8000"));
        assert!(from("http://localhost:8000", "localhost:8000") && from("http://[::1]:8000", "[::1]:8000"));
        assert!(!from("https://evil.example", "127.0.0.1:8000"));
        assert!(!from("http://evil.example:8000", "evil.example:8000"), "its name may be made to mean this device");
        assert!(!from("null", "127.0.0.1:8000"));
    }
}
