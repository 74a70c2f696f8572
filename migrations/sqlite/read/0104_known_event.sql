-- Which event a checkpoint stands at, so that a log that was restored or replaced is told from the one it was: position
-- and id, with a blank between. Empty, or of another position, where an older release moved the checkpoint.
alter table checkpoints add column event text;
