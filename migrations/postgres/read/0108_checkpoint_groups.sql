-- Projections of a group move together; those of earlier releases are the group `core`. `revision` is raised whenever
-- rows change without an event: by a decision on a dead letter, by a rollback, after a crash. The key stays the index of
-- 0106: it leads past the dead versions of a checkpoint.
alter table checkpoints add column group_name text   not null default 'core';
alter table checkpoints add column revision   bigint not null default 0;
