-- An event may be parked in one group of projections and be fine in the others. `group_name` is '' where the event cannot
-- be decoded or folded: it is parked for all groups. What was parked before is about orders, and parked for all.
-- SQLite cannot change the key of a table, so the rows move to a new one.
alter table dead_letters rename to dead_letters_by_position;
create table dead_letters (
    position       integer not null,
    aggregate_id   text    not null,
    sequence       integer not null,
    event_type     text    not null,
    reason         text    not null,
    attempts       integer not null,
    parked_at      integer not null, -- microseconds since 1970
    state          text    not null, -- parked | retry | discard | discarded
    event          text,             -- id of the event, where it is known
    aggregate_type text    not null default 'order',
    group_name     text    not null default '',
    primary key (group_name, position)
) strict;
insert into dead_letters (position, aggregate_id, sequence, event_type, reason, attempts, parked_at, state, event)
select position, aggregate_id, sequence, event_type, reason, attempts, parked_at, state, event
from dead_letters_by_position;
drop table dead_letters_by_position;
