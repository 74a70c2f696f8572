-- As with the log's head: under a long snapshot every version of a checkpoint stays. The pump names the position that it
-- moves from, and this index leads to the versions of that position alone.
create unique index checkpoints_position on checkpoints (position, projection, generation);
alter table checkpoints drop constraint checkpoints_pkey;
