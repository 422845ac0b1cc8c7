use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use ringfence_policy::{Environment, StripReason, profiles};

fn judge(environment: &Environment, name: &str) -> Result<(), StripReason> {
    environment.judge(OsStr::new(name))
}

#[test]
fn the_default_environment() {
    let e = profiles::workspace().unwrap().environment;
    for name in [
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TERM",
        "CARGO_HOME",
        "RUSTUP_HOME",
        "VIRTUAL_ENV",
        "GIT_AUTHOR_NAME",
        "GIT_COMMITTER_DATE",
        "SSL_CERT_FILE",
        "PYTHONPATH",
        "AWS_CA_BUNDLE",
        "NVM_DIR",
    ] {
        assert_eq!(judge(&e, name), Ok(()), "{name}");
    }
    for name in [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "DYLD_INSERT_LIBRARIES",
        "GLIBC_TUNABLES",
        "BASH_ENV",
        "ENV",
        "PYTHONSTARTUP",
        "NODE_OPTIONS",
        "GIT_SSH_COMMAND",
        "GIT_EXTERNAL_DIFF",
        "PROMPT_COMMAND",
        "BASH_FUNC_x%%",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_KEY_0",
        "CARGO_BUILD_RUSTC_WRAPPER",
    ] {
        assert_eq!(judge(&e, name), Err(StripReason::Loader), "{name}");
    }
    for name in [
        "ANTHROPIC_API_KEY",
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "DB_PASSWORD",
        "STRIPE_SECRET_KEY",
        "MY_PRIVATE_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "NPM_TOKEN",
        "npm_config__authToken",
        "PIP_INDEX_URL",
        "DATABASE_URL",
        "client_secret",
    ] {
        assert_eq!(judge(&e, name), Err(StripReason::Secret), "{name}");
    }
    for name in [
        "SSH_AUTH_SOCK",
        "GPG_AGENT_INFO",
        "DBUS_SESSION_BUS_ADDRESS",
        "DISPLAY",
        "WAYLAND_DISPLAY",
        "KUBECONFIG",
        "DOCKER_HOST",
        "XDG_RUNTIME_DIR",
    ] {
        assert_eq!(judge(&e, name), Err(StripReason::HostService), "{name}");
    }
    assert_eq!(judge(&e, "SOMETHING"), Err(StripReason::NotPassed));
    assert_eq!(judge(&e, ""), Err(StripReason::Malformed));
}

#[test]
fn exact_names_override_and_denies_override_all() {
    let e = Environment {
        pass: vec!["*".into(), "GITHUB_TOKEN".into(), "LD_LIBRARY_PATH".into(), "X".into()],
        deny: vec!["X".into(), "NO_*".into()],
        set: [("PATH".to_owned(), "/bin".to_owned()), ("X".to_owned(), "set".to_owned())].into(),
    };
    assert_eq!(judge(&e, "GITHUB_TOKEN"), Ok(()));
    assert_eq!(judge(&e, "LD_LIBRARY_PATH"), Ok(()));
    assert_eq!(judge(&e, "OTHER"), Ok(()));
    assert_eq!(judge(&e, "OTHER_TOKEN"), Err(StripReason::Secret));
    assert_eq!(judge(&e, "LD_PRELOAD"), Err(StripReason::Loader));
    assert_eq!(judge(&e, "X"), Err(StripReason::Denied));
    assert_eq!(judge(&e, "NO_COLOR"), Err(StripReason::Denied));
    let (kept, stripped) = e.filter([
        ("X".into(), "caller".into()),
        ("PATH".into(), "/usr/bin".into()),
        ("A".into(), "1".into()),
        ("A".into(), "2".into()),
        ("NO_X".into(), "1".into()),
    ]);
    let kept: Vec<(&str, &str)> =
        kept.iter().map(|(n, v)| (n.to_str().unwrap(), v.to_str().unwrap())).collect();
    assert_eq!(kept, [("A", "1"), ("PATH", "/bin"), ("X", "set")]);
    assert_eq!(stripped.len(), 1);
    assert_eq!(stripped[0].why.to_string(), "denied by environment.deny");
}

#[test]
fn bytes_that_are_not_utf8() {
    let e = Environment { pass: vec!["*".into()], ..Environment::default() };
    let name = OsString::from_vec(b"A\xff".to_vec());
    let value = OsString::from_vec(b"\xfe\xff".to_vec());
    let (kept, stripped) = e.filter([
        (name.clone(), value.clone()),
        (OsString::from_vec(b"\xff_TOKEN".to_vec()), "x".into()),
    ]);
    assert_eq!(kept, [(name, value)]);
    assert_eq!(stripped[0].name.as_bytes(), b"\xff_TOKEN");
    assert_eq!(stripped[0].why, StripReason::Secret);
}
