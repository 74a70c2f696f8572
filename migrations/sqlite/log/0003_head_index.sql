-- PostgreSQL alone needs an index here: SQLite keeps one version of a row.
select 1;
