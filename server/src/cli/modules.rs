//! `docket modules`: lists the modules of this program, and shows or removes what removed modules have left in the
//! database.

use anyhow::{Context, bail};
use command_engine::reactions::reacting;
use event_store::store::Store;
use projection_engine::error::Error;
use projection_engine::generation::{remove_unclaimed, unclaimed};
use serde_json::json;

use crate::cli::{Modules, load, open_store, print_line};
use crate::overview;
use crate::program::{Program, is_named_after};

pub async fn modules(program: Program, wanted: Modules) -> anyhow::Result<u8> {
    let settings = load(&program, &wanted.common)?;
    let store = open_store(&program, &settings).await?;
    if let Some(group) = wanted.prune {
        let is_own = program.modules().iter().any(|module| module.name == group);
        if is_own || program.registry().group(&group).is_some() {
            bail!(
                "This program has the module {group}, so nothing was removed. For old generations, run `docket replay --all --prune`."
            );
        }
        let removed = match remove_unclaimed(&store, program.registry(), &group).await {
            Err(Error::Busy) => bail!("A server still projects or rebuilds {group}. Stop it, then try again."),
            removed => removed.with_context(|| format!("cannot remove the read models of {group}"))?,
        };
        let reactors = unclaimed_reactors(&program, &store).await?;
        let reactors: Vec<_> = reactors.into_iter().filter(|reactor| is_named_after(reactor, &group)).collect();
        if removed.is_empty() && reactors.is_empty() {
            bail!("Nothing is left of a module `{group}`. Run `docket modules` to list what can be removed.");
        }
        for reactor in &reactors {
            if store.try_lead(&reacting(reactor)).await?.is_none() {
                bail!("A server still runs the reactor {reactor}. Stop it, then try again.");
            }
            store.reactions().remove(reactor).await?;
            print_line(format_args!("{reactor}: removed its checkpoint and its backlog."));
        }
        for row in &removed {
            print_line(format_args!("{}: removed generation {}.", row.projection, row.generation));
        }
        return Ok(0);
    }
    if wanted.json {
        print_line(serde_json::to_string(&overview::modules(&program, &store).await?)?);
        return Ok(0);
    }
    for module in overview::views(&program) {
        let view = json!(module);
        print_line(view["name"].as_str().unwrap_or_default());
        let texts = view.as_object().into_iter().flatten().filter(|(field, _)| *field != "name");
        for (field, value) in texts {
            let names = match value {
                serde_json::Value::Array(all) => {
                    let name =
                        |one: &serde_json::Value| one.as_str().or(one["name"].as_str()).unwrap_or_default().to_owned();
                    all.iter().map(name).collect::<Vec<_>>().join(", ")
                }
                other => other.as_str().unwrap_or_default().to_owned(),
            };
            if !names.is_empty() {
                print_line(format_args!("  {field:12} {names}"));
            }
        }
    }
    let left = unclaimed(store.db(), program.registry()).await?;
    for row in &left {
        print_line(format_args!(
            "No module of this program has the read model {}: generation {}, position {}, checkpoint group {}.",
            row.projection, row.generation, row.position, row.group
        ));
    }
    let reactors = unclaimed_reactors(&program, &store).await?;
    for reactor in &reactors {
        print_line(format_args!("No module of this program has the reactor {reactor}."));
    }
    if let (None, Some(reactor)) = (left.first(), reactors.first()) {
        let module = reactor.split('-').next().unwrap_or_default();
        eprintln!("If no other program needs it, remove it with `docket modules --prune {module}`.");
    }
    if let Some(row) = left.first() {
        eprintln!("If no other program needs it, remove it with `docket modules --prune {}`.", row.group);
    }
    Ok(0)
}

/// Returns the names of reactors that are registered in the store but are in no module of the program.
async fn unclaimed_reactors(program: &Program, store: &Store) -> anyhow::Result<Vec<String>> {
    let own = program.reactors();
    let known = store.reactions().checkpoints().await?.into_iter().map(|checkpoint| checkpoint.reactor);
    Ok(known.filter(|name| own.iter().all(|reactor| reactor.name() != name)).collect())
}
