//! Owners, with real sandboxes. This test is its own spawner.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // tests

use std::os::fd::AsFd as _;

use ringfence_api::{CreateSandbox, ExecRequest};
use ringfence_supervisor::owners::Owners;
use ringfence_supervisor::{
    Caller, Command, Kind, Owner, Reply, Settings, Source, Supervisor, spawner,
};

/// Not a test: what the supervisor below starts as its spawner.
#[test]
fn as_spawner() {
    if std::env::var_os("RINGFENCE_TEST_SPAWNER").is_some() {
        let orders = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        std::process::exit(i32::from(spawner::serve(&orders, 1024)));
    }
}

#[test]
fn one_owner_does_not_see_what_another_has() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(owners());
}

async fn owners() {
    let place = tempfile::tempdir().unwrap();
    let shell = "RINGFENCE_TEST_SPAWNER=1 exec /proc/self/exe as_spawner --exact --nocapture";
    // The shell is not this program: the path is spelled out.
    let program = std::env::current_exe().unwrap();
    let shell = shell.replace("/proc/self/exe", &program.display().to_string());
    let settings = Settings {
        store: place.path().join("state.db"),
        layers: place.path().join("store"),
        spawner: ("/bin/sh".into(), vec!["-c".into(), shell]),
        hidden: Vec::new(),
        workspaces: place.path().join("workspaces"),
        owners: place.path().join("owners.json"),
    };
    Owners::new(place.path().join("owners.json")).create("other", |_| {}, false).unwrap();
    let supervisor = Supervisor::start(settings).await.unwrap();
    let source = Source { interface: "api", uid: None, pid: None };
    let of = |owner| Caller { owner, source };
    let (one, other) = (of(Owner::user()), of(Owner::named(1)));
    let workspace = place.path().join("project");
    std::fs::create_dir(&workspace).unwrap();
    let made_of = CreateSandbox {
        name: Some("box".into()),
        workspace: workspace.to_str().unwrap().into(),
        ..CreateSandbox::default()
    };
    let create = Command::Create { made_of: Box::new(made_of.clone()), key: Some("k".into()) };
    let made = supervisor.run(one, create.clone()).await;
    let Ok(Reply::Sandbox(made)) = made else {
        println!("skipped: no sandbox here: {made:?}");
        return;
    };
    let exec = |name: &str| Command::Exec {
        sandbox: name.into(),
        request: Box::new(ExecRequest { argv: vec!["true".into()], ..ExecRequest::default() }),
        input: None,
        whole: true,
        key: None,
    };
    let path = || "file".to_owned();
    for name in [made.id.as_str(), "box"] {
        let name = || name.to_owned();
        let asks = [
            Command::Get(name()),
            Command::Start(name()),
            Command::Stop(name()),
            Command::Freeze(name()),
            exec(&name()),
            Command::Execs(name()),
            Command::ReadFile {
                sandbox: name(),
                path: path(),
                part: ringfence_supervisor::Part::WHOLE,
                when: ringfence_supervisor::When::default(),
            },
            Command::WriteFile {
                sandbox: name(),
                path: path(),
                bytes: ringfence_supervisor::Written::Whole(Vec::new()),
                durable: false,
                when: ringfence_supervisor::When::default(),
            },
            Command::ListFiles { sandbox: name(), path: path() },
            Command::StatFile { sandbox: name(), path: path() },
            Command::RemoveFile { sandbox: name(), path: path() },
            Command::MakeDirectory { sandbox: name(), path: path() },
        ];
        let absent = supervisor.run(other, Command::Get("sb_0".into())).await.unwrap_err();
        // But for the name that was asked for.
        let message = absent.message.replace("sb_0", &name());
        let absent = ringfence_supervisor::Error { message, ..absent };
        for ask in asks {
            let refused = supervisor.run(other, ask.clone()).await.unwrap_err();
            // As what was never there.
            assert_eq!(refused, absent, "{ask:?}");
            assert_eq!(refused.kind, Kind::NotFound);
        }
        // Nothing comes of it, and nothing is said.
        supervisor.run(other, Command::Delete(name())).await.unwrap();
        // The control.
        supervisor.run(one, Command::Get(name())).await.unwrap();
        let Ok(Reply::Exec(ran)) = supervisor.run(one, exec(&name())).await else { panic!() };
        assert_eq!(ran.finished().await.unwrap().exit_code, Some(0));
    }
    let list = async |caller| match supervisor.run(caller, Command::List).await {
        Ok(Reply::Sandboxes(all)) => all.len(),
        reply => panic!("{reply:?}"),
    };
    assert_eq!((list(one).await, list(other).await), (1, 0));
    // A directory of the host is not for others.
    let refused = supervisor.run(other, create).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Refused);
    // The same name and the same key are another's own.
    let made_of = CreateSandbox { workspace: String::new(), ..made_of };
    let create = Command::Create { made_of: Box::new(made_of), key: Some("k".into()) };
    let Ok(Reply::Sandbox(theirs)) = supervisor.run(other, create).await else { panic!() };
    assert_ne!(theirs.id, made.id);
    assert_eq!((list(one).await, list(other).await), (1, 1));
    supervisor.shut_down().await;
}
