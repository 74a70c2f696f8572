-- A reactor that an operator holds, or that a restored log has held, takes no event until it is released. Null: it runs.
alter table reactor_checkpoints add column held text; -- why, for whoever lists the reactors

-- Only rows that are tried again by themselves: no query of a whole key may take this index for that of the key.
drop index reactor_backlog_due_at;
create index reactor_backlog_due_at on reactor_backlog (reactor, partition, due_at) where due_at is not null;
