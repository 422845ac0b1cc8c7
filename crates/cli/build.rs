//! Links the release binary statically where the host can, because dynamic linking costs a third of
//! the start of a small program. `-C target-feature=+crt-static` cannot be used without naming a
//! target on the command line (proc macros would be built with it as well), so the linker is told
//! directly: the shared C library's names are answered with scripts that name the archives.

use std::path::PathBuf;
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
    if env("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        // crates/sys/src/entry.rs
        println!("cargo:rustc-link-arg-bins=-Wl,--entry=ringfence_start");
    }
}

/// Tries it: some distributions ship no `libc.a`.
fn can_link_statically(out: &std::path::Path) -> bool {
    let source = out.join("probe.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").is_ok()
        && Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
            .args(["-static-pie", "-o"])
            .arg(out.join("probe"))
            .arg(&source)
            .arg("-lgcc_eh")
            .output()
            .is_ok_and(|o| o.status.success())
}
