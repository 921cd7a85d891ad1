//! HTTPS, where the program is built with it.

use std::process::Command;

use super::Workplace;
use super::server::Serving;
use crate::program;

const CONFIG: &str = "[serve]\ntls_certificate = \"cert.pem\"\ntls_key = \"key.pem\"";
const SERVE: &str = "--config config.toml --model teacher.safetensors --name shapes";

#[test]
fn a_certificate_that_cannot_be_used_is_told() {
    let place = Workplace::new();
    place.write("config.toml", CONFIG);
    place.write("cert.pem", "no certificate");
    place.write("key.pem", "no key");
    let finished = program::run(place.folder(), &format!("serve --listen 127.0.0.1:0 {SERVE}"));
    finished.fails_naming(&["cert.pem", if cfg!(feature = "tls") { "PEM" } else { "--features tls" }]);
}

#[test]
fn https_answers_and_http_does_not() {
    let place = Workplace::new();
    place.write("config.toml", CONFIG);
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
               -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem";
    let made = Command::new("openssl").args(new.split_whitespace()).current_dir(place.folder()).output();
    if !cfg!(feature = "tls") || !made.is_ok_and(|output| output.status.success()) {
        println!("skipped: this build has no TLS (--features tls), or openssl is missing");
        return;
    }
    let server = Serving::start(place.folder(), SERVE);
    let url = format!("https://{}/v2/health/ready", server.address);
    let asked = Command::new("curl")
        .args(["-sS", "-m", "20", "--cacert", "cert.pem", &url])
        .current_dir(place.folder())
        .output();
    let Ok(output) = asked else {
        println!("skipped: curl is missing");
        return;
    };
    assert_eq!(output.stdout, b"{\"ready\":true}", "{}", String::from_utf8_lossy(&output.stderr));
    let mut plain = server.connect();
    let _ = plain.send(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(plain.answer().is_none(), "it answers without TLS");
    server.signal(libc::SIGTERM);
    server.end().ends_with(&[0]);
}
