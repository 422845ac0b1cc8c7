//! Builds and tests of offline projects, with the default profile.

use std::path::PathBuf;

use crate::harness::{Place, Ran, User, as_each_user, has};

#[test]
fn npm_installs_a_local_dependency_and_runs_the_tests() {
    if !has("npm") || !has("node") {
        return;
    }
    as_each_user(|p| {
        p.write(
            "dep/package.json",
            r#"{"name":"dep","version":"1.0.0","bin":{"depbin":"bin.js"}}"#,
        );
        let bin = p.write("dep/bin.js", "#!/usr/bin/env node\nconsole.log('bin ran')\n");
        p.command("chmod").args(["755".as_ref(), bin.as_os_str()]).status().unwrap();
        p.write(
            "package.json",
            r#"{"name":"app","version":"1.0.0","dependencies":{"dep":"file:dep"},
                "scripts":{"test":"depbin && node test.js"}}"#,
        );
        p.write("test.js", "console.log('with', require('dep/package.json').name)");
        let ran = p
            .shell(&[], "npm install --no-audit --no-fund && npm ci --no-audit && npm test && node_modules/.bin/depbin")
            .ok();
        assert_eq!(ran.out.matches("bin ran").count(), 2, "{ran:?}");
        ran.says("with dep");
        assert!(p.workspace().join("package-lock.json").exists());
        assert_eq!(std::fs::read_dir(p.home()).unwrap().count(), 0, "home stays as it was");
    });
}

#[test]
fn a_python_environment_is_made_and_a_local_package_installed() {
    if !has("python3") {
        return;
    }
    let modules = ["-c", "import venv, ensurepip"];
    if Ran::of(Place::new(User::Me).command("python3").args(modules)).code != Some(0) {
        println!("skipped: python3 has no venv");
        return;
    }
    as_each_user(|p| {
        p.write("package/local/__init__.py", "def answer(): return 42\n");
        p.write(
            "package/setup.py",
            "from setuptools import setup\nsetup(name='local', version='1', packages=['local'])\n",
        );
        p.write(
            "test_local.py",
            "import unittest, local\nclass T(unittest.TestCase):\n def test(self):\n  self.assertEqual(local.answer(), 42)\n",
        );
        let made = p.shell(&[], "python3 -m venv env && env/bin/pip --version && env/bin/python -m unittest --help >/dev/null");
        made.ok().says("project/env/");
        let setuptools = p.shell(&[], "env/bin/python -c 'import setuptools'");
        if setuptools.code == Some(0) {
            p.shell(&[], "env/bin/pip install -q --no-index --no-build-isolation ./package && env/bin/python -m unittest")
                .ok()
                .says("OK");
        } else {
            println!("skipped: no setuptools for pip to build with");
            p.shell(&["-e", "PYTHONPATH=package"], "env/bin/python -m unittest").ok().says("OK");
        }
        assert_eq!(std::fs::read_dir(p.home()).unwrap().count(), 0, "home stays as it was");
    });
}

/// Where a toolchain lies that the user may use, with the environment it needs.
fn rust(p: &Place) -> Option<Vec<(&'static str, PathBuf)>> {
    let system = PathBuf::from("/usr/bin/cargo");
    if system.exists() {
        return Some(Vec::new());
    }
    // rustup's, in the home of whoever runs the tests.
    let home = PathBuf::from(std::env::var_os("HOME")?);
    if p.user == User::Me && home.join(".cargo/bin/cargo").exists() {
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", home.join(".cargo/bin").display());
        return Some(vec![("HOME", home), ("PATH", path.into())]);
    }
    println!("skipped: no cargo that user {} may run", p.ids().0);
    None
}

#[test]
fn cargo_builds_and_tests_a_crate_with_a_path_dependency() {
    as_each_user(|p| {
        let Some(environment) = rust(p) else { return };
        p.write(
            "Cargo.toml",
            "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
             [dependencies]\nlocal = { path = \"local\" }\n[workspace]\n",
        );
        p.write("src/main.rs", "fn main() { println!(\"{}\", local::answer()); }\n");
        p.write(
            "local/Cargo.toml",
            "[package]\nname = \"local\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
        );
        p.write(
            "local/src/lib.rs",
            "//! ```\n//! assert_eq!(local::answer(), 42);\n//! ```\npub fn answer() -> u32 { 42 }\n\
             #[test]\nfn it_is() { assert_eq!(answer(), 42); }\n",
        );
        let script = "cargo build && target/debug/app && cargo test -q -p local && cargo --version";
        let ran = Ran::of(p.ringfence(["-c", script]).envs(environment)).ok();
        assert!(ran.out.contains("42\n"), "{ran:?}");
        // The unit test and the documentation test.
        assert_eq!(ran.out.matches("1 passed").count(), 2, "{ran:?}");
        assert!(p.workspace().join("target/debug/app").exists());
    });
}

#[test]
fn make_and_a_compiler_build_a_program() {
    if !has("make") || !has("gcc") {
        return;
    }
    as_each_user(|p| {
        p.write("main.c", "#include <stdio.h>\nint f(void);\nint main(void) { printf(\"%d\\n\", f()); return 0; }\n");
        p.write("f.c", "int f(void) { return 42; }\n");
        p.write(
            "Makefile",
            "app: main.o f.o\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -O2 -pipe -c $<\n\
             check: app\n\ttest \"$$(./app)\" = 42\n",
        );
        p.shell(&[], "make -j4 check && ./app").ok().says("42\n");
        p.shell(&[], "make -q app").ok();
    });
}

#[test]
fn java_compiles_and_runs() {
    if !has("javac") || !has("java") {
        return;
    }
    as_each_user(|p| {
        p.write(
            "A.java",
            "class A { public static void main(String[] a) { System.out.println(6 * 7); } }",
        );
        let ran = p.shell(&[], "javac A.java && java -Xmx64m A").ok();
        assert_eq!(ran.out, "42\n", "{ran:?}");
    });
}
