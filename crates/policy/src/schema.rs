//! The JSON Schema of a policy file, from the types.

use crate::Fragment;

/// JSON Schema (draft 2020-12) of a policy file, the same for TOML and JSONC.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Fragment).to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert(
            "description".to_owned(),
            "What a sandboxed command may do. Every key is optional.".into(),
        );
    }
    schema
}
