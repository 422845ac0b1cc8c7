//! Links the release binary statically where the host can, because dynamic linking costs a third of
//! the start of a small program. `-C target-feature=+crt-static` cannot be used without naming a
//! target on the command line (proc macros would be built with it as well), so the linker is told
//! directly: the shared C library's names are answered with scripts that name the archives.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RINGFENCE_DYNAMIC");
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    let release = env("PROFILE") == "release";
    let gnu = env("CARGO_CFG_TARGET_OS") == "linux" && env("CARGO_CFG_TARGET_ENV") == "gnu";
    let native = env("TARGET") == env("HOST");
    if !release || !gnu || !native || !env("RINGFENCE_DYNAMIC").is_empty() {
        return;
    }
    let out = PathBuf::from(env("OUT_DIR"));
    if !can_link_statically(&out) {
        println!(
            "cargo:warning=no static C library here: the binary is linked dynamically and starts slower"
        );
        return;
    }
    // A library that stays shared would be a crash at its first call: nothing loads it.
    let scripts = [
        ("libgcc_s.so", "INPUT(-l:libgcc_eh.a)\n"),
        ("libc.so", "GROUP(-l:libc.a -l:libgcc_eh.a -l:libgcc.a)\n"),
        ("libm.so", "INPUT(-l:libm.a)\n"),
    ];
    for (name, text) in scripts {
        if std::fs::write(out.join(name), text).is_err() {
            return;
        }
    }
    println!("cargo:rustc-link-arg-bins=-L{}", out.display());
    for arg in ["-static-pie", "-Wl,--no-dynamic-linker", "-Wl,-z,nodynamic-undefined-weak"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    if starts_with(PACKED, &out) {
        println!("cargo:rustc-link-arg-bins={PACKED}");
    }
    if env("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        // crates/sys/src/entry.rs
        println!("cargo:rustc-link-arg-bins=-Wl,--entry=ringfence_start");
    }
}

/// Pointers that are only moved, nine thousand of them, in 3 KiB instead of 220: 4 % of a start.
const PACKED: &str = "-Wl,-z,pack-relative-relocs";

/// Tries it: some distributions ship no `libc.a`.
fn can_link_statically(out: &Path) -> bool {
    probe(&["-static-pie"], out).is_some()
}

/// Whether the linker knows the option and the C library starts what it makes: an older one (glibc
/// before 2.36) does not move the pointers, which the probe sees.
fn starts_with(option: &str, out: &Path) -> bool {
    probe(&["-static-pie", option], out)
        .is_some_and(|probe| Command::new(probe).status().is_ok_and(|status| status.success()))
}

/// Links a program whose success depends on a pointer.
fn probe(options: &[&str], out: &Path) -> Option<PathBuf> {
    const SOURCE: &str =
        "static int here; int *volatile there = &here; int main(void) { return there != &here; }\n";
    let (source, program) = (out.join("probe.c"), out.join("probe"));
    std::fs::write(&source, SOURCE).ok()?;
    let linked = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
        .args(options)
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .arg("-lgcc_eh")
        .output()
        .is_ok_and(|o| o.status.success());
    linked.then_some(program)
}
