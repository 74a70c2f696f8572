//! Adapters to cqrs-es: they run any aggregate in its given/when/then test framework, and let code that uses cqrs-es
//! share the database.

use cqrs_es::DomainEvent;
use cqrs_es::event_sink::EventSink;
use serde::{Deserialize, Serialize};

use crate::aggregate::{Aggregate, EventType};

/// Wraps an aggregate as an aggregate of cqrs-es.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent, bound = "A: Aggregate")]
pub struct Stock<A>(pub A);

/// Wraps an event as an event of cqrs-es.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent, bound = "E: EventType")]
pub struct StockEvent<E>(pub E);

impl<E: EventType + Clone + PartialEq + std::fmt::Debug> DomainEvent for StockEvent<E> {
    fn event_type(&self) -> String {
        self.0.name().to_owned()
    }

    fn event_version(&self) -> String {
        self.0.version().to_owned()
    }
}

impl<A> cqrs_es::Aggregate for Stock<A>
where
    A: Aggregate,
    A::Event: Clone + PartialEq + std::fmt::Debug,
{
    const TYPE: &'static str = A::TYPE;
    type Command = A::Command;
    type Event = StockEvent<A::Event>;
    type Error = A::Error;
    type Services = ();

    async fn handle(&mut self, command: A::Command, _: &(), sink: &EventSink<Self>) -> Result<(), A::Error> {
        for event in self.0.decide(&command)? {
            sink.write(StockEvent(event), self).await;
        }
        Ok(())
    }

    fn apply(&mut self, event: StockEvent<A::Event>) {
        self.0.evolve(&event.0);
    }
}
