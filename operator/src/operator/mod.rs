//! placeholder

pub mod gates;
pub mod leader;
