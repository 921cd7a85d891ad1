//! The configuration file, its overrides, and reading it again.

use serde_json::json;

use super::server::Serving;
use super::{Workplace, pixel_request};
use crate::program;

#[test]
fn the_printed_default_is_accepted() {
    let place = Workplace::new();
    let printed = place.run("config print-default").ends_with(&[0]).stdout;
    assert!(printed.contains("[serve]") && printed.contains("listen = \"127.0.0.1:8000\""), "{printed}");
    place.write("config.toml", &printed);
    let checked = place.run("config check config.toml").ends_with(&[0]).stdout;
    assert_eq!(checked, "config.toml: good; for `daemon`, name the teacher's file in daemon.teacher\n");
    place.write("config.toml", printed.replace("decode_threads", "decode_treads"));
    place.run("config check config.toml").fails_naming(&[
        "config.toml",
        "serve.decode_treads",
        "did you mean decode_threads?",
    ]);
}

#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let place = Workplace::new();
    place.write("config.toml", "[serve]\nmodel = \"missing\"\nname = \"a\"\nmax_body_bytes = 100");
    let run = |variables: &[(&str, &str)], arguments: &str| {
        let mut command = program::command(place.folder(), arguments);
        command.envs(variables.iter().copied());
        program::wait(command.spawn().unwrap(), arguments)
    };
    run(&[], "serve --config config.toml").fails_naming(&["missing"]);
    run(&[("SECATEUR_SERVE__MODEL", "elsewhere")], "serve --config config.toml").fails_naming(&["elsewhere"]);
    run(&[("SECATEUR_SERVE__MODEL", "elsewhere")], "serve --config config.toml --model there").fails_naming(&["there"]);
    run(&[("SECATEUR_SERVE__MODLE", "x")], "serve").fails_naming(&["SECATEUR_SERVE__MODLE", "did you mean model?"]);
    let server = Serving::start(place.folder(), "--config config.toml --model teacher.safetensors --name b");
    server.get("/v2/models/b").good();
    server.post("/v2/models/b/infer", &pixel_request(0)).refused(413, "body_too_large");
}

#[test]
fn sighup_reads_the_file_again_and_keeps_the_old_one_if_it_is_bad() {
    let place = Workplace::new();
    place.write("config.toml", "[serve]\nmax_body_bytes = 100");
    let server = Serving::start(place.folder(), "--config config.toml --model teacher.safetensors --name shapes");
    let infer = || server.post("/v2/models/shapes/infer", &pixel_request(0));
    infer().refused(413, "body_too_large");
    place.write("config.toml", "[serve]\nmax_body_bytes = \"many\"");
    server.signal(libc::SIGHUP);
    let why = server.wait_for("configuration refused, the one before stays: ");
    assert!(why.contains("serve.max_body_bytes: expected a whole number, got a text"), "{why}");
    infer().refused(413, "body_too_large");
    place.write("config.toml", "[serve]\nmax_body_bytes = 100000\ndecode_threads = 1");
    server.signal(libc::SIGHUP);
    server.wait_for("configuration read again");
    assert!(server.log().contains("serve.decode_threads is changed by a restart only"));
    assert_eq!(infer().good()["outputs"][0]["shape"], json!([1, 4]));
}
