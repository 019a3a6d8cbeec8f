//! `lockkeeper operator`, `lockkeeper agent`.
fn main() {}
