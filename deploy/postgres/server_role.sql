-- The role that servers connect as: `docket migrate --grant-to docket_server` gives it what they need. Run by psql as the
-- owner of the database, as often as one likes: with -v password=…
select 'create role docket_server login' where not exists (select from pg_roles where rolname = 'docket_server') \gexec
alter role docket_server password :'password';
