//! What is asked seldom before the first step: many small questions whose answers seldom change.

use std::collections::BTreeMap;
use std::time::Duration;

use lockkeeper_crds::{Check, CheckResult};
use tokio::time::Instant;

/// A cutover may wait for days for what it lacks; whoever gives it waits for half a minute.
const KEPT: Duration = Duration::from_secs(30);

/// The last answers.
#[derive(Default)]
pub(super) struct Seldom(BTreeMap<String, (Instant, Vec<Check>)>);

impl Seldom {
    /// The answer of a moment ago, or a new one. What could not be told is asked again the next time.
    pub(super) async fn ask(&mut self, what: &str, question: impl Future<Output = Vec<Check>>) -> Vec<Check> {
        if let Some((at, answer)) = self.0.get(what)
            && at.elapsed() < KEPT
        {
            return answer.clone();
        }
        let answer = question.await;
        if answer.iter().any(|check| check.result == CheckResult::Unknown) {
            self.0.remove(what);
        } else {
            self.0.insert(what.to_owned(), (Instant::now(), answer.clone()));
        }
        answer
    }

    /// Something has changed: everything is asked anew.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_a_while_and_what_is_not_known_is_not() {
        let asked = AtomicU32::new(0);
        let ask = async |seldom: &mut Seldom, result| {
            let question = async {
                asked.fetch_add(1, Ordering::Relaxed);
                vec![Check {
                    name: "Rights".to_owned(),
                    result,
                    message: String::new(),
                    node: None,
                }]
            };
            seldom.ask("rights", question).await;
            asked.load(Ordering::Relaxed)
        };
        let mut seldom = Seldom::default();
        assert_eq!(ask(&mut seldom, CheckResult::Unknown).await, 1);
        assert_eq!(ask(&mut seldom, CheckResult::Block).await, 2);
        tokio::time::advance(KEPT / 2).await;
        assert_eq!(ask(&mut seldom, CheckResult::Pass).await, 2);
        seldom.forget();
        assert_eq!(ask(&mut seldom, CheckResult::Pass).await, 3);
        tokio::time::advance(KEPT).await;
        assert_eq!(ask(&mut seldom, CheckResult::Pass).await, 4);
    }
}
