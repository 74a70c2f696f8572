-- Projections of a group move together; those of earlier releases are the group `core`. `revision` is raised whenever
-- rows change without an event: by a decision on a dead letter, by a rollback, after a crash.
alter table checkpoints add column group_name text    not null default 'core';
alter table checkpoints add column revision   integer not null default 0;
