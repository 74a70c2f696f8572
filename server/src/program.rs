//! The modules of a program. Checks that names are unique and that every module finds the modules that it requires.

use std::collections::{BTreeMap, BTreeSet};

use command_engine::reactions::reactor::{Acts, Reactor};
use kernel::upcast::Upcasters;
use projection_engine::registry::{CORE, Group, Registry};
use push::api::ContextDefinitions;

use crate::module::{Module, Setting};
use crate::settings::Roles;

/// Names of the server's own health checks. Modules cannot use them.
const CHECKS: &[&str] =
    &["projections", "reactors", "database", "append", "durability", "storage", "dead_letters", "nats"];

/// A program: its modules, and the registry of their read models.
pub struct Program {
    modules: Vec<Module>,
    registry: Registry,
}

/// Names of one kind, each with the module that declares it.
struct Names {
    kind: &'static str,
    owners: BTreeMap<String, &'static str>,
}

impl Names {
    fn new(kind: &'static str) -> Self {
        Self { kind, owners: BTreeMap::new() }
    }

    fn claim(&mut self, name: &str, module: &'static str) -> Result<(), String> {
        match self.owners.insert(name.to_owned(), module) {
            None => Ok(()),
            Some(_) if self.kind == "name" => Err(format!("Two modules have the name {name}. Rename one of them.")),
            Some(other) if other == module => Err(format!("The module {module} has the {} {name} twice.", self.kind)),
            Some(other) => Err(format!("The modules {other} and {module} both have the {} {name}.", self.kind)),
        }
    }
}

impl Program {
    /// Checks the modules, and puts their read models into checkpoint groups.
    ///
    /// # Errors
    /// The modules do not fit together. The text names the modules and says why.
    pub fn new(modules: Vec<Module>) -> Result<Self, String> {
        check_names(&modules)?;
        check_needs(&modules)?;
        let external: Vec<_> = modules.iter().filter(|module| !module.is_built_in()).collect();
        external.iter().try_for_each(|module| check_external(module))?;
        check_prefixes(&external)?;
        let mut groups: Vec<Group> = Vec::new();
        for module in &modules {
            let group = match groups.iter_mut().find(|group| group.name == module.group) {
                Some(group) => group,
                None => {
                    groups.push(Group { name: module.group, projections: Vec::new(), observers: Vec::new() });
                    groups.last_mut().ok_or("The list of checkpoint groups is empty.")?
                }
            };
            group.projections.extend(&module.projections);
            group.observers.extend(&module.observers);
        }
        groups.retain(|group| !group.projections.is_empty());
        let known: BTreeSet<&str> =
            modules.iter().flat_map(|module| &module.aggregates).map(|kind| kind.aggregate_type()).collect();
        for (module, projection) in
            modules.iter().flat_map(|module| module.projections.iter().map(move |p| (module, p)))
        {
            let kind = projection.aggregate().aggregate_type();
            if !known.contains(kind) {
                return Err(format!(
                    "The read model {} of the module {} folds the aggregate {kind}, which no module has. Add the aggregate.",
                    projection.name(),
                    module.name
                ));
            }
        }
        for (module, reactor) in modules.iter().flat_map(|module| module.reactors.iter().map(move |r| (module, r))) {
            let types = reactor.subscriptions().iter().map(|subscription| subscription.aggregate_type);
            let of_module = format!("The reactor {} of the module {}", reactor.name(), module.name);
            if let Some(unknown) = types.chain(reactor.process()).find(|kind| !known.contains(kind)) {
                return Err(format!(
                    "{of_module} uses the aggregate {unknown}, which no module has. Add it with `aggregate_type_of` to \
                     the module's aggregates."
                ));
            }
            let kinds = || modules.iter().flat_map(|module| &module.aggregates);
            for subscription in reactor.subscriptions() {
                let Some(kind) = kinds().find(|kind| kind.aggregate_type() == subscription.aggregate_type) else {
                    continue;
                };
                let names: Vec<_> = kind.events().iter().map(|(name, _)| *name).collect();
                if let Some(unknown) = subscription.events.iter().find(|event| !names.contains(event)) {
                    return Err(format!(
                        "{of_module} subscribes to the unknown event {unknown} of the aggregate {}. Its events are {}.",
                        subscription.aggregate_type,
                        names.join(", ")
                    ));
                }
            }
            if reactor.process().is_some() && reactor.acts() == Acts::Outside {
                return Err(format!("{of_module} runs a process, so it must act only in the log."));
            }
        }
        let program = Self { registry: Registry::new(groups)?, modules };
        program.live_updates().check(&program.registry).map_err(|bad| bad.to_string())?;
        Ok(program)
    }

    /// Keeps the modules that the setting `modules` names, separated by commas; all modules when it is empty.
    ///
    /// # Errors
    /// A name is not a module; a selected module requires one that is not selected; or the process has the role
    /// `project` and only some of the built-in modules are selected, which share one checkpoint group.
    pub fn select(self, names: &str, roles: Roles) -> Result<Self, String> {
        let wanted: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        if wanted.is_empty() {
            return Ok(self);
        }
        if let Some(unknown) = wanted.iter().find(|name| self.modules.iter().all(|module| module.name != **name)) {
            let known: Vec<_> = self.modules.iter().map(|module| module.name).collect();
            return Err(format!("modules: `{unknown}` is not a module. The modules are {}", known.join(", ")));
        }
        let (running, left): (Vec<_>, Vec<_>) =
            self.modules.into_iter().partition(|module| wanted.contains(&module.name));
        let built_in = |modules: &[Module]| {
            modules
                .iter()
                .filter(|module| module.is_built_in())
                .map(|module| module.name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (present, missing) = (built_in(&running), built_in(&left));
        if roles.project && !present.is_empty() && !missing.is_empty() {
            return Err(format!(
                "modules: A process with the role project must run all built-in modules or none, because they share one \
                 checkpoint group. Add {missing}; or remove {present}; or set roles without project"
            ));
        }
        Self::new(running).map_err(|reason| format!("modules: {}", reason.trim_end_matches('.')))
    }

    /// Returns the modules.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Returns the reactors of all modules.
    pub fn reactors(&self) -> Vec<&'static dyn Reactor> {
        self.modules.iter().flat_map(|module| &module.reactors).copied().collect()
    }

    /// Returns the read models of all modules, in checkpoint groups.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the channels and publishers of all modules.
    pub fn live_updates(&self) -> ContextDefinitions {
        let modules = self.modules.iter();
        ContextDefinitions {
            channels: modules.clone().flat_map(|module| &module.channels).copied().collect(),
            publishers: modules.flat_map(|module| &module.publishers).copied().collect(),
            cursor_v1_kinds: read_side::CURSOR_V1_KINDS,
        }
    }

    /// Returns the settings of all modules.
    pub fn settings(&self) -> Vec<Setting> {
        self.modules.iter().flat_map(|module| &module.settings).copied().collect()
    }

    /// Applies to each module its settings; a setting without a value gets its default.
    ///
    /// # Errors
    /// A value is invalid. The text begins with the name of the setting.
    pub fn apply(&self, values: &BTreeMap<&'static str, String>) -> Result<(), String> {
        for setting in self.settings() {
            let value = values.get(setting.name).map_or(setting.default, String::as_str);
            (setting.apply)(value).map_err(|reason| format!("{}: {reason}", setting.name))?;
        }
        Ok(())
    }

    /// Returns the upcasters of all aggregates.
    pub fn upcasters(&self) -> Upcasters {
        let kinds = self.modules.iter().flat_map(|module| &module.aggregates);
        kinds.fold(Upcasters::default(), |all, kind| all.merge(&kind.upcasters()))
    }
}

/// Whether a text is a valid name of a module, an aggregate type or a reactor.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

fn check_names(modules: &[Module]) -> Result<(), String> {
    let [mut names, mut aggregates, mut projections, mut tables] =
        ["name", "aggregate", "read model", "table"].map(Names::new);
    let [mut routes, mut lines, mut settings, mut checks, mut reactors] =
        ["route", "bulk command", "setting", "health check", "reactor"].map(Names::new);
    CHECKS.iter().try_for_each(|name| checks.claim(name, "server"))?;
    for module in modules {
        let name = module.name;
        if !is_name(name) || name == CORE && !module.is_built_in() {
            return Err(format!(
                "`{name}` is not a valid module name. Use lower-case letters, digits and hyphens; `core` is reserved."
            ));
        }
        names.claim(name, name)?;
        for kind in &module.aggregates {
            let kind_name = kind.aggregate_type();
            if !is_name(kind_name) {
                return Err(format!(
                    "The name of the aggregate `{kind_name}` of the module {name} must be lower-case letters, digits and hyphens."
                ));
            }
            aggregates.claim(kind_name, name)?;
            let mut events = BTreeSet::new();
            if let Some((twice, _)) = kind.events().iter().find(|(event, _)| !events.insert(*event)) {
                return Err(format!(
                    "The aggregate {kind_name} of the module {name} declares the event {twice} twice."
                ));
            }
        }
        for projection in &module.projections {
            projections.claim(projection.name(), name)?;
            projection.tables().iter().try_for_each(|table| tables.claim(table.name, name))?;
        }
        own_routes(module).iter().try_for_each(|route| routes.claim(route, name))?;
        for reactor in &module.reactors {
            if !is_name(reactor.name()) {
                return Err(format!(
                    "The name of the reactor `{}` of the module {name} must be lower-case letters, digits and hyphens.",
                    reactor.name()
                ));
            }
            reactors.claim(reactor.name(), name)?;
        }
        module.bulk.iter().flat_map(|bulk| bulk.types).try_for_each(|line| lines.claim(line, name))?;
        module.settings.iter().try_for_each(|setting| settings.claim(setting.name, name))?;
        module.checks.iter().try_for_each(|check| checks.claim(check.name, name))?;
    }
    Ok(())
}

/// Returns method and path of each route of a module. Path parameters are written as `{}`, so that routes with
/// different parameter names are compared as equal.
pub(crate) fn own_routes(module: &Module) -> Vec<String> {
    let documents =
        [module.commands.map(|routes| routes().into_openapi()), module.queries.map(|routes| routes().into_openapi())];
    let mut routes = Vec::new();
    for (path, item) in documents.into_iter().flatten().flat_map(|document| document.paths.paths) {
        let path: Vec<_> = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect();
        let path = path.join("/");
        let methods = [
            ("GET", item.get.is_some()),
            ("POST", item.post.is_some()),
            ("PUT", item.put.is_some()),
            ("DELETE", item.delete.is_some()),
            ("PATCH", item.patch.is_some()),
        ];
        routes.extend(methods.into_iter().filter(|(_, there)| *there).map(|(method, _)| format!("{method} {path}")));
    }
    routes
}

/// Checks that every required module is there, and that no chain of requirements is a cycle.
fn check_needs(modules: &[Module]) -> Result<(), String> {
    for module in modules {
        for need in &module.needs {
            if modules.iter().all(|known| known.name != *need) {
                return Err(format!(
                    "The module {} requires the module {need}, which is missing. Add {need}.",
                    module.name
                ));
            }
        }
        let (mut seen, mut next) = (BTreeSet::new(), module.needs.clone());
        while let Some(name) = next.pop() {
            if name == module.name {
                let by = modules.iter().find(|one| one.needs.contains(&module.name) && seen.contains(one.name));
                let by = by.map_or(module.name, |one| one.name);
                return Err(format!("The modules {} and {by} require each other.", module.name));
            }
            if seen.insert(name) {
                next.extend(modules.iter().filter(|one| one.name == name).flat_map(|one| &one.needs));
            }
        }
    }
    Ok(())
}

/// Checks that no module name is the beginning of another one: a table belongs to the module whose name it begins with.
fn check_prefixes(modules: &[&Module]) -> Result<(), String> {
    for (at, one) in modules.iter().enumerate() {
        for other in &modules[at + 1..] {
            let begins = |one: &str, other: &str| other.strip_prefix(one).is_some_and(|rest| rest.starts_with('-'));
            if begins(one.name, other.name) || begins(other.name, one.name) {
                return Err(format!(
                    "The modules {} and {} have names of which one begins with the other, so their tables cannot be distinguished. Rename one of them.",
                    one.name, other.name
                ));
            }
        }
    }
    Ok(())
}

/// Checks that the names of everything an external module owns begin with the module's name. By these prefixes `docket
/// modules` finds what a removed module has left.
fn check_external(module: &Module) -> Result<(), String> {
    let name = module.name;
    if module.group != name {
        return Err(format!("The module {name} must have its own checkpoint group, not {}.", module.group));
    }
    let prefix = format!("{}_", name.replace('-', "_"));
    for projection in &module.projections {
        if !projection.name().starts_with(&prefix) {
            return Err(format!(
                "The name of the read model {} of the module {name} must begin with {prefix}.",
                projection.name()
            ));
        }
        for table in projection.tables() {
            let rest = table.name.strip_prefix(projection.name());
            if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_')) {
                return Err(format!(
                    "The name of the table {} of the module {name} must begin with the name of its read model, {}.",
                    table.name,
                    projection.name()
                ));
            }
        }
    }
    if let Some(reactor) = module.reactors.iter().find(|reactor| !is_named_after(reactor.name(), name)) {
        return Err(format!(
            "The name of the reactor {} of the module {name} must begin with {name}-.",
            reactor.name()
        ));
    }
    let groups = module.channels.iter().map(|channel| (channel.name, channel.group));
    let publishers = module.publishers.iter().map(|publisher| (publisher.aggregate_type(), publisher.group()));
    if let Some((what, group)) = groups.chain(publishers).find(|(_, group)| *group != module.group) {
        return Err(format!(
            "The channel or publisher `{what}` of the module {name} must be in its checkpoint group, not in {group}."
        ));
    }
    if let Some(setting) = module.settings.iter().find(|setting| !setting.name.starts_with(&prefix)) {
        return Err(format!("The name of the setting {} of the module {name} must begin with {prefix}.", setting.name));
    }
    Ok(())
}

/// Whether a reactor's name is the module's name, or begins with it and a hyphen.
pub(crate) fn is_named_after(reactor: &str, module: &str) -> bool {
    reactor.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
