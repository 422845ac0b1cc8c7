//! Hosts that refuse namespaces, Landlock, or both: never unconfined.
