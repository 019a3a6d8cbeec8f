//! Work that gives way: on a thread of its own, at a low priority.

use tokio::sync::oneshot;

/// As `nice` counts. Whoever wakes up on a busy node, its etcd above all, runs before one that packs or unpacks.
const NICE: i32 = 10;

/// Runs `work` on a thread that ends with it: a priority that was lowered is not raised again without a right to that, so
/// that no pool's thread may do this. Threads that it starts are of the same priority.
///
/// What is received is an error when `work` panicked, or no thread could be made.
pub(crate) fn aside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (done, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    let begun = thread.spawn(move || {
        // It is done at any priority.
        let _ = rustix::process::nice(NICE);
        // Nobody may want it any more.
        let _ = done.send(work());
    });
    if let Err(error) = begun {
        tracing::error!(name, %error, "no thread can be made");
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_gives_way_and_leaves_others_as_they_were() {
        let before = rustix::process::getpriority_process(None).unwrap();
        let there = aside("test", || rustix::process::getpriority_process(None).unwrap());
        assert_eq!(there.await.unwrap(), (before + NICE).min(19));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
        assert!(aside("test", || panic!("on purpose")).await.is_err());
    }
}
