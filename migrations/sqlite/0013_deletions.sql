-- As in Postgres.
ALTER TABLE functions ADD COLUMN deleted_at TIMESTAMP;

-- What is still to go.
CREATE INDEX functions_deleted ON functions (deleted_at) WHERE deleted_at IS NOT NULL;
