//! Interactive use, in a real terminal.
