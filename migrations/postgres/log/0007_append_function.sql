-- Appends a batch in one round trip, or writes nothing and returns what differs from what the batch assumes.
--
-- It is volatile and runs in read committed, so each of its statements sees what was committed before that statement
-- began. The first one locks the head; the others see everything that was committed before the lock was free. The
-- statements of one query would share the snapshot from before the wait.
--
-- The appender's session turns `enable_seqscan` off: under a long snapshot only an index leads past the dead versions of
-- the head and the checkpoints. It sets `plan_cache_mode` to `force_generic_plan`: the arrays do not change a plan. Here
-- these settings would cost as much as the rest of a small append.
--
-- Servers of several releases call it at once: it is never changed. Another way to append gets another name.
create function docket_append(
    recorded_us            bigint,   -- when the log takes the events, in microseconds since 1970
    -- Streams that the batch writes or checks, each once, with the version that it must have; 0: it must not exist. A
    -- stream that the batch begins may be left out: the primary key of the events refuses one that exists.
    stream_types           text[],
    stream_ids             text[],
    stream_versions        bigint[],
    -- The events, in the order of their positions.
    event_aggregate_types  text[],
    event_aggregate_ids    text[],
    event_sequences        bigint[],
    event_types            text[],
    event_versions         text[],
    event_payloads         text[],
    event_metadata         text[],
    -- The batch's idempotency keys: none may be taken. Those with `key_is_written` are recorded, either at an offset from
    -- the head or, where the offset is null, at a position that is known.
    key_scopes             text[],
    keys                   text[],
    key_is_written         boolean[],
    key_hashes             text[],
    key_statuses           bigint[],
    key_aggregate_types    text[],
    key_aggregate_ids      text[],
    key_versions           bigint[],
    key_offsets            bigint[],
    key_positions          bigint[],
    key_answers            text[],
    -- The checkpoints of reactors that the batch moves: where they must be, and where they go.
    reactors               text[]    default '{}',
    reactor_partitions     bigint[]  default '{}',
    reactor_positions      bigint[]  default '{}',
    reactor_fences         bigint[]  default '{}',
    reactor_targets        bigint[]  default '{}',
    -- Rows of the backlog: those that must be there before, those that go, and those that are written.
    backlog_reactors       text[]    default '{}',
    backlog_partitions     bigint[]  default '{}',
    backlog_keys           text[]    default '{}',
    backlog_positions      bigint[]  default '{}',
    backlog_is_required    boolean[] default '{}',
    backlog_is_deleted     boolean[] default '{}',
    backlog_is_written     boolean[] default '{}',
    backlog_attempts       bigint[]  default '{}',
    backlog_due            bigint[]  default '{}',
    backlog_reasons        text[]    default '{}',
    -- Deadlines, and when each is due; null: it is deleted.
    deadline_processes     text[]    default '{}',
    deadline_ids           text[]    default '{}',
    deadline_names         text[]    default '{}',
    deadline_due           bigint[]  default '{}',
    -- Whether the batch was written, and the head before it.
    out is_written         boolean,
    out head               bigint,
    -- What differs, by place in the arrays above, from 1; null: nothing.
    out other_streams      bigint[],
    out other_versions     bigint[],
    out taken_keys         bigint[],
    out other_reactors     bigint[],
    out other_positions    bigint[], -- null: the reactor has no checkpoint
    out other_fences       bigint[],
    out missing_backlog    bigint[]
)
language plpgsql volatile as $$
declare
    other_position bigint;
    other_fence    bigint;
begin
    select position into head from log_head order by position desc limit 1 for update;

    if cardinality(stream_ids) > 0 then
        select array_agg(v.place), array_agg(v.actual) into other_streams, other_versions
        from (select s.place, s.version,
                     coalesce((select e.sequence from events e
                               where e.aggregate_type = s.aggregate_type and e.aggregate_id = s.aggregate_id
                               order by e.sequence desc limit 1), 0) as actual
              from unnest(stream_types, stream_ids, stream_versions)
                   with ordinality as s (aggregate_type, aggregate_id, version, place)) v
        where v.actual <> v.version;
    end if;

    if cardinality(keys) > 0 then
        select array_agg(k.place) into taken_keys
        from unnest(key_scopes, keys) with ordinality as k (scope, key, place)
        where (select true from idempotency i where i.scope = k.scope and i.key = k.key);
    end if;

    for place in 1 .. cardinality(reactors) loop
        -- The lock keeps an operator from raising the fence until this ends. A row that changed meanwhile is judged as it
        -- is now.
        perform from reactor_checkpoints c
        where c.position = reactor_positions[place] and c.reactor = reactors[place]
              and c.partition = reactor_partitions[place] and c.fence = reactor_fences[place]
        for update;
        if not found then
            select c.position, c.fence into other_position, other_fence
            from reactor_checkpoints c
            where c.reactor = reactors[place] and c.partition = reactor_partitions[place]
            order by c.position desc limit 1;
            other_reactors := array_append(other_reactors, place::bigint);
            other_positions := array_append(other_positions, other_position);
            other_fences := array_append(other_fences, other_fence);
        end if;
    end loop;

    if cardinality(backlog_keys) > 0 then
        select array_agg(b.place) into missing_backlog
        from unnest(backlog_reactors, backlog_partitions, backlog_keys, backlog_positions, backlog_is_required)
             with ordinality as b (reactor, partition, key, position, is_required, place)
        where b.is_required
              and (select true from reactor_backlog l
                   where l.reactor = b.reactor and l.partition = b.partition and l.key = b.key
                         and l.position = b.position) is null;
    end if;

    is_written := other_streams is null and taken_keys is null and other_reactors is null and missing_backlog is null;
    if not is_written then
        return;
    end if;

    if cardinality(event_types) > 0 then
        update log_head set position = head + cardinality(event_types) where position = head;
        insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
                            position, recorded_at)
        select e.aggregate_type, e.aggregate_id, e.sequence, e.event_type, e.event_version, e.payload::json,
               e.metadata::json, head + e.place, recorded_us
        from unnest(event_aggregate_types, event_aggregate_ids, event_sequences, event_types, event_versions,
                    event_payloads, event_metadata)
             with ordinality as e (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
                                   place);
    end if;

    if cardinality(keys) > 0 then
        insert into idempotency (scope, key, request_hash, status, aggregate_type, aggregate_id, version, position,
                                 created_at, answer)
        select k.scope, k.key, k.request_hash, k.status, k.aggregate_type, k.aggregate_id, k.version,
               coalesce(head + k.from_head, k.position), recorded_us, k.answer
        from unnest(key_scopes, keys, key_is_written, key_hashes, key_statuses, key_aggregate_types, key_aggregate_ids,
                    key_versions, key_offsets, key_positions, key_answers)
             as k (scope, key, is_written, request_hash, status, aggregate_type, aggregate_id, version, from_head,
                   position, answer)
        where k.is_written;
    end if;

    for place in 1 .. cardinality(reactors) loop
        update reactor_checkpoints c set position = reactor_targets[place], updated_at = recorded_us
        where c.position = reactor_positions[place] and c.reactor = reactors[place]
              and c.partition = reactor_partitions[place] and c.fence = reactor_fences[place]
              and c.position <> reactor_targets[place];
    end loop;

    if cardinality(backlog_keys) > 0 then
        delete from reactor_backlog l
        using unnest(backlog_reactors, backlog_partitions, backlog_keys, backlog_positions, backlog_is_deleted)
              as b (reactor, partition, key, position, is_deleted)
        where b.is_deleted and l.reactor = b.reactor and l.partition = b.partition and l.key = b.key
              and l.position = b.position;
        insert into reactor_backlog (reactor, partition, key, position, attempts, due_at, reason)
        select b.reactor, b.partition, b.key, b.position, b.attempts, b.due_at, b.reason
        from unnest(backlog_reactors, backlog_partitions, backlog_keys, backlog_positions, backlog_is_written,
                    backlog_attempts, backlog_due, backlog_reasons)
             as b (reactor, partition, key, position, is_written, attempts, due_at, reason)
        where b.is_written
        on conflict (reactor, partition, key, position) do update
        set attempts = excluded.attempts, due_at = excluded.due_at, reason = excluded.reason;
    end if;

    if cardinality(deadline_names) > 0 then
        delete from process_deadlines p
        using unnest(deadline_processes, deadline_ids, deadline_names, deadline_due) as d (process, id, name, due_at)
        where d.due_at is null and p.process = d.process and p.id = d.id and p.name = d.name;
        insert into process_deadlines (process, id, name, due_at)
        select d.process, d.id, d.name, d.due_at
        from unnest(deadline_processes, deadline_ids, deadline_names, deadline_due) as d (process, id, name, due_at)
        where d.due_at is not null
        on conflict (process, id, name) do update set due_at = excluded.due_at;
    end if;
end $$;
