//! `extends`: from one fragment to the fragment with everything it builds upon.

use std::path::{Component, Path, PathBuf};

use crate::layer::{Entry, Fragment};
use crate::{PolicyError, import, profiles};

/// Longest chain of `extends`, counted in files and profiles.
pub const MAX_EXTENDS: usize = 10;

/// Reads files for `extends`, so that this crate does not.
pub trait Loader {
    /// The content of the file at `path`. The message is shown after "cannot read PATH: ".
    fn read(&self, path: &Path) -> Result<Vec<u8>, String>;
    /// Where the user's own configuration lies, for `@user`; `None` where there is none.
    fn user_config(&self) -> Option<PathBuf>;
}

/// A loader without files: profiles only.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFiles;

impl Loader for NoFiles {
    fn read(&self, _: &Path) -> Result<Vec<u8>, String> {
        Err("files are not read here".to_owned())
    }
    fn user_config(&self) -> Option<PathBuf> {
        None
    }
}

/// Resolves the `extends` of `fragment`, which was read from `file` (for relative paths; `None` for
/// the command line, whose paths are taken as they are). The result extends nothing.
pub fn resolve(
    fragment: Fragment,
    file: Option<&Path>,
    loader: &dyn Loader,
) -> Result<Fragment, PolicyError> {
    let mut chain = Vec::new();
    if let Some(file) = file {
        chain.push(clean(file).display().to_string());
    }
    descend(fragment, file, loader, &mut chain)
}

/// Resolves each layer, merges them (lowest first) and, where none of them extends anything, lays
/// them over the default profile.
pub fn resolve_layers(
    layers: Vec<(Fragment, Option<PathBuf>)>,
    loader: &dyn Loader,
) -> Result<Fragment, PolicyError> {
    let mut merged = Fragment::default();
    for (fragment, file) in layers {
        merged = merged.merge(resolve(fragment, file.as_deref(), loader)?);
    }
    Ok(if merged.complete { merged } else { profiles::workspace_fragment().merge(merged) })
}

fn descend(
    mut fragment: Fragment,
    file: Option<&Path>,
    loader: &dyn Loader,
    chain: &mut Vec<String>,
) -> Result<Fragment, PolicyError> {
    let extends = std::mem::take(&mut fragment.extends.0);
    let mut below = Fragment::default();
    for entry in &extends {
        below = below.merge(load(entry, file, loader, chain)?);
    }
    Ok(below.merge(fragment))
}

fn load(
    entry: &Entry,
    file: Option<&Path>,
    loader: &dyn Loader,
    chain: &mut Vec<String>,
) -> Result<Fragment, PolicyError> {
    let name = entry.value.as_str();
    let path = if name.contains('/') || name.starts_with('.') {
        let folder = file.and_then(Path::parent).unwrap_or(Path::new(""));
        clean(&folder.join(name))
    } else if name == "@user" {
        match loader.user_config() {
            Some(path) => clean(&path),
            // Nothing said is nothing added.
            None => return Ok(Fragment::default()),
        }
    } else {
        return profiles::fragment(name).ok_or_else(|| PolicyError::UnknownProfile {
            at: entry.origin.clone(),
            name: name.to_owned(),
            known: profiles::names(),
        });
    };
    let shown = path.display().to_string();
    let mut whole = chain.clone();
    whole.push(shown.clone());
    if chain.contains(&shown) {
        return Err(PolicyError::Cycle { at: entry.origin.clone(), chain: whole });
    }
    if whole.len() > MAX_EXTENDS {
        return Err(PolicyError::TooDeep {
            at: entry.origin.clone(),
            limit: MAX_EXTENDS,
            chain: whole,
        });
    }
    let bytes = loader.read(&path).map_err(|message| PolicyError::Read {
        at: entry.origin.clone(),
        file: shown.clone(),
        message,
    })?;
    let fragment = import::load(&shown, &bytes)?;
    chain.push(shown);
    let resolved = descend(fragment, Some(&path), loader, chain);
    chain.pop();
    resolved
}

/// `a/../b` to `b`, lexically; leading `..` of a relative path stay.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match out.components().next_back() {
                Some(Component::Normal(_)) => {
                    out.pop();
                }
                Some(Component::RootDir) => {}
                _ => out.push(".."),
            },
            other => out.push(other),
        }
    }
    out
}
