//! The acts that follow from what is written down. What was not done is done by a later look.

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds as crds;
use lockkeeper_crds::Weights;
use lockkeeper_policies::cutover::{Act, Side};

use super::Course;
use crate::operator::cutovers::duties::{self, Found};

impl Course {
    /// One act on what runs once, or on the freeze. What was not done is done by a later look.
    pub(super) async fn hand_over(
        &mut self,
        object: &crds::ClusterCutover,
        act: &Act,
        [blue, green]: &[Vec<Found>; 2],
        now: DateTime<Utc>,
    ) {
        let Some(ground) = &self.state.ground else { return };
        let all = &object.spec.singletons;
        let of = |side: Side| match side {
            Side::Blue => (&ground.blue, blue, green),
            Side::Green => (&ground.green, green, blue),
        };
        let told = match act {
            Act::Stop(side, fence) => match of(*side) {
                (Ok(cluster), found, _) => duties::stop(cluster, all, found, *fence, now).await,
                (Err(why), ..) => Err(why.clone()),
            },
            Act::Start(side) => match of(*side) {
                (Ok(cluster), found, other) => duties::start(cluster, all, found, other).await,
                (Err(why), ..) => Err(why.clone()),
            },
            Act::Freeze(_) | Act::Thaw => match ground.blue.as_ref().map(|blue| self.freezer(object, blue)) {
                Ok(Some(freezer)) => match act {
                    Act::Freeze(until) => freezer.begin(*until, now).await,
                    _ => freezer.end().await,
                },
                Ok(None) => Ok(()),
                Err(why) => Err(why.clone()),
            },
            Act::Wait(_) | Act::Mark(_) | Act::Prepare | Act::Set(_) => Ok(()),
        };
        if let Err(why) = &told {
            tracing::warn!(cutover = self.name, ?act, why, "not done yet");
        }
        self.state.trouble = told.err();
    }

    /// Makes what moves the traffic ready for changes.
    pub(super) async fn prepare(&mut self, now: DateTime<Utc>) {
        let driver = self.state.ground.as_ref().map(|g| &g.driver);
        let prepared = match driver {
            Some(Ok(driver)) => driver.prepare().await.map_err(|e| e.to_string()),
            Some(Err(why)) => Err(why.clone()),
            None => return,
        };
        match prepared {
            Ok(left) => {
                // Times are kept in whole seconds: rounded up.
                let rounded = left.as_secs().saturating_add(u64::from(!left.is_zero()));
                let rounded = TimeDelta::try_seconds(i64::try_from(rounded).unwrap_or(i64::MAX));
                self.state.prepared_until = now.checked_add_signed(rounded.unwrap_or(TimeDelta::MAX));
                self.state.trouble = None;
            }
            Err(why) => self.state.trouble = Some(why),
        }
    }

    pub(super) async fn set(&mut self, green: u8) {
        let driver = self.state.ground.as_ref().map(|g| &g.driver);
        let tried = match driver {
            Some(Ok(driver)) => {
                let set = driver.set(Weights::of_green(green)).await;
                set.map_err(|error| (error.to_string(), error.is_at_work()))
            }
            Some(Err(why)) => Err((why.clone(), false)),
            None => Ok(()),
        };
        if let Err((why, false)) = &tried {
            tracing::warn!(cutover = self.name, green, why, "the weights could not be set");
        }
        self.state.trouble = tried.err().map(|(why, _)| why);
    }

    /// Takes back what was prepared.
    pub(super) async fn take_back(&mut self, object: &crds::ClusterCutover) -> Result<(), String> {
        if object.status.as_ref().is_none_or(|s| s.prepared_until.is_none()) {
            return Ok(());
        }
        self.stand(object).await;
        self.leadership.check().map_err(|e| e.to_string())?;
        match self.state.ground.as_ref().map(|g| &g.driver) {
            Some(Ok(driver)) => driver.finish().await.map_err(|e| e.to_string()),
            Some(Err(why)) => Err(why.clone()),
            None => Err("nothing was built".to_owned()),
        }
    }
}
