-- All tables but function_data, which lives in the database FUNCTION_DB (see function_db/).
-- Ids are UUIDv7, so they sort by the time they were made. TIMESTAMP columns are UTC.

CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.updated_at := CURRENT_TIMESTAMP;
  RETURN NEW;
END
$$;

CREATE TABLE users (
  id UUID PRIMARY KEY,
  email TEXT NOT NULL,                          -- as given
  email_key TEXT NOT NULL UNIQUE,               -- in lower case; log in, and registration
  handle VARCHAR(63) COLLATE "C" NOT NULL UNIQUE, -- registration looks for a free one
  password_hash TEXT NOT NULL,                  -- argon2id, PHC form
  operator BOOLEAN NOT NULL,
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TRIGGER users_updated_at BEFORE UPDATE ON users
  FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE refresh_tokens (
  hash BYTEA PRIMARY KEY,                       -- SHA-256 of the token
  family UUID NOT NULL,                         -- tokens that were rotated from one another
  user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
  expires_at TIMESTAMP NOT NULL,
  spent_at TIMESTAMP,                           -- when it was rotated
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- Revoking a family.
CREATE INDEX refresh_tokens_family ON refresh_tokens (family);
-- Purging what expired.
CREATE INDEX refresh_tokens_expires_at ON refresh_tokens (expires_at);

CREATE TABLE functions (
  id UUID PRIMARY KEY,
  owner_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
  name VARCHAR(63) COLLATE "C" NOT NULL,        -- "C": paging by name is by bytes, as in SQLite
  active_version INTEGER,                       -- the version that serves
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  UNIQUE (owner_id, name)                       -- one owner's functions, by name or all in order
);

CREATE TRIGGER functions_updated_at BEFORE UPDATE ON functions
  FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE function_deployments (
  id UUID PRIMARY KEY,
  function_id UUID NOT NULL REFERENCES functions(id) ON DELETE CASCADE,
  version INTEGER NOT NULL,
  status VARCHAR(20) NOT NULL CHECK (status IN ('building', 'ready', 'failed')),
  runtime VARCHAR(32) NOT NULL,
  entrypoint TEXT NOT NULL,
  archive CHAR(64) NOT NULL,                    -- SHA-256, hex
  archive_root TEXT,
  access VARCHAR(20) NOT NULL CHECK (access IN ('private', 'public')),
  timeout_ms INTEGER NOT NULL,
  memory_mb INTEGER NOT NULL,
  concurrency INTEGER NOT NULL,
  env JSONB NOT NULL,
  egress BOOLEAN NOT NULL,
  build_ms BIGINT,                              -- once it is ready
  failure TEXT,                                 -- once it failed
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  UNIQUE (function_id, version)                 -- the active one, the latest one, and those of a deleted function
);

-- Failing at start what a crash left unfinished.
CREATE INDEX function_deployments_building ON function_deployments (id) WHERE status = 'building';

CREATE TRIGGER function_deployments_updated_at BEFORE UPDATE ON function_deployments
  FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

-- By version, and not by the deployment's id, so that the version that serves is always the function's own,
-- and so that the check on delete finds its row by the function's primary key.
ALTER TABLE functions ADD CONSTRAINT functions_active_version
  FOREIGN KEY (id, active_version) REFERENCES function_deployments (function_id, version);

-- The seed's columns, then ours. deployment_id bears no foreign key: deployments go only with their function,
-- and each record would pay for the check.
CREATE TABLE function_invocations (
  id UUID PRIMARY KEY,
  function_id UUID NOT NULL REFERENCES functions(id) ON DELETE CASCADE,
  status VARCHAR(20),           -- 'success' or 'error'
  duration_ms INTEGER,          -- Execution time in milliseconds
  error TEXT,                   -- Base64 encoded error message
  logs JSONB,                   -- Structured invocation logs
  request_info JSONB,           -- Request metadata
  result TEXT,                  -- Base64 encoded result
  success BOOLEAN,
  created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
  deployment_id UUID NOT NULL,
  node_id UUID NOT NULL,
  outcome VARCHAR(20) NOT NULL,
  cold BOOLEAN NOT NULL,
  peak_memory_bytes BIGINT NOT NULL
);

-- A function's records, newest first: successes, failures, or both merged; and those of a deleted function.
CREATE INDEX function_invocations_listed ON function_invocations (function_id, success, id);

CREATE TABLE function_logs (
  id UUID PRIMARY KEY,
  function_id UUID NOT NULL REFERENCES functions(id) ON DELETE CASCADE,
  deployment_id UUID NOT NULL,
  source VARCHAR(20) NOT NULL,                  -- 'build' or 'deploy'
  message TEXT NOT NULL,
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- Those of a deleted function.
CREATE INDEX function_logs_function ON function_logs (function_id);
