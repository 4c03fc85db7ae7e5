-- One text that is edited on every node.
CREATE SCHEMA editor;

CREATE TABLE editor.document (
    id   int  PRIMARY KEY,
    body text NOT NULL
);
-- What several people do to one row is merged, which takes the old values.
ALTER TABLE editor.document REPLICA IDENTITY FULL;

-- Whoever shows the text hears of each change: of other nodes' as well, for which an ordinary trigger does not fire.
CREATE FUNCTION editor.tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY editor_document;
    RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON editor.document FOR EACH STATEMENT EXECUTE FUNCTION editor.tell();
ALTER TABLE editor.document ENABLE ALWAYS TRIGGER tell;
