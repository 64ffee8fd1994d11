-- The fleet: the authority that certificates come from, the tokens by which machines join, and the nodes.

CREATE TABLE fleet_authority (
  one BOOLEAN PRIMARY KEY NOT NULL DEFAULT TRUE CHECK (one), -- all gateways share a single one
  certificate BLOB NOT NULL,                    -- DER
  sealed_key BLOB NOT NULL,                     -- its private key, encrypted under one that JWT_SECRET gives
  created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

CREATE TABLE join_tokens (
  hash BLOB PRIMARY KEY NOT NULL,               -- SHA-256 of the secret
  made_by BLOB NOT NULL REFERENCES users(id) ON DELETE CASCADE,
  expires_at TIMESTAMP NOT NULL,
  used_at TIMESTAMP,                            -- once a machine joined by it
  created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

-- Purging what expired.
CREATE INDEX join_tokens_expires_at ON join_tokens (expires_at);

CREATE TABLE nodes (
  id BLOB PRIMARY KEY NOT NULL,
  name TEXT NOT NULL,
  labels TEXT NOT NULL DEFAULT '',              -- a=b,c=d; as the agent said last
  duty TEXT NOT NULL CHECK (duty IN ('active', 'cordoned', 'draining', 'removed')),
  certificate_serial TEXT,                      -- hex; none of a node on the gateway's own machine
  certificate_expires_at TIMESTAMP,
  last_seen_at TIMESTAMP,                       -- when it was linked last
  created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  updated_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  CHECK ((certificate_serial IS NULL) = (certificate_expires_at IS NULL))
);

CREATE TRIGGER nodes_updated_at AFTER UPDATE ON nodes BEGIN
  UPDATE nodes SET updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now') WHERE id = NEW.id;
END;
