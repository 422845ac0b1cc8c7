use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::super::{Toolchains, toolchains};
use super::{temporary, write};

fn find(home: &Path, environment: &[(&str, &str)]) -> Toolchains {
    toolchains(home, &|name| {
        environment.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
    })
    .unwrap()
}

fn names(found: &Toolchains, home: &Path) -> Vec<String> {
    let name = |p: &Path| p.strip_prefix(home).unwrap().to_str().unwrap().to_owned();
    found.tools.iter().map(|t| name(&t.at)).collect()
}

#[test]
fn usual_places_are_found_without_their_secrets() {
    let (_keep, home) = temporary();
    for path in [
        ".cargo/bin/x",
        ".cargo/credentials.toml",
        ".rustup/settings.toml",
        ".ssh/id",
        ".gem/credentials",
        ".gem/ruby/x",
        ".local/bin/x",
        "go/src/x",
        "go/bin/x",
    ] {
        write(home.join(path), "");
    }
    let found = find(&home, &[]);
    assert_eq!(names(&found, &home), [".cargo/bin", ".gem", "go/bin", ".rustup", ".local/bin"]);
    assert_eq!(found.masked, [home.join(".gem/credentials")]);
    assert_eq!(found.refused, []);
}

#[test]
fn values_that_widen_the_view_are_refused() {
    let (_keep, home) = temporary();
    for path in [".ssh/bin/x", "tools/x", "cargo/bin/x", "cargo/secret", ".config/x"] {
        write(home.join(path), "");
    }
    let at = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let path = [
        &at(""),
        "/",
        "relative",
        &at(".ssh/bin"),
        &at("tools"),
        &at("a/.."),
        &at(".config"),
        "/usr/bin",
    ]
    .join(":");
    let environment = [
        ("PATH", &*path),
        ("NVM_DIR", &*at("")),
        ("VOLTA_HOME", "/"),
        ("GOROOT", "/usr/lib/go"),
        ("CARGO_HOME", &*at("cargo")),
        ("PYENV_ROOT", "/data/pyenv"),
    ];
    let found = find(&home, &environment);
    assert_eq!(names(&found, &home), ["cargo/bin", "tools"]);
    let refused: Vec<_> = found.refused.iter().map(|(p, _)| p.to_str().unwrap()).collect();
    for value in ["/", "/data/pyenv", &at(".ssh/bin"), &at("a/.."), &at(".config")] {
        assert!(refused.contains(&value), "{value}: {refused:?}");
    }
}

#[test]
fn links_are_resolved_and_those_that_lead_away_refused() {
    let (_keep, top) = temporary();
    let home = top.join("h");
    write(home.join("dotfiles/nvm/x"), "");
    write(home.join("dotfiles/share/uv/tools/x"), "");
    write(top.join("elsewhere/x"), "");
    write(home.join(".ssh/x"), "");
    symlink("dotfiles/nvm", home.join(".nvm")).unwrap();
    symlink("/usr/lib", home.join(".nix-profile")).unwrap();
    symlink(".ssh", home.join(".rbenv")).unwrap();
    symlink(".", home.join(".pyenv")).unwrap();
    symlink("../elsewhere", home.join(".asdf")).unwrap();
    symlink("/", home.join(".volta")).unwrap();
    std::fs::create_dir(home.join(".local")).unwrap();
    symlink("../dotfiles/share", home.join(".local/share")).unwrap();
    let found = find(&home, &[]);
    assert_eq!(names(&found, &home), [".nvm", ".local/share/uv/tools", ".nix-profile"]);
    assert_eq!(found.tools[0].path, home.join("dotfiles/nvm"));
    assert_eq!(found.tools[1].path, home.join("dotfiles/share/uv/tools"));
    assert_eq!(found.refused.len(), 4);
}
