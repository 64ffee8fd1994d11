-- The role that Grafana reads Postgres by. It sees who called what, when, and how that went: no request, no output, no
-- result, no password, no e-mail address, no environment. Run it as often as you like, after the gateway's first start:
--   psql -v password="$GRAFANA_DB_PASSWORD" -f deploy/grafana/reader.sql "$DATABASE_URL"
\set ON_ERROR_STOP on
\if :{?role} \else \set role dartcloud_grafana
\endif
SELECT format('CREATE ROLE %I', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" WITH LOGIN PASSWORD :'password';
-- A dashboard over years of records gives up before it is felt.
ALTER ROLE :"role" SET statement_timeout = '15s';
ALTER ROLE :"role" SET default_transaction_read_only = on;
GRANT SELECT (id, handle) ON users TO :"role";
GRANT SELECT (id, owner_id, name) ON functions TO :"role";
GRANT SELECT (id, function_id, version, runtime, memory_mb) ON function_deployments TO :"role";
GRANT SELECT (id, function_id, deployment_id, node_id, outcome, created_at, cold, cold_cause, peak_memory_bytes,
              gate_us, auth_us, queue_us, cold_us, fn_us, total_us) ON function_invocations TO :"role";
