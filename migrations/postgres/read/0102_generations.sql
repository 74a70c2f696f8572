-- Read models move from one set of tables to generations. A projection says in its own file which tables it has; each
-- generation of it has tables of its own, made by the server, named NAME_gN; queries read the view NAME, which shows the
-- generation that serves. What was here before is derived again from the log.
drop table order_summaries;
drop table order_details;
drop table customers;
drop table sales;
drop table products;
drop table checkpoints;

-- How far each generation of a projection has come. Rows and checkpoint change in one transaction; `epoch` fences: a
-- projector that lost its place to another one finds a newer epoch and writes nothing.
create table checkpoints (
    projection text   not null,
    generation bigint not null,
    version    bigint not null, -- of the projection's code that fills it
    state      text   not null, -- live | building | old
    position   bigint not null, -- of the last event in it
    epoch      bigint not null,
    updated_at bigint not null, -- microseconds since 1970
    last_error text,
    primary key (projection, generation)
);

-- Events that no projector can apply. From `position` on the order's events are left out until an operator decides:
-- `retry` asks for another attempt, `discard` to leave this one event out for good, which makes it `discarded`.
create table dead_letters (
    position     bigint primary key,
    aggregate_id text   not null,
    sequence     bigint not null,
    event_type   text   not null,
    reason       text   not null,
    attempts     bigint not null,
    parked_at    bigint not null, -- microseconds since 1970
    state        text   not null -- parked | retry | discard | discarded
);
