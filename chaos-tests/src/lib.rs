//! The lab: real clusters on one machine, faults, load and scenarios.
//!
//! A node is a set of namespaces with containerd and a kubelet in it; kubeadm makes the cluster. Start with
//! [`lab::Lab`].

pub mod address;
pub mod bench;
pub mod build;
pub mod cache;
pub mod cgroup;
pub mod cli;
pub mod course;
pub mod demo;
pub mod edge;
pub mod fabric;
pub mod faults;
pub mod image;
pub mod images;
pub mod install;
pub mod interrupt;
pub mod kubeadm;
pub mod lab;
pub mod load;
pub mod lockkeeper;
pub mod network;
pub mod node;
pub mod process;
pub mod progress;
pub mod recipes;
pub mod remains;
pub mod require;
pub mod runner;
pub mod s3_proxy;
pub mod scenarios;
pub mod scene;
pub mod seed;
pub mod state;
pub mod wheel;
