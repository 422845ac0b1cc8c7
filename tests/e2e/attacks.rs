//! Attacks by name: each is refused inside and works in its control.
