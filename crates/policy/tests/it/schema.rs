use ringfence_policy::schema;
use ringfence_policy::search::{project_candidates, trust_key, user_candidates};
use std::path::Path;

#[test]
fn the_schema_is_as_recorded() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&schema()).unwrap());
}

#[test]
fn nearest_file_first() {
    let all: Vec<String> =
        project_candidates(Path::new("/a/b")).map(|p| p.display().to_string()).collect();
    assert_eq!(all[0], "/a/b/ringfence.toml");
    assert_eq!(all[1], "/a/b/ringfence.jsonc");
    assert_eq!(all[3], "/a/ringfence.toml");
    assert_eq!(all.len(), 9);
    assert_eq!(
        user_candidates(Path::new("/c")).next().unwrap(),
        Path::new("/c/ringfence/ringfence.toml")
    );
}

#[test]
fn trust_binds_path_and_content() {
    let key = |path: &str, content: &str| trust_key(Path::new(path), content.as_bytes());
    assert_ne!(key("/a", "bc"), key("/ab", "c"));
    assert_ne!(key("/a", "b"), key("/a", "c"));
    assert_eq!(key("/a", "b"), key("/a", "b"));
}
