//! The Python package: its own tests and its examples, against the program that is built here.

use super::clients;
use crate::harness::{as_each_user, binary};

/// What `sdk/python` holds; the user of a case may not be able to read the project.
const SOURCES: [(&str, &str); 13] = [
    ("src/ringfence/__init__.py", include_str!("../../../sdk/python/src/ringfence/__init__.py")),
    ("src/ringfence/_async.py", include_str!("../../../sdk/python/src/ringfence/_async.py")),
    ("src/ringfence/_calls.py", include_str!("../../../sdk/python/src/ringfence/_calls.py")),
    ("src/ringfence/_daemon.py", include_str!("../../../sdk/python/src/ringfence/_daemon.py")),
    ("src/ringfence/_errors.py", include_str!("../../../sdk/python/src/ringfence/_errors.py")),
    ("src/ringfence/_sync.py", include_str!("../../../sdk/python/src/ringfence/_sync.py")),
    ("src/ringfence/_types.py", include_str!("../../../sdk/python/src/ringfence/_types.py")),
    ("src/ringfence/py.typed", include_str!("../../../sdk/python/src/ringfence/py.typed")),
    ("tests/test_sdk.py", include_str!("../../../sdk/python/tests/test_sdk.py")),
    ("unasync.py", include_str!("../../../sdk/python/unasync.py")),
    ("examples/quickstart.py", include_str!("../../../sdk/python/examples/quickstart.py")),
    (
        "examples/layers_and_files.py",
        include_str!("../../../sdk/python/examples/layers_and_files.py"),
    ),
    ("examples/many_at_a_time.py", include_str!("../../../sdk/python/examples/many_at_a_time.py")),
];

/// Runs a program of the package in a directory with its sources; `None` where it cannot be run.
fn ran(script: &str) {
    as_each_user(|p| {
        let base = p.outside().join("sdk");
        for (name, text) in SOURCES {
            p.write(base.join(name), text);
        }
        let environment = [
            ("RINGFENCE_BIN", binary().display().to_string()),
            ("SDK", base.display().to_string()),
            ("TMPDIR", p.outside().display().to_string()),
        ];
        if let Some(ran) = clients::python(p, script, &environment) {
            let ran = ran.ok();
            println!("{}", ran.out);
        }
    });
}

/// With the sources and what they need at hand.
/// What waits for ever says where, and ends.
const BEGIN: &str = "import faulthandler, os, runpy, sys
faulthandler.dump_traceback_later(400, exit=True)
sdk = os.environ['SDK']
os.environ['PYTHONPATH'] = sdk + '/src:' + os.environ['PYTHONPATH']
sys.path.insert(0, sdk + '/src')
";

#[test]
fn its_own_tests_pass() {
    let script = "
import pytest
os.chdir(sdk)
code = pytest.main(['-q', '-p', 'no:cacheprovider', '--basetemp', os.path.expanduser('~/t'), 'tests'])
sys.exit(int(code))";
    ran(&format!("{BEGIN}{script}"));
}

#[test]
fn its_examples_run_and_one_half_is_made_of_the_other() {
    let script = "
for name in ('quickstart', 'many_at_a_time', 'layers_and_files'):
    runpy.run_path(f'{sdk}/examples/{name}.py', run_name='__main__')
sys.argv = ['unasync.py', '--check']
runpy.run_path(f'{sdk}/unasync.py', run_name='__main__')";
    ran(&format!("{BEGIN}{script}"));
}
