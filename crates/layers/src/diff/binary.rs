//! What is no text in a patch, as `git diff --binary` writes it and `git apply` takes it: all of the new
//! content, and all of the old one for the way back.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use sha1::Digest as _;

/// Larger files are only said to differ, bytes: a patch is made in memory.
pub const MAX_BINARY: u64 = 64 << 20;
/// Bytes of compressed content in one line.
const LINE: usize = 52;
const DIGITS: &[u8; 85] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

/// The lines after those about modes. `None`: there is no such file on that side.
pub fn write(old: Option<&[u8]>, new: Option<&[u8]>, out: &mut Vec<u8>) {
    // git looks at the content by these before it applies anything.
    let _ = writeln!(out, "index {}..{}", name(old), name(new));
    out.extend(b"GIT binary patch\n");
    literal(new.unwrap_or_default(), out);
    literal(old.unwrap_or_default(), out);
}

/// What git calls this content; all zeros where there is none.
fn name(content: Option<&[u8]>) -> String {
    let Some(content) = content else { return "0".repeat(40) };
    let mut sum = sha1::Sha1::new();
    sum.update(format!("blob {}\0", content.len()));
    sum.update(content);
    crate::object::hex(&sum.finalize())
}

fn literal(content: &[u8], out: &mut Vec<u8>) {
    let _ = writeln!(out, "literal {}", content.len());
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
    // Into memory, which does not fail.
    let _ = packed.write_all(content);
    for line in packed.finish().unwrap_or_default().chunks(LINE) {
        let length = line.len() as u8;
        out.push(if length <= 26 { b'A' + length - 1 } else { b'a' + length - 27 });
        for four in line.chunks(4) {
            let mut word = [0; 4];
            word[..four.len()].copy_from_slice(four);
            let mut rest = u32::from_be_bytes(word);
            let mut digits = [0; 5];
            for digit in digits.iter_mut().rev() {
                *digit = DIGITS[(rest % 85) as usize];
                rest /= 85;
            }
            out.extend(digits);
        }
        out.push(b'\n');
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_written_as_git_reads_it() {
        assert_eq!(name(Some(b"")), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(name(Some(b"hello\n")), "ce013625030ba8dba906f756967f9e9ca394464a");
        let mut out = Vec::new();
        literal(b"", &mut out);
        assert_eq!(out, b"literal 0\nHc$@<O00001\n\n");
    }
}
