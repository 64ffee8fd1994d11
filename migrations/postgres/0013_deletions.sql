-- A function that was deleted serves nobody and is nobody's to see; its rows go some at a time, and it with the last of
-- them. Until then it has a name that nobody can give, so that its own is free at once.
ALTER TABLE functions ADD COLUMN deleted_at TIMESTAMP;

-- What is still to go.
CREATE INDEX functions_deleted ON functions (deleted_at) WHERE deleted_at IS NOT NULL;
