//! The health checks of a server.

use command_engine::reactions::status;
use event_store::store::Store;
use platform::health::Health;
use projection_engine::dead_letters;
use projection_engine::progress::Progress;

use crate::program::Program;
use crate::settings::Roles;

/// A read model with a larger lag makes the process degraded.
const LAG_SECONDS_MAX: f64 = 30.0;

/// Returns the health checks of a process with these roles, and those of its modules.
pub fn health(program: &Program, store: &Store, progress: &Progress, roles: Roles) -> Health {
    let health = Health::new();
    let (projecting, progress) = (store.clone(), progress.clone());
    // Not required: a read model that lags still answers queries. Clients that need a position send `min_position`.
    health.register(
        "projections",
        move || {
            let (store, progress) = (projecting.clone(), progress.clone());
            async move {
                let (status, _) = progress.status(&store).await.map_err(|e| e.to_string())?;
                match status.iter().find(|one| one.state == "failed" || one.lag_seconds > LAG_SECONDS_MAX) {
                    None => Ok(()),
                    Some(one) => Err(match &one.last_error {
                        Some(error) => format!("Projection {} failed: {error}", one.name),
                        None => format!(
                            "Projection {} is {:.0} s behind. Run `docket projections`.",
                            one.name, one.lag_seconds
                        ),
                    }),
                }
            }
        },
        false,
    );
    let database = store.clone();
    health.register(
        "database",
        move || {
            let store = database.clone();
            async move { store.head().await.map(|_| ()).map_err(|e| e.to_string()) }
        },
        true,
    );
    if roles.write {
        let appending = store.clone();
        // The check `database` only reads. It passes on a database that refuses writes.
        health.register(
            "append",
            move || {
                let store = appending.clone();
                async move { store.probe().await.map_err(|e| e.to_string()) }
            },
            true,
        );
    }
    let (reacting, reactors) = (store.clone(), program.reactors());
    // Not required: events in a backlog delay no other key.
    health.register(
        "reactors",
        move || {
            let (store, reactors) = (reacting.clone(), reactors.clone());
            async move {
                match status::describe_problems(&store, &reactors).await {
                    Ok(None) => Ok(()),
                    Ok(Some(problems)) => Err(problems),
                    Err(error) => Err(error.to_string()),
                }
            }
        },
        false,
    );
    let syncing = store.clone();
    health.register(
        "durability",
        move || {
            let lost = "PostgreSQL runs with fsync or full_page_writes off. A power loss can lose acknowledged commands. Turn both on.";
            std::future::ready(if syncing.is_durable() { Ok(()) } else { Err(lost.to_owned()) })
        },
        false,
    );
    if let Some(disk) = store.disk().cloned() {
        let probe = move || {
            let disk = disk.clone();
            async move { disk.probe().await }
        };
        health.register("storage", probe, true);
    }
    let parked = store.clone();
    // Not required: only the parked streams are affected.
    health.register(
        "dead_letters",
        move || {
            let store = parked.clone();
            async move {
                let letters = dead_letters::list(store.db()).await.map_err(|e| e.to_string())?;
                let parked: Vec<_> = letters.iter().filter(|letter| letter.state != "discarded").collect();
                match parked.iter().map(|letter| letter.age_seconds).reduce(f64::max) {
                    None => Ok(()),
                    Some(oldest) => Err(format!(
                        "{} parked, the oldest for {oldest:.0} s. Run `docket dead-letters list`.",
                        match parked.len() {
                            1 => "1 stream is".to_owned(),
                            streams => format!("{streams} streams are"),
                        }
                    )),
                }
            }
        },
        false,
    );
    for check in program.modules().iter().flat_map(|module| module.checks.clone()) {
        let store = store.clone();
        health.register(check.name, move || (check.run)(store.clone()), check.required);
    }
    if store.nats_connected().is_some() {
        let store = store.clone();
        // Not required: commands and queries work without NATS.
        health.register("nats", move || std::future::ready(store.nats_problem().map_or(Ok(()), Err)), false);
    }
    health
}
