-- Sessions that have ended while access tokens of theirs may still be good, which every gateway has a picture of.

CREATE TABLE ended_sessions (
  session_id UUID PRIMARY KEY,                  -- the family of its refresh tokens
  until TIMESTAMP NOT NULL                      -- from then on none of its access tokens is good
);

INSERT INTO changes (what, number) VALUES ('sessions', 0);

-- That one is past its time is no change.
CREATE CONSTRAINT TRIGGER sessions_ended AFTER INSERT ON ended_sessions
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  EXECUTE FUNCTION note_change('sessions');
