//! Full and read-only disks, on a small file system that lives as long as one script.

use std::process::Command;

use super::models::Place;

/// What a script did.
struct Ran {
    codes: Vec<i32>,
    stdout: String,
    stderr: String,
}

/// Runs `script` with an empty file system, mounted with `options`, at `store`; `None`, with a printed line, where that
/// is not permitted. In the script, `models ARGUMENTS` runs the program on that store and prints its exit code.
fn on_small_disk(place: &Place, options: &str, script: &str) -> Option<Ran> {
    const NO_MOUNT: i32 = 77;
    std::fs::create_dir_all(place.path("store")).unwrap();
    let whole = format!(
        "mount -t tmpfs -o {options} none store 2>/dev/null || exit {NO_MOUNT}\n\
         models() {{ \"$0\" models \"$@\" --store store; echo \"code $?\"; }}\n{script}"
    );
    // A mount namespace of its own, which ends with it; as somebody's root, where root is not who runs this.
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &whole, env!("CARGO_BIN_EXE_secateur")])
        .current_dir(place.folder())
        .env_remove("RUST_LOG")
        .output();
    let Some(output) = output.ok().filter(|o| o.status.success()) else {
        println!("skipped: a file system cannot be mounted here");
        return None;
    };
    let stdout = String::from_utf8(output.stdout).unwrap();
    let codes = stdout.lines().filter_map(|line| line.strip_prefix("code ")?.parse().ok()).collect();
    Some(Ran { codes, stdout, stderr: String::from_utf8(output.stderr).unwrap() })
}

#[test]
fn on_a_full_disk_a_change_is_refused_and_the_active_version_stays() {
    let place = Place::new();
    let script = "models publish a.safetensors --activate >first\n\
                  models publish b.safetensors --name a --activate\n\
                  models verify\n\
                  cat store/a/active\n\
                  ls -A store; ls store/a\n\
                  models remove a 1; models verify; models publish a.safetensors --activate";
    let (mut full, mut fits) = (0, 0);
    // So many pages, then so many files.
    let sizes = (10..26).map(|pages| format!("size={}k", 4 * pages));
    let counts = (10..22).map(|files| format!("size=1m,nr_inodes={files}"));
    for options in sizes.chain(counts) {
        let Some(ran) = on_small_disk(&place, &options, script) else { return };
        let context = format!("{options}\n{}\n{}", ran.stdout, ran.stderr);
        if std::fs::read_to_string(place.path("first")).unwrap() != "a version 1: published and active\ncode 0\n" {
            assert!(ran.stderr.contains("No space left on device"), "{context}");
            continue;
        }
        assert!(!ran.stdout.contains(".incoming") && !ran.stdout.contains(".tmp"), "{context}");
        assert_eq!((ran.codes[1], ran.codes[3]), (0, 0), "{context}");
        match ran.codes[0] {
            0 => {
                fits += 1;
                assert!(ran.stdout.contains("{\"version\":2,\"earlier\":[1]}"), "{context}");
                // Room was made by removing.
                assert_eq!((ran.codes[2], ran.codes[4]), (0, 0), "{context}");
            }
            2 => {
                full += 1;
                assert!(ran.stderr.contains("No space left on device"), "{context}");
                assert!(ran.stdout.contains("{\"version\":1,\"earlier\":[]}"), "{context}");
                // The only active one cannot be removed.
                assert_eq!(ran.codes[2], 2, "{context}");
            }
            other => panic!("exit code {other}: {context}"),
        }
        assert!(!ran.stderr.contains("panicked"), "{context}");
    }
    println!("the second version: refused {full} times, published {fits} times");
    assert!(full >= 6 && fits >= 6, "refused {full} times, published {fits} times");
}

#[test]
fn a_read_only_disk_serves_and_refuses_changes() {
    let place = Place::new();
    let script = "models publish a.safetensors --activate\n\
                  models publish b.safetensors --name a\n\
                  mount -o remount,ro none store || exit 1\n\
                  models list; models verify\n\
                  models publish a.safetensors; models activate a 2; models rollback a; models remove a 2\n\
                  cat store/a/active";
    let Some(ran) = on_small_disk(&place, "size=1m", script) else { return };
    assert_eq!(ran.codes, [0, 0, 0, 0, 2, 2, 2, 2], "{}\n{}", ran.stdout, ran.stderr);
    assert_eq!(ran.stderr.matches("store/.lock: cannot lock: Read-only file system").count(), 4, "{}", ran.stderr);
    assert!(ran.stdout.contains("a version 2: ok\na active: ok"), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("{\"version\":1,\"earlier\":[]}\n"), "{}", ran.stdout);
}
