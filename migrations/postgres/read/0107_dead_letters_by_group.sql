-- An event may be parked in one group of projections and be fine in the others. `group_name` is '' where the event cannot
-- be decoded or folded: it is parked for all groups. What was parked before is about orders, and parked for all.
alter table dead_letters add column aggregate_type text not null default 'order';
alter table dead_letters add column group_name     text not null default '';
-- A process of an older release that has to park an event while this one is installed finds no key on the position alone:
-- it tries again until a process of this release leads.
alter table dead_letters drop constraint dead_letters_pkey;
alter table dead_letters add primary key (group_name, position);
