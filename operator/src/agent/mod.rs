//! placeholder
pub mod backup;
pub mod etcd;
