-- create_migrations_table: creates store.migrations, the table of applied files. It runs after the first migration,
-- which creates the schema store.
CREATE TABLE IF NOT EXISTS store.migrations (
    name VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL
);

COMMENT ON TABLE store.migrations IS 'Files of the program that were applied to this database. Grain: name';
COMMENT ON COLUMN store.migrations.name IS 'File: migrations/..., views/... or seeds/...';
COMMENT ON COLUMN store.migrations.sha256 IS 'Hash of its text when it was applied';
