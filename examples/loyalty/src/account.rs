//! The points account of a customer. Points are kept in lots, one per order; the oldest lot is spent first.

use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History, Refusal, RefusalClass, RefusalType};
use kernel::upcast::Upcaster;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The events of an account. The id of the stream is the id of the customer. The comments of variants and fields are
/// part of `schemas/events`.
#[expect(clippy::enum_variant_names, reason = "the log stores the name of an event without the name of its enum")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum Event {
    /// The customer received points for an order.
    PointsGranted {
        /// The customer who owns the account.
        customer_id: String,
        /// Id of the order.
        order_id: String,
        /// Number of points.
        points: i64,
    },
    /// The customer spent points.
    PointsRedeemed {
        /// Number of points.
        points: i64,
    },
    /// The remaining points of an order expired.
    PointsExpired {
        /// Id of the order.
        order_id: String,
        /// Number of points.
        points: i64,
    },
}

impl EventType for Event {
    const VERSIONS: &'static [(&'static str, &'static str)] =
        &[("PointsGranted", "1"), ("PointsRedeemed", "1"), ("PointsExpired", "1")];

    fn name(&self) -> &'static str {
        match self {
            Self::PointsGranted { .. } => "PointsGranted",
            Self::PointsRedeemed { .. } => "PointsRedeemed",
            Self::PointsExpired { .. } => "PointsExpired",
        }
    }
}

/// The state of an account. The default is an account that does not exist.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Id of the customer; `None` while the account does not exist.
    pub customer_id: Option<String>,
    /// Unspent points of each order, the oldest first.
    pub lots: Vec<Lot>,
    /// Sum of all points ever granted.
    pub granted: i64,
    /// Number of orders that granted points.
    pub orders: i64,
}

/// The unspent points of one order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lot {
    /// Id of the order.
    pub order_id: String,
    /// Unspent points, at least one.
    pub points: i64,
}

impl Account {
    /// Returns the points that can be spent.
    pub fn balance(&self) -> i64 {
        self.lots.iter().map(|lot| lot.points).sum()
    }
}

/// The commands of an account.
pub enum Command {
    /// Grants points for an order.
    Grant {
        /// The customer who owns the account.
        customer_id: String,
        /// Id of the order.
        order_id: String,
        /// Number of points.
        points: i64,
    },
    /// Spends points.
    Redeem {
        /// Number of points.
        points: i64,
    },
    /// Lets the unspent points of an order expire.
    Expire {
        /// Id of the order.
        order_id: String,
    },
}

impl CommandType for Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Grant { .. } => "grant_points",
            Self::Redeem { .. } => "redeem_points",
            Self::Expire { .. } => "expire_points",
        }
    }

    fn creates(&self) -> bool {
        // The first grant creates the account.
        matches!(self, Self::Grant { .. })
    }
}

/// The reason for which a command is refused.
#[derive(Debug, PartialEq)]
pub enum Refused {
    /// The account does not exist, or the caller may not see it.
    NotFound,
    /// The account has fewer points than the command spends.
    TooFewPoints {
        /// Points that can be spent.
        balance: i64,
    },
    /// The command spends less than one point.
    NoPoints,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound => f.write_str("the customer has no points"),
            Self::TooFewPoints { balance } => write!(f, "the account has only {balance} points: redeem fewer"),
            Self::NoPoints => f.write_str("a redemption must be at least one point"),
        }
    }
}

impl std::error::Error for Refused {}

const NOT_FOUND: RefusalType = RefusalType {
    slug: "account-not-found",
    class: RefusalClass::NotFound,
    title: "There is no such account",
    meaning: "The customer has never got points, or you may not see the account.",
};
const TOO_FEW_POINTS: RefusalType = RefusalType {
    slug: "too-few-points",
    class: RefusalClass::Rule,
    title: "Too few points",
    meaning: "The account has fewer points than the redemption spends. Redeem fewer.",
};
const NO_POINTS: RefusalType = RefusalType {
    slug: "no-points",
    class: RefusalClass::Rule,
    title: "There is nothing to redeem",
    meaning: "A redemption must be at least one point.",
};

impl Refusal for Refused {
    const TYPES: &'static [RefusalType] = &[NOT_FOUND, TOO_FEW_POINTS, NO_POINTS];

    fn not_found() -> Self {
        Self::NotFound
    }

    fn refusal_type(&self) -> &'static RefusalType {
        match self {
            Self::NotFound => &NOT_FOUND,
            Self::TooFewPoints { .. } => &TOO_FEW_POINTS,
            Self::NoPoints => &NO_POINTS,
        }
    }
}

impl Aggregate for Account {
    const TYPE: &'static str = "points-account";
    const STATE_VERSION: i64 = 1;
    const HISTORY: History = History::Bounded;
    const UPCASTERS: &'static [Upcaster] = &[];
    type Event = Event;
    type Command = Command;
    type Error = Refused;

    fn decide(&self, command: &Command) -> Result<Vec<Event>, Refused> {
        match command {
            // A reaction takes effect exactly once for each order, so the account does not have to remember its orders.
            Command::Grant { points, .. } if *points < 1 => Ok(Vec::new()),
            Command::Grant { customer_id, order_id, points } => Ok(vec![Event::PointsGranted {
                customer_id: customer_id.clone(),
                order_id: order_id.clone(),
                points: *points,
            }]),
            Command::Redeem { points } if *points < 1 => Err(Refused::NoPoints),
            Command::Redeem { points } if *points > self.balance() => {
                Err(Refused::TooFewPoints { balance: self.balance() })
            }
            Command::Redeem { points } => Ok(vec![Event::PointsRedeemed { points: *points }]),
            Command::Expire { order_id } => {
                let left = self.lots.iter().find(|lot| lot.order_id == *order_id);
                let expired = |lot: &Lot| Event::PointsExpired { order_id: order_id.clone(), points: lot.points };
                // If the points of the order are spent, nothing expires.
                Ok(left.map(expired).into_iter().collect())
            }
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::PointsGranted { customer_id, order_id, points } => {
                self.customer_id = Some(customer_id.clone());
                self.granted += points;
                self.orders += 1;
                self.lots.push(Lot { order_id: order_id.clone(), points: *points });
            }
            Event::PointsRedeemed { points } => {
                let mut left = *points;
                for lot in &mut self.lots {
                    let taken = left.min(lot.points);
                    lot.points -= taken;
                    left -= taken;
                }
            }
            Event::PointsExpired { order_id, points } => {
                for lot in self.lots.iter_mut().filter(|lot| lot.order_id == *order_id) {
                    lot.points -= points;
                }
            }
        }
        self.lots.retain(|lot| lot.points > 0);
    }

    fn access(&self) -> Access<'_> {
        self.customer_id.as_deref().map_or(Access::Absent, Access::Owner)
    }

    fn weight(&self) -> usize {
        self.lots.len() * 96
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(events: &[Event]) -> Account {
        events.iter().fold(Account::default(), |mut account, event| {
            account.evolve(event);
            account
        })
    }

    fn granted(order_id: &str, points: i64) -> Event {
        Event::PointsGranted { customer_id: "c-1".into(), order_id: order_id.into(), points }
    }

    #[test]
    fn the_oldest_points_are_spent_first() {
        let account = account(&[granted("o-1", 10), granted("o-2", 5), Event::PointsRedeemed { points: 12 }]);
        assert_eq!(account.lots, [Lot { order_id: "o-2".into(), points: 3 }]);
        let refused = account.decide(&Command::Redeem { points: 4 });
        assert_eq!(refused, Err(Refused::TooFewPoints { balance: 3 }));
    }

    #[test]
    fn the_remaining_points_of_an_order_expire_once() {
        let mut account = account(&[granted("o-1", 10), Event::PointsRedeemed { points: 4 }]);
        let expire = Command::Expire { order_id: "o-1".into() };
        let events = account.decide(&expire).unwrap();
        assert_eq!(events, [Event::PointsExpired { order_id: "o-1".into(), points: 6 }]);
        events.iter().for_each(|event| account.evolve(event));
        assert_eq!(account.decide(&expire), Ok(vec![]));
        assert_eq!((account.balance(), account.granted), (0, 10));
    }
}
