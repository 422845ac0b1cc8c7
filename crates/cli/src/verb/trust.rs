//! `ringfence trust`.

use std::ffi::OsString;
use std::process::ExitCode;

pub fn main(args: &[OsString]) -> ExitCode {
    match crate::help::matches(args) {
        Ok(_) => crate::output::fail("not built yet"),
        Err(code) => code,
    }
}
