//! placeholder

pub mod leader;
