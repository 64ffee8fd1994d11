-- What one gateway of several does at a time. A claim whose holder is gone ends by itself.

CREATE TABLE claims (
  what TEXT PRIMARY KEY NOT NULL,
  holder BLOB NOT NULL,
  until TIMESTAMP NOT NULL
);

-- Whether an archive is still wanted.
CREATE INDEX function_deployments_archive ON function_deployments (archive);
