//! Merges the live channels of one client into one sequence. Within a group the sequence is in log order, so one cursor
//! describes the client's position in all of its channels.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::batch::{Batch, Delivered, Ephemeral, sort};
use crate::hub::{Hub, Subscription};
use crate::publication::Group;
use crate::queue::{Deliveries, Delivery};
use crate::session::Opened;

/// The live channels of one client, as one sequence.
pub struct Merged {
    deliveries: Deliveries,
    /// Position up to which the hub has queued each group's log.
    through: HashMap<Group, watch::Receiver<i64>>,
    /// Position of the last change that was read, by channel.
    last: HashMap<Arc<str>, i64>,
    /// The publish round that is being read; kept here so that `next` is cancel-safe.
    round: Option<Round>,
    _subscriptions: Vec<Subscription>,
}

/// The batches of one publish round.
struct Round {
    first: Arc<Batch>,
    /// The changes that the client does not have yet.
    changes: Vec<Delivered>,
}

/// The next item of the merged sequence.
pub enum Next {
    /// Changes of one group, in log order.
    Changes(Vec<Delivered>),
    /// An ephemeral event, which is not in the log.
    Ephemeral(Arc<Ephemeral>),
    /// A change is missing. The client must reconnect and resume from the log.
    Gap,
}

impl Merged {
    /// Creates the sequence of some open channels. Moves their subscriptions out of `opened`.
    pub fn new(hub: &Hub, deliveries: Deliveries, opened: &mut [Opened]) -> Self {
        let last = opened.iter().map(|opened| (opened.channel.clone(), opened.position)).collect();
        let through = opened.iter().map(|opened| (opened.kind.group, hub.through(opened.kind.group))).collect();
        let subscriptions = opened.iter_mut().filter_map(|opened| opened.subscription.take()).collect();
        Self { deliveries, through, last, round: None, _subscriptions: subscriptions }
    }

    /// Waits for the next item: all changes of one publish round, or one ephemeral event. Returns no more than one
    /// round, because the client may be slow and the rest should stay queued. Cancel-safe.
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
            // Waits until the hub has queued the round's other batches. The hub queues a round under its lock, so the
            // wait is short, batches of other groups do not come in between, and a stopped group cannot delay this one.
            // `wait_for` does not fail, because the hub lives as long as the process.
            if let Some(through) = self.through.get_mut(group) {
                let _ = through.wait_for(|through| *through >= position).await;
            }
            let Some(mut round) = self.round.take() else { continue };
            while let Some(batch) = self.deliveries.try_next_of_round(&round.first) {
                let Some(changes) = self.new_of(&batch) else { return Next::Gap };
                round.changes.extend(changes);
            }
            // If the connection was disconnected during the round, the queue misses batches that the hub counts as
            // queued.
            if !self.deliveries.is_complete() {
                return Next::Gap;
            }
            if !round.changes.is_empty() {
                sort(&mut round.changes);
                return Next::Changes(round.changes);
            }
        }
    }

    /// Returns the changes of a batch that the client does not have yet; `None` if a change before the batch is
    /// missing.
    fn new_of(&mut self, batch: &Arc<Batch>) -> Option<Vec<Delivered>> {
        // `last` has an entry for every subscribed channel.
        let last = self.last.entry(batch.channel.clone()).or_default();
        if batch.follows() > *last {
            return None;
        }
        let new = Delivered::after(batch, *last).collect();
        *last = batch.last().max(*last);
        Some(new)
    }

    /// Returns the position of each group up to which [`Self::next`] has returned everything; empty if deliveries are
    /// queued.
    pub fn idle_at(&mut self) -> Vec<(Group, i64)> {
        let through: Vec<_> =
            self.through.iter_mut().map(|(group, through)| (*group, *through.borrow_and_update())).collect();
        let is_idle = self.round.is_none() && self.deliveries.is_empty() && self.deliveries.is_complete();
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

    /// Returns a publication of the other group.
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

    fn expected(changes: &[(&str, i64)]) -> Vec<(String, i64)> {
        changes.iter().map(|(channel, position)| ((*channel).to_owned(), *position)).collect()
    }

    /// The hub has marked a round as queued, but this queue was cut off and does not have all of it.
    #[tokio::test]
    async fn a_closed_queue_is_a_gap() {
        let hub = Hub::default();
        let (mut merged, handle) = merged(&hub, &[(ALL, "counters", 0)]);
        hub.publish(CORE, &[created("a", 1)], 1);
        handle.close(CloseReason::Slow);
        assert!(matches!(merged.next().await, Next::Gap));
        assert_eq!(merged.idle_at(), []);
    }

    #[tokio::test]
    async fn a_change_is_sent_on_its_channels_in_name_order() {
        let hub = Hub::default();
        let channels = [(OWNED, "owner:ada", 0), (ONE, "counter:b", 2), (ALL, "counters", 0), (ONE, "counter:a", 0)];
        let (mut merged, _) = merged(&hub, &channels);
        hub.publish(CORE, &[created("a", 1), created("b", 2)], 2);
        let all = [("counter:a", 1), ("counters", 1), ("owner:ada", 1), ("counters", 2), ("owner:ada", 2)];
        // `counter:b` was opened at position 2, so it does not receive the second change again.
        assert_eq!(next(&mut merged).await, expected(&all));
        assert_eq!(merged.idle_at(), [(CORE, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_group_delays_no_other_group() {
        let hub = Hub::default();
        hub.skip_to(OTHER.group, 50);
        let (mut merged, _) = merged(&hub, &[(ALL, "counters", 100), (OTHER, "points", 50)]);
        let idle = |merged: &mut Merged| {
            let mut idle = merged.idle_at();
            idle.sort_unstable();
            idle
        };
        // The other group has stopped; this group continues.
        for position in 101..=103 {
            hub.publish(CORE, &[created("a", position)], position);
            assert_eq!(next(&mut merged).await, expected(&[("counters", position)]));
            assert_eq!(idle(&mut merged), [(CORE, position), (OTHER.group, 50)]);
        }
        // The other group resumes. Its changes are not lost and do not delay the first group.
        hub.publish(OTHER.group, &[of_other(60), of_other(70)], 80);
        hub.publish(CORE, &[created("b", 104)], 104);
        assert_eq!(next(&mut merged).await, expected(&[("points", 60), ("points", 70)]));
        assert_eq!(next(&mut merged).await, expected(&[("counters", 104)]));
        assert_eq!(idle(&mut merged), [(CORE, 104), (OTHER.group, 80)]);
        assert_eq!(next(&mut merged).await, expected(&[]), "no more changes");
    }

    #[tokio::test]
    async fn rounds_of_two_groups_are_not_joined() {
        let hub = Hub::default();
        let (mut merged, _) = merged(&hub, &[(ALL, "counters", 0), (OTHER, "points", 0)]);
        hub.publish(CORE, &[created("a", 7)], 7);
        hub.publish(OTHER.group, &[of_other(7)], 7);
        assert_eq!(next(&mut merged).await, expected(&[("counters", 7)]));
        assert_eq!(next(&mut merged).await, expected(&[("points", 7)]));
    }

    #[tokio::test]
    async fn a_missing_change_is_a_gap() {
        let hub = Hub::default();
        let (mut merged, _) = merged(&hub, &[(ALL, "counters", 0)]);
        let (queue, _end) = queue(CloseHandle::default());
        hub.publish(CORE, &[created("a", 1)], 1);
        assert_eq!(next(&mut merged).await, expected(&[("counters", 1)]));
        let _place = hub.subscribe(ALL, "counters", &queue, true);
        *merged.last.get_mut("counters").unwrap() = 0;
        hub.publish(CORE, &[created("b", 2)], 2);
        assert_eq!(next(&mut merged).await, expected(&[("gap", 0)]));
    }
}
