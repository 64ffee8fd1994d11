-- The functions' own values. function_id has no foreign key, for functions live in another database: the store
-- deletes a function's values with the function.

CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.updated_at := CURRENT_TIMESTAMP;
  RETURN NEW;
END
$$;

CREATE TABLE function_data (
  function_id UUID NOT NULL,
  key TEXT COLLATE "C" NOT NULL,
  value JSONB NOT NULL,
  created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  PRIMARY KEY (function_id, key)
);

CREATE TRIGGER function_data_updated_at BEFORE UPDATE ON function_data
  FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
