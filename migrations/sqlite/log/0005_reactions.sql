-- How far each reactor has come. Its events, its backlog, its deadlines and this row change in one transaction, by
-- compare-and-set of the position. `fence` is raised when an operator resets the reactor: what was decided before is
-- refused.
create table reactor_checkpoints (
    reactor    text    not null,
    partition  integer not null,
    position   integer not null, -- of the last event that it has taken
    fence      integer not null,
    updated_at integer not null, -- microseconds since 1970
    primary key (reactor, partition)
) strict, without rowid;

-- Events that a reactor has not settled: they are tried again, or wait for an operator. While a key has rows here, its
-- later events join them, so that the events of a key stay in order.
create table reactor_backlog (
    reactor   text    not null,
    partition integer not null,
    key       text    not null, -- what the reactor keeps in order, e.g. the id of a process
    position  integer not null, -- of the event
    attempts  integer not null,
    due_at    integer,          -- microseconds since 1970; null: an operator decides
    reason    text,             -- of the last failure
    primary key (reactor, partition, key, position)
) strict, without rowid;
create index reactor_backlog_due_at on reactor_backlog (reactor, partition, due_at);

-- Deadlines that processes have set. The log can make this table again.
create table process_deadlines (
    process text    not null, -- type of the process
    id      text    not null, -- of the process
    name    text    not null, -- of the deadline
    due_at  integer not null, -- microseconds since 1970
    primary key (process, id, name)
) strict, without rowid;
create index process_deadlines_due_at on process_deadlines (process, due_at);
