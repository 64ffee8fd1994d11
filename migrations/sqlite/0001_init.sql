-- All tables. Ids are UUIDv7 as BLOBs of 16 bytes, so they sort by the time they were made. TIMESTAMP columns are
-- UTC, as text: `2026-01-31 23:59:59`, with a fraction where there is one.

CREATE TABLE users (
  id BLOB PRIMARY KEY NOT NULL,
  email TEXT NOT NULL,                          -- as given
  email_key TEXT NOT NULL UNIQUE,               -- in lower case; log in, and registration
  handle TEXT NOT NULL UNIQUE,                  -- registration looks for a free one
  password_hash TEXT NOT NULL,                  -- argon2id, PHC form
  operator BOOLEAN NOT NULL,
  created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  updated_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

CREATE TRIGGER users_updated_at AFTER UPDATE ON users BEGIN
  UPDATE users SET updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now') WHERE id = NEW.id;
END;

CREATE TABLE refresh_tokens (
  hash BLOB PRIMARY KEY NOT NULL,               -- SHA-256 of the token
  family BLOB NOT NULL,                         -- tokens that were rotated from one another
  user_id BLOB NOT NULL REFERENCES users(id) ON DELETE CASCADE,
  expires_at TIMESTAMP NOT NULL,
  spent_at TIMESTAMP,                           -- when it was rotated
  created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

-- Revoking a family.
CREATE INDEX refresh_tokens_family ON refresh_tokens (family);
-- Purging what expired.
CREATE INDEX refresh_tokens_expires_at ON refresh_tokens (expires_at);

CREATE TABLE functions (
  id BLOB PRIMARY KEY NOT NULL,
  owner_id BLOB NOT NULL REFERENCES users(id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  active_version INTEGER,                       -- the version that serves
  created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  updated_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  UNIQUE (owner_id, name),                      -- one owner's functions, by name or all in order
  -- By version, and not by the deployment's id, so that the version that serves is always the function's own,
  -- and so that the check on delete finds its row by the function's primary key.
  FOREIGN KEY (id, active_version) REFERENCES function_deployments (function_id, version)
);

CREATE TRIGGER functions_updated_at AFTER UPDATE ON functions BEGIN
  UPDATE functions SET updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now') WHERE id = NEW.id;
END;

CREATE TABLE function_deployments (
  id BLOB PRIMARY KEY NOT NULL,
  function_id BLOB NOT NULL REFERENCES functions(id) ON DELETE CASCADE,
  version INTEGER NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('building', 'ready', 'failed')),
  runtime TEXT NOT NULL,
  entrypoint TEXT NOT NULL,
  archive TEXT NOT NULL,                        -- SHA-256, hex
  archive_root TEXT,
  access TEXT NOT NULL CHECK (access IN ('private', 'public')),
  timeout_ms INTEGER NOT NULL,
  memory_mb INTEGER NOT NULL,
  concurrency INTEGER NOT NULL,
  env TEXT NOT NULL,                            -- JSON
  egress BOOLEAN NOT NULL,
  build_ms BIGINT,                              -- once it is ready
  failure TEXT,                                 -- once it failed
  created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  updated_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  UNIQUE (function_id, version)                 -- the active one, the latest one, and those of a deleted function
);

-- Failing at start what a crash left unfinished.
CREATE INDEX function_deployments_building ON function_deployments (id) WHERE status = 'building';

CREATE TRIGGER function_deployments_updated_at AFTER UPDATE ON function_deployments BEGIN
  UPDATE function_deployments SET updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now') WHERE id = NEW.id;
END;

-- The seed's columns, then ours. deployment_id bears no foreign key: deployments go only with their function,
-- and each record would pay for the check.
CREATE TABLE function_invocations (
  id BLOB PRIMARY KEY NOT NULL,
  function_id BLOB NOT NULL REFERENCES functions(id) ON DELETE CASCADE,
  status VARCHAR(20),           -- 'success' or 'error'
  duration_ms INTEGER,          -- Execution time in milliseconds
  error TEXT,                   -- Base64 encoded error message
  logs TEXT,                    -- Structured invocation logs, JSON
  request_info TEXT,            -- Request metadata, JSON
  result TEXT,                  -- Base64 encoded result
  success BOOLEAN,
  created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
  deployment_id BLOB NOT NULL,
  node_id BLOB NOT NULL,
  outcome TEXT NOT NULL,
  cold BOOLEAN NOT NULL,
  peak_memory_bytes BIGINT NOT NULL
);

-- A function's records, newest first: successes, failures, or both merged; and those of a deleted function.
CREATE INDEX function_invocations_listed ON function_invocations (function_id, success, id);

CREATE TABLE function_logs (
  id BLOB PRIMARY KEY NOT NULL,
  function_id BLOB NOT NULL REFERENCES functions(id) ON DELETE CASCADE,
  deployment_id BLOB NOT NULL,
  source TEXT NOT NULL,                         -- 'build' or 'deploy'
  message TEXT NOT NULL,
  created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

-- Those of a deleted function.
CREATE INDEX function_logs_function ON function_logs (function_id);

CREATE TABLE function_data (
  function_id BLOB NOT NULL REFERENCES functions(id) ON DELETE CASCADE,
  key TEXT NOT NULL,
  value TEXT NOT NULL,                          -- JSON
  created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  updated_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  PRIMARY KEY (function_id, key)
);

CREATE TRIGGER function_data_updated_at AFTER UPDATE ON function_data BEGIN
  UPDATE function_data SET updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
    WHERE function_id = NEW.function_id AND key = NEW.key;
END;
