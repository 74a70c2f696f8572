//! The channels of one listener, live, as one sequence: within a group in the order of the log, so that one cursor says how
//! far the listener has come in all of them.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::batch::{Batch, Delivered, Ephemeral, sort};
use crate::hub::{Hub, Subscription};
use crate::publication::Group;
use crate::queue::{Deliveries, Delivery};
use crate::session::Opened;

/// Live channels.
pub struct Merged {
    deliveries: Deliveries,
    /// How far each group has been queued.
    through: HashMap<Group, watch::Receiver<i64>>,
    /// Position of the last change of each channel.
    last: HashMap<Arc<str>, i64>,
    /// What has come of a round that is being queued.
    round: Option<Round>,
    _subscriptions: Vec<Subscription>,
}

/// What a group published together.
struct Round {
    first: Arc<Batch>,
    /// What of it is new.
    changes: Vec<Delivered>,
}

/// What comes next.
pub enum Next {
    /// Changes of one group, in order.
    Changes(Vec<Delivered>),
    /// What is in no log.
    Ephemeral(Arc<Ephemeral>),
    /// Something is missing: the listener has to go on from the log.
    Gap,
}

impl Merged {
    /// Goes live with open channels, and takes their places in the hub.
    pub fn new(hub: &Hub, deliveries: Deliveries, opened: &mut [Opened]) -> Self {
        let last = opened.iter().map(|opened| (opened.channel.clone(), opened.position)).collect();
        let through = opened.iter().map(|opened| (opened.kind.group, hub.through(opened.kind.group))).collect();
        let subscriptions = opened.iter_mut().filter_map(|opened| opened.subscription.take()).collect();
        Self { deliveries, through, last, round: None, _subscriptions: subscriptions }
    }

    /// Waits for what comes next: what was published together, and no more, for the client may be slow to take it. Nothing
    /// is lost when the wait is given up.
    pub async fn next(&mut self) -> Next {
        loop {
            let (group, position) = match &self.round {
                Some(round) => (round.first.group, round.first.round),
                None => match self.deliveries.next().await {
                    Delivery::Ephemeral(ephemeral) => return Next::Ephemeral(ephemeral),
                    Delivery::Changes(batch) => {
                        let at = (batch.group, batch.round);
                        let Some(changes) = self.new_of(&batch) else { return Next::Gap };
                        self.round = Some(Round { first: batch, changes });
                        at
                    }
                },
            };
            // Its other channels are being queued, without a pause: other groups do not come in between, nor does one that
            // has stopped hold this up. The hub lives as long as the process.
            if let Some(through) = self.through.get_mut(group) {
                let _ = through.wait_for(|through| *through >= position).await;
            }
            let Some(mut round) = self.round.take() else { continue };
            while let Some(batch) = self.deliveries.try_next_of_round(&round.first) {
                let Some(changes) = self.new_of(&batch) else { return Next::Gap };
                round.changes.extend(changes);
            }
            // Cut off in the middle of a round, the queue lacks what the hub says it has queued.
            if !self.deliveries.is_whole() {
                return Next::Gap;
            }
            if !round.changes.is_empty() {
                sort(&mut round.changes);
                return Next::Changes(round.changes);
            }
        }
    }

    /// What is new in a batch; `None` where something is missing before it.
    fn new_of(&mut self, batch: &Arc<Batch>) -> Option<Vec<Delivered>> {
        // Every channel that is subscribed has its place here.
        let last = self.last.entry(batch.channel.clone()).or_default();
        if batch.follows() > *last {
            return None;
        }
        let new = Delivered::after(batch, *last).collect();
        *last = batch.last().max(*last);
        Some(new)
    }

    /// Positions up to which everything has been handed out, of each group, if nothing waits.
    pub fn idle_at(&mut self) -> Vec<(Group, i64)> {
        let through: Vec<_> =
            self.through.iter_mut().map(|(group, through)| (*group, *through.borrow_and_update())).collect();
        let is_idle = self.round.is_none() && self.deliveries.is_empty() && self.deliveries.is_whole();
        if is_idle { through } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use projection_engine::registry::CORE;

    use super::*;
    use crate::connections::{CloseHandle, CloseReason};
    use crate::hub::Kind;
    use crate::publication::Publication;
    use crate::queue::{Queue, queue};
    use crate::session::Start;
    use crate::testing::{ALL, ONE, OTHER, OWNED, created};

    fn opened(hub: &Hub, queue: &Queue, (kind, name, position): (Kind, &str, i64)) -> Opened {
        let subscription = hub.subscribe(kind, name, queue, true);
        let (channel, start) = (subscription.channel().clone(), Start::Snapshot(String::new()));
        let subscription = Some(subscription);
        Opened { channel, kind, is_logged: true, has_presence: false, subscription, position, start }
    }

    fn merged(hub: &Hub, channels: &[(Kind, &str, i64)]) -> (Merged, CloseHandle) {
        let handle = CloseHandle::default();
        let (queue, deliveries) = queue(handle.clone());
        let mut opened: Vec<_> = channels.iter().map(|channel| self::opened(hub, &queue, *channel)).collect();
        (Merged::new(hub, deliveries, &mut opened), handle)
    }

    /// A change of the other group.
    fn of_other(position: i64) -> Arc<Publication> {
        let mut publication = Arc::into_inner(created("a", position)).expect("the only one").on("points");
        publication.channels.retain(|target| target.name == "points");
        Arc::new(publication)
    }

    async fn next(merged: &mut Merged) -> Vec<(String, i64)> {
        match tokio::time::timeout(Duration::from_secs(5), merged.next()).await {
            Ok(Next::Changes(changes)) => {
                changes.iter().map(|change| (change.channel().to_string(), change.position())).collect()
            }
            Ok(Next::Ephemeral(_)) => vec![("ephemeral".into(), 0)],
            Ok(Next::Gap) => vec![("gap".into(), 0)],
            Err(_) => vec![],
        }
    }

    fn told(changes: &[(&str, i64)]) -> Vec<(String, i64)> {
        changes.iter().map(|(channel, position)| ((*channel).to_owned(), *position)).collect()
    }

    /// The hub says that it has queued a round, of which this queue has not got everything.
    #[tokio::test]
    async fn a_queue_that_was_cut_off_hands_nothing_out() {
        let hub = Hub::default();
        let (mut merged, handle) = merged(&hub, &[(ALL, "counters", 0)]);
        hub.publish(CORE, &[created("a", 1)], 1);
        handle.close(CloseReason::Slow);
        assert!(matches!(merged.next().await, Next::Gap));
        assert_eq!(merged.idle_at(), []);
    }

    #[tokio::test]
    async fn a_change_comes_on_its_channels_in_the_order_of_their_names() {
        let hub = Hub::default();
        let channels = [(OWNED, "owner:ada", 0), (ONE, "counter:b", 2), (ALL, "counters", 0), (ONE, "counter:a", 0)];
        let (mut merged, _) = merged(&hub, &channels);
        hub.publish(CORE, &[created("a", 1), created("b", 2)], 2);
        let all = [("counter:a", 1), ("counters", 1), ("owner:ada", 1), ("counters", 2), ("owner:ada", 2)];
        // What was known of the second change is not told again.
        assert_eq!(next(&mut merged).await, told(&all));
        assert_eq!(merged.idle_at(), [(CORE, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_has_stopped_holds_up_no_other() {
        let hub = Hub::default();
        hub.skip_to(OTHER.group, 50);
        let (mut merged, _) = merged(&hub, &[(ALL, "counters", 100), (OTHER, "points", 50)]);
        let idle = |merged: &mut Merged| {
            let mut idle = merged.idle_at();
            idle.sort_unstable();
            idle
        };
        // The other group is not projected any more; this one goes on.
        for position in 101..=103 {
            hub.publish(CORE, &[created("a", position)], position);
            assert_eq!(next(&mut merged).await, told(&[("counters", position)]));
            assert_eq!(idle(&mut merged), [(CORE, position), (OTHER.group, 50)]);
        }
        // It comes back, and what it published meanwhile is neither lost nor late for the first one.
        hub.publish(OTHER.group, &[of_other(60), of_other(70)], 80);
        hub.publish(CORE, &[created("b", 104)], 104);
        assert_eq!(next(&mut merged).await, told(&[("points", 60), ("points", 70)]));
        assert_eq!(next(&mut merged).await, told(&[("counters", 104)]));
        assert_eq!(idle(&mut merged), [(CORE, 104), (OTHER.group, 80)]);
        assert_eq!(next(&mut merged).await, told(&[]), "nothing more");
    }

    #[tokio::test]
    async fn rounds_of_two_groups_at_one_position_are_two() {
        let hub = Hub::default();
        let (mut merged, _) = merged(&hub, &[(ALL, "counters", 0), (OTHER, "points", 0)]);
        hub.publish(CORE, &[created("a", 7)], 7);
        hub.publish(OTHER.group, &[of_other(7)], 7);
        assert_eq!(next(&mut merged).await, told(&[("counters", 7)]));
        assert_eq!(next(&mut merged).await, told(&[("points", 7)]));
    }

    #[tokio::test]
    async fn a_gap_is_not_passed_in_silence() {
        let hub = Hub::default();
        let (mut merged, _) = merged(&hub, &[(ALL, "counters", 0)]);
        let (queue, _end) = queue(CloseHandle::default());
        hub.publish(CORE, &[created("a", 1)], 1);
        assert_eq!(next(&mut merged).await, told(&[("counters", 1)]));
        let _place = hub.subscribe(ALL, "counters", &queue, true);
        *merged.last.get_mut("counters").unwrap() = 0;
        hub.publish(CORE, &[created("b", 2)], 2);
        assert_eq!(next(&mut merged).await, told(&[("gap", 0)]));
    }
}
