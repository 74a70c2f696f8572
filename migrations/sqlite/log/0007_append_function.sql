-- PostgreSQL alone needs a function here: in SQLite a round trip costs nothing.
select 1;
