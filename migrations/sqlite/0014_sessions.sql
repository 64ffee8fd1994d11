-- Sessions that have ended while access tokens of theirs may still be good, which every gateway has a picture of.

CREATE TABLE ended_sessions (
  session_id BLOB PRIMARY KEY NOT NULL,         -- the family of its refresh tokens
  until TIMESTAMP NOT NULL                      -- from then on none of its access tokens is good
);

INSERT INTO changes (what, number) VALUES ('sessions', 0);

-- That one is past its time is no change.
CREATE TRIGGER sessions_ended AFTER INSERT ON ended_sessions
BEGIN
  UPDATE changes SET number = number + 1 WHERE what = 'sessions';
END;
