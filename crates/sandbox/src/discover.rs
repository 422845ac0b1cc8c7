//! What lies in the workspace: git layouts, guarded names, secrets by pattern.
