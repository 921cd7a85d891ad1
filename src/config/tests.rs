use super::*;
use proptest::prelude::*;

fn load(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
    let flags = flags.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    Config::load(Some(&path), environment, flags)
}

fn refused(text: &str, environment: &[(&str, &str)]) -> String {
    load(text, environment, &[]).unwrap_err().to_string()
}

#[test]
fn the_documented_default_is_the_default() {
    assert_eq!(load(&Config::documented(), &[], &[]).unwrap(), Config::default());
    assert_eq!(load("", &[], &[]).unwrap(), Config::default());
}

#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let file = "[serve]\nmax_batch = 2\nthreads = 2\ndeadline_ms = 7\nsocket = \"a\"";
    let environment =
        [("SECATEUR_SERVE__THREADS", "3"), ("SECATEUR_SERVE__DEADLINE_MS", "8"), ("SECATEUR_SERVE__SOCKET", "")];
    let serve = load(file, &environment, &[("serve.deadline_ms", "9")]).unwrap().serve;
    assert_eq!((serve.max_batch, serve.threads, serve.deadline_ms, serve.socket), (2, 3, 9, None));
}

#[test]
fn a_whole_number_is_a_number_and_the_daemon_has_its_sections() {
    let file = "[guard]\nevery_s = 3\nquiet_hours = \"22:00-06:00\"\n[adapt]\nscheduling = \"batch\"";
    let daemon = load(file, &[("SECATEUR_WATCH__PATIENCE_S", "7")], &[]).unwrap().daemon();
    assert_eq!((daemon.guard.every_s, daemon.watch.patience_s), (3.0, 7.0));
    assert_eq!(daemon.guard.quiet_hours.to_string(), "22:00-06:00");
    assert!(refused("[trigger]\nmin_images = 2.5", &[]).contains("expected a whole number, got a number"));
    assert!(refused("[watch]\nmin_agreement = 3", &[]).contains("watch.min_agreement: expected 0 to 1, got 3"));
    assert!(refused("[gaurd]\n", &[]).contains("did you mean guard?"));
}

#[test]
fn other_variables_are_not_looked_at() {
    let environment = [("SECATEUR_PYTHON", "python3"), ("PATH", "/bin"), ("SERVE__THREADS", "x")];
    assert_eq!(load("", &environment, &[]).unwrap(), Config::default());
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    let said = refused("[serve]\nthread = 2", &[]);
    assert!(said.ends_with("config.toml: unknown key serve.thread; did you mean threads?"), "{said}");
    assert!(refused("[server]\n", &[]).contains("unknown section [server]; did you mean serve?"));
    assert!(refused("[serve]\ncolour = 2", &[]).contains("secateur config print-default"));
    let said = refused("", &[("SECATEUR_SERVE__LISTENN", "x")]);
    assert_eq!(said, "SECATEUR_SERVE__LISTENN: unknown key serve.listenn; did you mean listen?");
}

#[test]
fn values_of_another_type_or_out_of_range_are_refused_by_name() {
    for (text, part) in [
        ("[serve]\nthreads = \"two\"", "serve.threads: expected a whole number, got a text"),
        ("[serve]\naccess_log = 1", "serve.access_log: expected true or false"),
        ("[serve]\nthreads = -1", "config.toml: serve.threads: invalid value: integer `-1`"),
        ("[serve]\nlisten = \"here\"", "config.toml: serve.listen: \"here\": invalid socket address"),
        ("[serve]\nprecision = \"f16\"", "config.toml: serve.precision: unknown variant `f16`"),
        ("[serve]\nmax_batch = 0", "serve.max_batch: expected at least 1, got 0"),
        ("serve = 3", "serve: expected a section"),
        ("[serve]\nthreads = ", "line 2"),
        ("[serve]\nthreads = 1\nthreads = 2", "line 3"),
    ] {
        let said = refused(text, &[]);
        assert!(said.contains(part) && !said.contains('\n'), "{text}: {said}");
    }
    let said = refused("", &[("SECATEUR_SERVE__THREADS", "two")]);
    assert_eq!(said, "SECATEUR_SERVE__THREADS: serve.threads: expected a whole number, got \"two\"");
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "[\\[\\]a-z_.=\"'0-9\n# {}-]{0,80}") {
        let _ = Layers::<Config>::new(&Config::documented()).unwrap().add_file("fuzz", &text);
    }
}
