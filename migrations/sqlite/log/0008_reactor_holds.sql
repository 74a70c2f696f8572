-- A reactor that an operator holds, or that a restored log has held, takes no event until it is released. Null: it runs.
alter table reactor_checkpoints add column held text; -- why, for whoever lists the reactors
