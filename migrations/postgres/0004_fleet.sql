-- The fleet: the authority that certificates come from, the tokens by which machines join, and the nodes.

CREATE TABLE fleet_authority (
  one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one), -- all gateways share a single one
  certificate BYTEA NOT NULL,                   -- DER
  sealed_key BYTEA NOT NULL,                    -- its private key, encrypted under one that JWT_SECRET gives
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE join_tokens (
  hash BYTEA PRIMARY KEY,                       -- SHA-256 of the secret
  made_by UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
  expires_at TIMESTAMP NOT NULL,
  used_at TIMESTAMP,                            -- once a machine joined by it
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- Purging what expired.
CREATE INDEX join_tokens_expires_at ON join_tokens (expires_at);

CREATE TABLE nodes (
  id UUID PRIMARY KEY,
  name TEXT NOT NULL,
  labels TEXT NOT NULL DEFAULT '',              -- a=b,c=d; as the agent said last
  duty VARCHAR(20) NOT NULL CHECK (duty IN ('active', 'cordoned', 'draining', 'removed')),
  certificate_serial TEXT,                      -- hex; none of a node on the gateway's own machine
  certificate_expires_at TIMESTAMP,
  last_seen_at TIMESTAMP,                       -- when it was linked last
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  CHECK ((certificate_serial IS NULL) = (certificate_expires_at IS NULL))
);

CREATE TRIGGER nodes_updated_at BEFORE UPDATE ON nodes
  FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
